"""Shapes and per-item reductions."""

from __future__ import annotations

from torch import Tensor


def append_dims(x: Tensor, target_dims: int) -> Tensor:
    """x with trailing axes of length 1, so that [B] broadcasts against [B, C, H, W]."""
    missing = target_dims - x.ndim
    if missing < 0:
        raise ValueError(
            f'append_dims got a tensor of {x.ndim} dimensions and target_dims={target_dims}; '
            f'target_dims must be at least {x.ndim}'
        )
    return x[(...,) + (None,) * missing]


def mean_per_item(x: Tensor) -> Tensor:
    """[B, ...] -> [B], the mean over everything but the batch."""
    return x.flatten(1).mean(1)


def sum_per_item(x: Tensor) -> Tensor:
    """[B, ...] -> [B], the sum over everything but the batch."""
    return x.flatten(1).sum(1)
