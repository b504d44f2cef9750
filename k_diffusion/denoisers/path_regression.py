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
    n: int, first: Tensor, second: Tensor, at_start: Tensor, at_end: Tensor
) -> tuple[Tensor, Tensor]:
    """Return two points i < j of a path of n steps, whole numbers [B] from 0 (the noise) to n.

    Args:
        n: The number of steps.
        first: In [0, 1), [B]: i is uniform over 0 ... n - 1.
        second: In [0, 1), [B]: j is uniform over i + 1 ... n.
        at_start: Where i is 0, [B].
        at_end: Where j is n, [B].
    """
    i = torch.where(at_start, 0, (first * n).long())
    j = torch.where(at_end, n, i + 1 + (second * (n - i)).long())
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
