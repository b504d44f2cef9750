"""Train a flow map without a teacher, by the identity of mean flows.

(1)  u(z, t, r) = v(z, t) - (t - r) du/dt
(2)  the adaptive weight 1 / (|e|^2 + c)^p of a squared error

(3)  V = u + (t - r) sg(du/dt) against the velocity of the data, n - x_0
(4)  du/dt along the predicted velocity u(z, t, t)


z = x / (sigma_data (1 + s)) and t = s / (1 + s), s = sigma / sigma_data, are the paper's state and
time: z = (1 - t) x_0 + t n for data of standard deviation 1. There the velocity of a flow map
M = q x + (1 - q) G is u = n - x_0 with x_0 = G / sigma_data and n = (x - G) / sigma, for any end.

References:
    Geng et al. (2025), arXiv:2505.13447 (1, 2); Geng et al. (2025), arXiv:2512.02012 (3, 4). The
    numbers of the equations are those of this file.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import jvp

from ..core.tensors import append_dims, mean_per_item
from .flow_map import FlowMap

#: c and p of (2).
FLOOR, POWER = 1e-3, 0.75


def velocity(flow_map: FlowMap, z: Tensor, t: Tensor, sigma_next: Tensor, **cond: Tensor) -> Tensor:
    """Return the mean velocity u(z, t, r) [B, ...].

    Args:
        flow_map: The map.
        z: States, [B, ...].
        t: Times in (0, 1), [B].
        sigma_next: The level of r, [B].
        **cond: The conditions.
    """
    s, data = t / (1 - t), flow_map.sigma_data
    wide = append_dims(s, z.ndim)
    x = z * (1 + wide) * data
    mean = flow_map.mean_estimate(x, s * data, sigma_next, **cond)
    return (x - (1 + wide) * mean) / (wide * data)


def mean_flow_loss(
    flow_map: FlowMap,
    tangent_map: FlowMap,
    data: Tensor,
    noise: Tensor,
    sigma: Tensor,
    sigma_next: Tensor,
    guided_data: Tensor | None = None,
    **cond: Tensor,
) -> Tensor:
    """Return the loss [B] of (3), weighted by (2).

    Args:
        flow_map: The map that is trained.
        tangent_map: The same network without wrappers of parallel training, of which du/dt is
            taken; no gradient flows through it.
        data: Clean data, [B, ...].
        noise: [B, ...].
        sigma: The level of t, [B].
        sigma_next: The level of r, [B].
        guided_data: The data moved by guidance, [B, ...], for the velocity that is learned; by
            default the data.
        **cond: The conditions.
    """
    scale = flow_map.sigma_data
    s, second = sigma / scale, sigma_next / scale
    t, r = s / (1 + s), second / (1 + second)
    z = torch.lerp(data / scale, noise, append_dims(t, data.ndim))
    with torch.random.fork_rng([] if not z.is_cuda else [z.get_device()]), torch.no_grad():
        ahead = velocity(tangent_map, z, t, sigma, **cond)

    def along(state: Tensor, time: Tensor) -> Tensor:
        return velocity(tangent_map, state, time, sigma_next, **cond)

    with torch.random.fork_rng([] if not z.is_cuda else [z.get_device()]), torch.no_grad():
        slope: Tensor = jvp(along, (z, t), (ahead, torch.ones_like(t)))[1]
    whole = velocity(flow_map, z, t, sigma_next, **cond) + append_dims(t - r, z.ndim) * slope
    target = noise - data / scale
    if guided_data is not None:  # the velocity at z to the guided data: n changes with x_0
        wide = append_dims(s, z.ndim)
        target = target - (1 + 1 / wide) * (guided_data - data) / scale
    error = mean_per_item((whole - target) ** 2)
    return error / (error.detach() + FLOOR) ** POWER
