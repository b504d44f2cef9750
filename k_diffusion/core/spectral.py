"""The discrete cosine transform, and weights over its frequencies for multi-scale losses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor


@lru_cache
@torch.inference_mode(False)  # cached tensors must be usable in training
def dct_matrix(n: int, dtype: torch.dtype = torch.float32, device: Any = None) -> Tensor:
    """Return the orthonormal DCT-II of length n as a matrix [n, n]; row k is the k-th cosine.

    Args:
        n: The length.
        dtype: The dtype of the result.
        device: Its device.
    """
    k, i = torch.arange(n, dtype=torch.float64)[:, None], torch.arange(n, dtype=torch.float64)[None]
    matrix = torch.cos(math.pi / n * (i + 0.5) * k) * math.sqrt(2 / n)
    matrix[0] /= math.sqrt(2)
    return matrix.to(device, dtype)


def dct(x: Tensor) -> Tensor:
    """Apply the orthonormal DCT-II over all axes after batch and channel.

    Args:
        x: [B, C, N], [B, C, H, W] or [B, C, D, H, W].

    Raises:
        ValueError: If x has another number of dimensions.
    """
    if not 3 <= x.ndim <= 5:
        raise ValueError(
            f'x must be [B, C, N], [B, C, H, W] or [B, C, D, H, W]; got {x.ndim} dimensions'
        )
    for axis in range(2, x.ndim):
        x = (x.movedim(axis, -1) @ dct_matrix(x.shape[axis], x.dtype, x.device).mT).movedim(
            -1, axis
        )
    return x


def inverse_dct(x: Tensor) -> Tensor:
    """Invert `dct`.

    Args:
        x: [B, C, N], [B, C, H, W] or [B, C, D, H, W].

    Raises:
        ValueError: If x has another number of dimensions.
    """
    if not 3 <= x.ndim <= 5:
        raise ValueError(
            f'x must be [B, C, N], [B, C, H, W] or [B, C, D, H, W]; got {x.ndim} dimensions'
        )
    for axis in range(2, x.ndim):
        x = (x.movedim(axis, -1) @ dct_matrix(x.shape[axis], x.dtype, x.device)).movedim(-1, axis)
    return x


@lru_cache
@torch.inference_mode(False)  # cached tensors must be usable in training
def freq_weight_1d(
    n: int, scales: int = 0, dtype: torch.dtype | None = None, device: Any = None
) -> Tensor:
    """Return -log2 of n frequencies from 0.5 / n to 0.5, at most `scales` if scales >= 1.

    Args:
        n: Number of frequencies.
        scales: Upper bound.
        dtype: The dtype of the result.
        device: Its device.
    """
    weight = -torch.log2(torch.linspace(0.5 / n, 0.5, n, dtype=dtype, device=device))
    return weight.clamp_max(scales) if scales >= 1 else weight


@lru_cache
@torch.inference_mode(False)  # cached tensors must be usable in training
def freq_weight_nd(
    shape: Sequence[int], scales: int = 0, dtype: torch.dtype | None = None, device: Any = None
) -> Tensor:
    """Return the elementwise minimum of the weights of the axes, of shape [*shape].

    Args:
        shape: Number of frequencies of each axis.
        scales: Upper bound.
        dtype: The dtype of the result.
        device: Its device.
    """
    weights = [freq_weight_1d(n, scales, dtype, device) for n in shape]
    grids = torch.meshgrid(*weights, indexing='ij')
    return torch.stack(grids).amin(0)
