"""Halving and doubling the sides of a feature map with a fixed smooth kernel, each channel by
itself.

A resampling along one axis is linear, so it is done as what it is, a small matrix. On a CPU
(channels_last, forward and backward) that takes 4 to 40 times less than a depthwise convolution in
bf16, and in float32 0.8 to 5 times less up to 28 pixels a side; at 64 it takes twice as long, which
is still a few hundredths of the network's time. Whole networks: benchmarks/networks.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.registry import Registry
from .layout import is_channels_last

KERNELS: Registry[tuple[float, ...]] = Registry(
    'resampling kernel'
)  # the left half of the taps; the right mirrors it
KERNELS.register('linear')((1 / 8, 3 / 8))
KERNELS.register('cubic')((-0.01171875, -0.03515625, 0.11328125, 0.43359375))
KERNELS.register('lanczos3')(
    (
        0.003689131001010537,
        0.015056144446134567,
        -0.03399861603975296,
        -0.066637322306633,
        0.13550527393817902,
        0.44638532400131226,
    )
)


def taps(kernel: str) -> Tensor:
    """The 1-D kernel of that name; its taps sum to 1."""
    half = KERNELS[kernel]
    return torch.tensor([*half, *reversed(half)])


def outer(kernel: Tensor, dims: int) -> Tensor:
    """The kernel over `dims` axes whose value is the product of a 1-D one's along each."""
    return reduce(lambda product, taps: product[..., None] * taps, [kernel] * (dims - 1), kernel)


def factor(kernel: Tensor) -> Tensor:
    """The 1-D kernel whose outer product with itself a kernel over several axes is."""
    others = kernel.ndim - 1
    return (
        kernel.flatten(0, -2).sum(0) / kernel.sum() ** (others / kernel.ndim) if others else kernel
    )


class Downsample(nn.Module):
    """[B, C, ...] -> the same with half the sides, over `dims` axes, through the kernel
    'linear', 'cubic' or 'lanczos3'.
    """

    kernel: Tensor

    def __init__(self, dims: int, kernel: str = 'linear', pad_mode: str = 'reflect') -> None:
        super().__init__()
        self.pad_mode = pad_mode
        self.register_buffer('kernel', outer(taps(kernel), dims))

    def along(self, x: Tensor) -> Tensor:
        """[N, 1, n] -> [N, 1, n / 2]."""
        pad = len(self.kernel) // 2 - 1
        return F.conv1d(
            F.pad(x, (pad, pad), self.pad_mode), factor(self.kernel)[None, None], stride=2
        )

    def forward(self, x: Tensor) -> Tensor:
        return apply_separable(x, matrices(self, x))


class Downsample2d(Downsample):
    """[B, C, H, W] -> [B, C, H / 2, W / 2]."""

    def __init__(self, kernel: str = 'linear', pad_mode: str = 'reflect') -> None:
        super().__init__(2, kernel, pad_mode)


class Upsample(nn.Module):
    """[B, C, ...] -> the same with twice the sides, over `dims` axes, through the kernel
    'linear', 'cubic' or 'lanczos3'.
    """

    kernel: Tensor

    def __init__(self, dims: int, kernel: str = 'linear', pad_mode: str = 'reflect') -> None:
        super().__init__()
        self.pad_mode = pad_mode
        self.register_buffer('kernel', outer(2 * taps(kernel), dims))

    def along(self, x: Tensor) -> Tensor:
        """[N, 1, n] -> [N, 1, 2 n]."""
        reach = len(self.kernel) // 2 - 1
        pad = (reach + 1) // 2
        kernel = factor(self.kernel)[None, None]
        return F.conv_transpose1d(
            F.pad(x, (pad, pad), self.pad_mode), kernel, stride=2, padding=2 * reach + 1
        )

    def forward(self, x: Tensor) -> Tensor:
        return apply_separable(x, matrices(self, x))


class Upsample2d(Upsample):
    """[B, C, H, W] -> [B, C, 2 H, 2 W]."""

    def __init__(self, kernel: str = 'linear', pad_mode: str = 'reflect') -> None:
        super().__init__(2, kernel, pad_mode)


def matrices(module: Downsample | Upsample, x: Tensor) -> list[Tensor]:
    """Return what a resampling does along each spatial axis of x, as matrices [n', n]: its
    answers to the unit vectors.
    """
    made: dict[int, Tensor] = {}
    for n in x.shape[2:]:
        if n not in made:
            units = torch.eye(n, dtype=module.kernel.dtype, device=module.kernel.device)
            made[n] = module.along(units[:, None])[:, 0].mT.to(x.dtype)
    return [made[n] for n in x.shape[2:]]


def apply_separable(x: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """x [B, C, ...] with a matrix [n', n] applied along each spatial axis, in x's memory format."""
    if not is_channels_last(x):
        x = x @ matrices[-1].mT
        for axis in reversed(range(2, x.ndim - 1)):
            x = _apply(matrices[axis - 2], x, axis)
        return x
    x = x.movedim(1, -1)
    for axis, matrix in enumerate(matrices, 1):
        x = _apply(matrix, x, axis)
    return x.movedim(-1, 1)


def _apply(matrix: Tensor, x: Tensor, axis: int) -> Tensor:
    """A matrix along an axis of x that is not the last one."""
    return (matrix @ x.flatten(axis + 1)).unflatten(axis + 1, x.shape[axis + 1 :])
