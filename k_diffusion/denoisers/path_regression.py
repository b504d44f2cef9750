"""Train a flow map by regression on the paths of a teacher, from one point to a later one.

(1)  f(x_t) against the end of the path through x_t, for the consistency function
(2)  the same for a flow map: M(x_t, t, s) against the point of the path at s

The error is divided by (1 - s / t) c_out(t), which makes it that of the output of the network. In
place of the distance of the paper (LPIPS, or the squared error) it is the pseudo-Huber distance.

References:
    Hu et al. (2025), arXiv:2509.24526, section 3. The numbers of the equations are those of this
    file.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .consistency_tuning import pseudo_huber
from .flow_map import FlowMap


def choose_points(
    levels: Tensor,
    sigma_data: float,
    first: Tensor,
    second: Tensor,
    at_start: Tensor,
    at_end: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return two points i < j of a path of n steps, whole numbers [B] from 0 (the noise) to n.

    A point counts as much as the angle arctan(sigma / sigma_data) to the next one, so that the
    many high levels of a solver, where the data change little, do not take most of the items.

    Args:
        levels: The levels of the path, [n + 1], falling to 0.
        sigma_data: The standard deviation of the data.
        first: In [0, 1), [B]: i is the last point before this share of the angle of the path.
        second: In [0, 1), [B]: j is the first point after this share of the angle from i to 0.
        at_start: Where i is 0, [B].
        at_end: Where j is n, [B].
    """
    n = len(levels) - 1
    angle = torch.atan(levels.double() / sigma_data)
    distance = angle[0] - angle
    i = torch.searchsorted(distance, first.double() * angle[0], right=True) - 1
    i = torch.where(at_start, 0, i.clamp(0, n - 1))
    j = torch.searchsorted(distance, distance[i] + second.double() * angle[i], right=True)
    j = torch.where(at_end, n, torch.maximum(j.clamp(max=n), i + 1))
    return i, j


def path_loss(
    flow_map: FlowMap,
    x: Tensor,
    sigma: Tensor,
    x_next: Tensor,
    sigma_next: Tensor,
    **cond: Tensor,
) -> Tensor:
    """Return the loss [B] of (2), which is (1) at s = 0.

    Args:
        flow_map: The map that is trained.
        x: Points of paths, [B, ...].
        sigma: Their levels t, [B].
        x_next: Later points of the same paths, [B, ...].
        sigma_next: Their levels s < t, [B].
        **cond: The conditions of the paths.
    """
    error = flow_map(x, sigma, sigma_next, **cond) - x_next
    return pseudo_huber(error, (1 - sigma_next / sigma) * flow_map.scalings(sigma)[1].abs())
