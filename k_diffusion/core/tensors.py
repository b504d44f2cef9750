"""Shapes and per-item reductions."""

from __future__ import annotations

from torch import Tensor


def append_dims(x: Tensor, target_dims: int) -> Tensor:
    """Append axes of length 1 to x, so that [B] broadcasts against [B, C, H, W].

    Args:
        x: The tensor.
        target_dims: Number of dimensions of the result.

    Raises:
        ValueError: If x has more dimensions.
    """
    missing = target_dims - x.ndim
    if missing < 0:
        raise ValueError(
            f'target_dims must be at least the number of dimensions of x, {x.ndim}; got '
            f'{target_dims}'
        )
    return x[(...,) + (None,) * missing]


def mean_per_item(x: Tensor) -> Tensor:
    """Return the mean over everything but the batch, [B, ...] -> [B].

    Args:
        x: A batch.
    """
    return x.flatten(1).mean(1)


def sum_per_item(x: Tensor) -> Tensor:
    """Return the sum over everything but the batch, [B, ...] -> [B].

    Args:
        x: A batch.
    """
    return x.flatten(1).sum(1)
