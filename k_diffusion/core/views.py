"""Tensors as images for display: sequences as curves, volumes as slices, fields by channels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

#: Height and width of a drawn sequence, and the least side to which small volumes and fields are
#: enlarged.
PLOT, LEAST = (64, 128), 32
_COLOURS = torch.tensor([[0.12, 0.44, 0.71], [0.82, 0.35, 0.06], [0.16, 0.54, 0.24]]) * 2 - 1


def show_tensors(x: Tensor) -> Tensor:
    """Return images [N, 1 or 3, H, W] in [-1, 1] of tensors with up to 3 spatial axes.

    The images fit `make_grid`. The first three channels are shown, scaled together so that their
    values fill the range. A sequence (or a vector [N, D]) becomes a curve for each channel; a
    volume becomes its middle slices across each axis, side by side.

    Args:
        x: Tensors [N, C, ...].

    Raises:
        ValueError: If the tensors have more axes.
    """
    x = x.detach().float().cpu().nan_to_num(0.0, 0.0, 0.0)
    x = x[:, None] if x.ndim == 2 else x[:, :3]
    if not 3 <= x.ndim <= 5:
        raise ValueError(
            f'x must be [N, C, ...] with 0 to 3 spatial axes; got the shape {list(x.shape)}'
        )
    low, high = x.min(), x.max()
    x = (x - low) / (high - low).clamp_min(1e-12) * 2 - 1
    if x.ndim == 3:
        return draw_curves(x)
    if x.shape[1] == 2:
        x = torch.cat([x, torch.full_like(x[:, :1], -1)], 1)
    return _enlarge(x if x.ndim == 4 else _middle_slices(x))


def draw_curves(x: Tensor) -> Tensor:
    """Draw sequences [N, C, L] in [-1, 1] as images [N, 3, H, W], each channel a line.

    A column is lit between its least and largest value.

    Args:
        x: The sequences.
    """
    height, width = PLOT
    points = max(x.shape[2], 4 * width)
    x = (
        F.interpolate(x, size=points, mode='linear', align_corners=True)
        if x.shape[2] > 1
        else x.expand(-1, -1, points)
    )
    high, low = F.adaptive_max_pool1d(x, width), -F.adaptive_max_pool1d(-x, width)
    # A column extends to the one before, so that steep lines have no gaps.
    high, low = (
        torch.cat([high[..., :1], torch.maximum(high[..., 1:], low[..., :-1])], -1),
        torch.cat([low[..., :1], torch.minimum(low[..., 1:], high[..., :-1])], -1),
    )
    rows = 1 - (2 * torch.arange(height, dtype=x.dtype)[:, None] + 1) / height
    lit = (rows <= high[:, :, None] + 1 / height) & (rows >= low[:, :, None] - 1 / height)
    image = x.new_ones(len(x), 3, height, width)
    for channel in reversed(range(x.shape[1])):
        image = torch.where(lit[:, channel, None], _COLOURS[channel].view(3, 1, 1).to(x), image)
    return image


def _middle_slices(x: Tensor) -> Tensor:
    """Return the slices through the middle of volumes [N, C, D, H, W], across each axis."""
    slices = [x.select(axis, x.shape[axis] // 2) for axis in (2, 3, 4)]
    height = max(part.shape[2] for part in slices)
    padded = [
        F.pad(part, (0, 1 if i < 2 else 0, 0, height - part.shape[2]), value=-1.0)
        for i, part in enumerate(slices)
    ]
    return torch.cat(padded, 3)


def _enlarge(x: Tensor) -> Tensor:
    """Enlarge images to a height of at least LEAST by repeating pixels."""
    times = -(-LEAST // x.shape[2])
    return x.repeat_interleave(times, 2).repeat_interleave(times, 3)
