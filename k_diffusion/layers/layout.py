"""The layout of images in memory: networks here compute in channels_last, in which a CPU convolves faster."""
from __future__ import annotations

from torch import Tensor

from ..core.modules import forward_mode


def channels_last(x: Tensor) -> Tensor:
    """x [B, C, H, W] with the channels of a pixel side by side in memory.

    (As it is under forward-mode differentiation, in which torch's group normalisation takes the plain layout alone.)
    """
    return x if forward_mode() else x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def is_channels_last(x: Tensor) -> bool:
    """Whether the channels of a pixel are neighbours. (Asked by stride: within vmap torch answers no other question.)"""
    return x.stride(1) == 1
