"""Tune a flow map for consistency: the map from a level agrees with the map from a nearby level.

(1)  ||f(x_t) - sg f(x_r)|| / (t - r), the same noise and the same dropout in both
(2)  r / t = 1 - n(t) / q^(stage + 1), n(t) = 1 + 8 sigmoid(-t)
(3)  the same with an end u <= r in place of 0: M(x_t, t, u) against M(x_r, r, u)
(4)  the pseudo-Huber distance sqrt(|e|^2 + c^2) - c

In place of the 1 / (t - r) of (1) the error is divided by (1 - r / t) c_out(t), which is the same
at low levels and weighs high ones more, since a single call begins there. This weight is
k-diffusion's own.

References:
    Geng et al. (2024), arXiv:2406.14548 (1, 2); Kim et al. (2023), arXiv:2310.02279 (3); Song &
    Dhariwal (2023), arXiv:2310.14189 (4). The numbers of the equations are those of this file.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.tensors import append_dims, mean_per_item
from .flow_map import FlowMap

#: q and the factor of (2).
QUOTIENT, FACTOR = 2.0, 8.0
#: c of (4), the pseudo-Huber distance of a root mean square.
HUBER = 0.03


def middle_level(
    sigma: Tensor, sigma_next: Tensor, progress: float, stages: int, sigma_data: float
) -> Tensor:
    """Return the level r between sigma_next and sigma, by (2) and at least sigma_next.

    Args:
        sigma: t, [B].
        sigma_next: u, [B].
        progress: The share of the run that is done, in [0, 1).
        stages: The number of times in a run that the distance from t to r is halved.
        sigma_data: The standard deviation of the data; the levels of the paper are for data of
            standard deviation 1/2.
    """
    stage = min(int(progress * stages), stages - 1)
    n = 1 + FACTOR * torch.sigmoid(-sigma * (0.5 / sigma_data))
    share = (1 - n / QUOTIENT ** (stage + 1)).clamp(min=0.0)
    return torch.maximum(sigma * share, sigma_next)


def end_level(sigma: Tensor, sigma_data: float, share: Tensor, at_end: Tensor) -> Tensor:
    """Return the level u [B] below sigma: 0 if at_end, else between 0 and sigma.

    Args:
        sigma: t, [B].
        sigma_data: The standard deviation of the data, which sets the scale of levels.
        share: The share of the angle arctan(sigma / sigma_data), in [0, 1], [B].
        at_end: True for items whose u is 0, [B].
    """
    angle = torch.atan(sigma / sigma_data) * share.to(sigma)
    return torch.where(at_end, torch.zeros_like(sigma), sigma_data * torch.tan(angle))


def consistency_loss(
    flow_map: FlowMap,
    data: Tensor,
    noise: Tensor,
    sigma: Tensor,
    middle: Tensor,
    sigma_next: Tensor,
    guided_data: Tensor | None = None,
    **cond: Tensor,
) -> Tensor:
    """Return the loss [B] of (1) and (3).

    Args:
        flow_map: The map that is trained, which is its own target.
        data: Clean data, [B, ...]; x_t = data + t noise.
        noise: [B, ...].
        sigma: t, [B].
        middle: r in [sigma_next, t), [B]. At r = sigma_next the loss is that of a denoiser.
        sigma_next: u, [B].
        guided_data: The data moved by guidance, [B, ...]: x_r is then
            (r / t) x_t + (1 - r / t) guided_data. By default the data.
        **cond: The conditions.
    """
    x = data + append_dims(sigma, data.ndim) * noise
    end = data if guided_data is None else guided_data
    with torch.random.fork_rng(_devices(data)), torch.no_grad():
        near = torch.lerp(end, x, append_dims(middle / sigma, x.ndim))
        level = torch.where(middle > 0, middle, sigma)  # (at 0 the result is not used)
        target = flow_map(near, level, sigma_next, **cond)
        target = torch.where(append_dims(middle > sigma_next, x.ndim), target, near)
    error = flow_map(x, sigma, sigma_next, **cond) - target
    return pseudo_huber(error, (1 - middle / sigma) * flow_map.scalings(sigma)[1].abs())


def pseudo_huber(error: Tensor, scale: Tensor) -> Tensor:
    """Return the pseudo-Huber distance sqrt(mean(e^2) + c^2) - c of e = error / scale, [B].

    Args:
        error: [B, ...].
        scale: [B].
    """
    return (mean_per_item((error / append_dims(scale, error.ndim)) ** 2) + HUBER**2).sqrt() - HUBER


def _devices(x: Tensor) -> list[int]:
    """Return the devices besides the CPU whose generators a network at x may draw from."""
    return [] if x.device.type != 'cuda' else [x.get_device()]
