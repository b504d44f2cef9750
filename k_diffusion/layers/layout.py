"""The memory layout of feature maps: channels_last, in which a CPU convolves faster."""

from __future__ import annotations

from torch import Tensor

from ..core.modules import forward_mode


def channels_last(x: Tensor) -> Tensor:
    """Return x [B, C, H, W] with the channels of a pixel adjacent in memory.

    Not in forward-mode differentiation, where torch's group normalisation supports the plain layout
    only. Sequences and volumes are unchanged too, since their convolutions and normalisation are
    faster so.

    Args:
        x: A feature map.
    """
    return x if forward_mode() or x.ndim != 4 else x.movedim(1, -1).contiguous().movedim(-1, 1)


def is_channels_last(x: Tensor) -> bool:
    """Return True if the channels of a pixel are adjacent in memory.

    Args:
        x: A feature map. Its stride is tested, the only query that torch answers within vmap.
    """
    return x.stride(1) == 1
