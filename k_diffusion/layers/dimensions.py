"""Layers by the number of spatial dimensions: 1 (sequences), 2 (pictures) or 3 (volumes)."""

from __future__ import annotations

from typing import Any

from torch import nn

_CONVOLUTIONS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_DROPOUTS: dict[int, Any] = {1: nn.Dropout1d, 2: nn.Dropout2d, 3: nn.Dropout3d}


def conv(dims: int, c_in: int, c_out: int, kernel_size: int, **options: Any) -> nn.Module:
    """Return a convolution over `dims` axes, with the options of torch's."""
    layer: nn.Module = _CONVOLUTIONS[dims](c_in, c_out, kernel_size, **options)
    return layer


def channel_dropout(dims: int, rate: float) -> nn.Module:
    """Return a dropout of whole channels of [B, C, ...] with `dims` spatial axes, in place."""
    layer: nn.Module = _DROPOUTS[dims](rate, inplace=True)
    return layer
