"""Precision, recall, density and coverage by nearest neighbours in feature space."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .arrays import as_pair, whole_number


def precision_recall(x: Any, y: Any, k: int = 3, chunk: int = 1024) -> tuple[float, float]:
    """Return precision and recall of samples x against data y.

    Precision is the share of x within the ball of some y, which reaches to the k-th nearest other
    y. Recall is the same with x and y exchanged.

    Args:
        x: Features of samples, [N, D].
        y: Features of data, [M, D].
        k: Number of neighbours.
        chunk: Number of rows computed at once.

    References:
        Kynkäänniemi et al. (2019), arXiv:1904.06991.
    """
    x, y = _check_inputs(x, y, k, chunk)
    radii_x, radii_y = kth_distance(x, k, chunk), kth_distance(y, k, chunk)
    precision = [(torch.cdist(part, y) <= radii_y).any(1) for part in x.split(chunk)]
    recall = [(torch.cdist(part, x) <= radii_x).any(1) for part in y.split(chunk)]
    return _share(precision), _share(recall)


def density_coverage(x: Any, y: Any, k: int = 5, chunk: int = 1024) -> tuple[float, float]:
    """Return density and coverage of samples x against data y.

    Density is the number of balls of y that hold a sample, divided by k (about 1 for samples of the
    data's distribution). Coverage is the share of y whose ball holds a sample. A single outlier
    changes neither by much.

    Args:
        x: Features of samples, [N, D].
        y: Features of data, [M, D].
        k: Number of neighbours.
        chunk: Number of rows computed at once.

    References:
        Naeem et al. (2020), arXiv:2002.09797.
    """
    x, y = _check_inputs(x, y, k, chunk)
    radii = kth_distance(y, k, chunk)
    inside, covered = x.new_zeros(()), torch.zeros(len(y), dtype=torch.bool, device=y.device)
    for part in x.split(chunk):
        within = torch.cdist(part, y) < radii
        inside += within.sum()
        covered |= within.any(0)
    return inside.item() / (k * len(x)), _share([covered])


def kth_distance(x: Tensor, k: int, chunk: int = 1024) -> Tensor:
    """Return the distance [N] of each row to its k-th nearest other row.

    Args:
        x: Features [N, D].
        k: The neighbour.
        chunk: Number of rows computed at once.
    """
    radii = []
    for start in range(0, len(x), chunk):
        distances = torch.cdist(x[start : start + chunk], x)
        own = torch.arange(len(distances), device=x.device)
        distances[own, start + own] = torch.inf
        radii.append(distances.kthvalue(k, dim=1).values)
    return torch.cat(radii)


def _check_inputs(x: Any, y: Any, k: int, chunk: int) -> tuple[Tensor, Tensor]:
    whole_number(k, 'k')
    whole_number(chunk, 'chunk')
    return as_pair(x, y, least=k + 1)


def _share(flags: list[Tensor]) -> float:
    return torch.cat(flags).double().mean().item()
