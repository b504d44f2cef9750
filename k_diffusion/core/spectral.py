"""The discrete cosine transform and weights over its frequencies (multi-scale losses)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor


@lru_cache
@torch.inference_mode(False)  # what is kept must serve training too
def dct_matrix(n: int, dtype: torch.dtype = torch.float32, device: Any = None) -> Tensor:
    """The orthonormal DCT-II of length n as a matrix [n, n]: row k is the k-th cosine."""
    k, i = torch.arange(n, dtype=torch.float64)[:, None], torch.arange(n, dtype=torch.float64)[None]
    matrix = torch.cos(math.pi / n * (i + 0.5) * k) * math.sqrt(2 / n)
    matrix[0] /= math.sqrt(2)
    return matrix.to(device, dtype)


def dct(x: Tensor) -> Tensor:
    """The orthonormal DCT-II over all axes behind batch and channel: [B, C, N], [B, C, H, W] or
    [B, C, D, H, W].
    """
    if not 3 <= x.ndim <= 5:
        raise ValueError(
            f'dct got a tensor of {x.ndim} dimensions; it takes [B, C, N], [B, C, H, W] or [B, C, '
            'D, H, W]'
        )
    for axis in range(2, x.ndim):
        x = (x.movedim(axis, -1) @ dct_matrix(x.shape[axis], x.dtype, x.device).mT).movedim(
            -1, axis
        )
    return x


def inverse_dct(x: Tensor) -> Tensor:
    """What dct was taken of, over the same axes."""
    if not 3 <= x.ndim <= 5:
        raise ValueError(
            f'inverse_dct got a tensor of {x.ndim} dimensions; it takes [B, C, N], [B, C, H, W] '
            'or [B, C, D, H, W]'
        )
    for axis in range(2, x.ndim):
        x = (x.movedim(axis, -1) @ dct_matrix(x.shape[axis], x.dtype, x.device)).movedim(-1, axis)
    return x


@lru_cache
@torch.inference_mode(False)  # what is kept must serve training too
def freq_weight_1d(
    n: int, scales: int = 0, dtype: torch.dtype | None = None, device: Any = None
) -> Tensor:
    """-log2 of the n frequencies from 0.5 / n to 0.5, at most `scales` where scales >= 1."""
    weight = -torch.log2(torch.linspace(0.5 / n, 0.5, n, dtype=dtype, device=device))
    return weight.clamp_max(scales) if scales >= 1 else weight


@lru_cache
@torch.inference_mode(False)  # what is kept must serve training too
def freq_weight_nd(
    shape: Sequence[int], scales: int = 0, dtype: torch.dtype | None = None, device: Any = None
) -> Tensor:
    """The elementwise minimum of the axes' weights, shaped [*shape]."""
    weights = [freq_weight_1d(n, scales, dtype, device) for n in shape]
    grids = torch.meshgrid(*weights, indexing='ij')
    return torch.stack(grids).amin(0)
