"""The layout of feature maps in memory: networks here compute in channels_last, in which a CPU
convolves faster.
"""

from __future__ import annotations

from torch import Tensor

from ..core.modules import forward_mode


def channels_last(x: Tensor) -> Tensor:
    """x [B, C, H, W] with the channels of a pixel side by side in memory.

    (As it is under forward-mode differentiation, in which torch's group normalisation takes the
    plain layout alone. Sequences and volumes stay as they are, too: their convolutions and
    normalisation are faster so.)
    """
    return x if forward_mode() or x.ndim != 4 else x.movedim(1, -1).contiguous().movedim(-1, 1)


def is_channels_last(x: Tensor) -> bool:
    """Whether the channels of a pixel are neighbours.

    (Asked by stride: within vmap torch answers no other question.)
    """
    return x.stride(1) == 1
