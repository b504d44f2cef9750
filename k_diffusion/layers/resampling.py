"""Halving and doubling an image's sides with a fixed smooth kernel, each channel by itself.

A resampling along one axis is linear, so it is done as what it is, a small matrix. On a CPU (channels_last, forward and backward)
that takes 4 to 40 times less than a depthwise convolution in bf16, and in float32 0.8 to 5 times less up to 28 pixels a side; at 64
it takes twice as long, which is still a few hundredths of the network's time. Whole networks: benchmarks/networks.py.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.registry import Registry
from .layout import is_channels_last

KERNELS: Registry[tuple[float, ...]] = Registry('resampling kernel')  # the left half of the taps; the right mirrors it
KERNELS.register('linear')((1 / 8, 3 / 8))
KERNELS.register('cubic')((-0.01171875, -0.03515625, 0.11328125, 0.43359375))
KERNELS.register('lanczos3')((0.003689131001010537, 0.015056144446134567, -0.03399861603975296,
                              -0.066637322306633, 0.13550527393817902, 0.44638532400131226))


def taps(kernel: str) -> Tensor:
    """The 1-D kernel of that name; its taps sum to 1."""
    half = KERNELS[kernel]
    return torch.tensor([*half, *reversed(half)])


def factor(kernel: Tensor) -> Tensor:
    """The 1-D kernel whose outer product with itself a 2-D one is."""
    return kernel.sum(0) / kernel.sum().sqrt()


class Downsample2d(nn.Module):
    """[B, C, H, W] -> [B, C, H / 2, W / 2] through the kernel 'linear', 'cubic' or 'lanczos3'."""

    kernel: Tensor

    def __init__(self, kernel: str = 'linear', pad_mode: str = 'reflect') -> None:
        super().__init__()
        self.pad_mode = pad_mode
        self.register_buffer('kernel', taps(kernel).outer(taps(kernel)))

    def along(self, x: Tensor) -> Tensor:
        """[N, 1, n] -> [N, 1, n / 2]."""
        pad = len(self.kernel) // 2 - 1
        return F.conv1d(F.pad(x, (pad, pad), self.pad_mode), factor(self.kernel)[None, None], stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return apply_separable(x, *matrices(self, x))


class Upsample2d(nn.Module):
    """[B, C, H, W] -> [B, C, 2 H, 2 W] through the kernel 'linear', 'cubic' or 'lanczos3'."""

    kernel: Tensor

    def __init__(self, kernel: str = 'linear', pad_mode: str = 'reflect') -> None:
        super().__init__()
        self.pad_mode = pad_mode
        self.register_buffer('kernel', (2 * taps(kernel)).outer(2 * taps(kernel)))

    def along(self, x: Tensor) -> Tensor:
        """[N, 1, n] -> [N, 1, 2 n]."""
        reach = len(self.kernel) // 2 - 1
        pad = (reach + 1) // 2
        kernel = factor(self.kernel)[None, None]
        return F.conv_transpose1d(F.pad(x, (pad, pad), self.pad_mode), kernel, stride=2, padding=2 * reach + 1)

    def forward(self, x: Tensor) -> Tensor:
        return apply_separable(x, *matrices(self, x))


def matrices(module: Downsample2d | Upsample2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """What a resampling does along H and along W, as matrices [H', H] and [W', W]: its answers to the unit vectors."""
    def matrix(n: int) -> Tensor:
        units = torch.eye(n, dtype=module.kernel.dtype, device=module.kernel.device)
        return module.along(units[:, None])[:, 0].mT.to(x.dtype)

    h, w = x.shape[2:]
    rows = matrix(h)
    return rows, rows if h == w else matrix(w)


def apply_separable(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """x [B, C, H, W] -> rows x columns^T [B, C, H', W'] in every channel, in x's memory format."""
    if not is_channels_last(x):
        return rows @ (x @ columns.mT)
    x = x.permute(0, 2, 3, 1)
    x = columns @ (rows @ x.flatten(2)).unflatten(2, x.shape[2:])
    return x.permute(0, 3, 1, 2)
