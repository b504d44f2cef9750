"""Layers by the number of spatial dimensions: 1 (sequences), 2 (images) or 3 (volumes)."""

from __future__ import annotations

from typing import Any

from torch import nn

_CONVOLUTIONS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_DROPOUTS: dict[int, Any] = {1: nn.Dropout1d, 2: nn.Dropout2d, 3: nn.Dropout3d}


def conv(dims: int, c_in: int, c_out: int, kernel_size: int, **options: Any) -> nn.Module:
    """Return a convolution over `dims` axes.

    Args:
        dims: Number of spatial axes.
        c_in: Number of input channels.
        c_out: Number of output channels.
        kernel_size: Size of the kernel.
        **options: Options of torch's convolution.
    """
    layer: nn.Module = _CONVOLUTIONS[dims](c_in, c_out, kernel_size, **options)
    return layer


def channel_dropout(dims: int, rate: float) -> nn.Module:
    """Return an in-place dropout of whole channels of [B, C, ...].

    Args:
        dims: Number of spatial axes.
        rate: Probability of dropping a channel.
    """
    layer: nn.Module = _DROPOUTS[dims](rate, inplace=True)
    return layer
