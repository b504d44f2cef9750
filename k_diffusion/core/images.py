"""Tensors to pictures and back, and grids of them."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .extras import require
from .files import whole_file

if TYPE_CHECKING:
    from PIL.Image import Image


def to_bytes(x: Tensor) -> Tensor:
    """[-1, 1] -> uint8 0..255, rounded to the nearest (NaN becomes black)."""
    return x.detach().float().nan_to_num(-1).clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)


def from_bytes(x: Tensor) -> Tensor:
    """uint8 0..255 -> float32 in [-1, 1]."""
    return x.float().div_(127.5).sub_(1)


def round_to_bytes(x: Tensor) -> Tensor:
    """Round pictures in [-1, 1] to the 256 levels of a file's, as they come back from it (float32);
    NaN is kept."""
    return torch.where(x.isnan(), x.float(), from_bytes(to_bytes(x)))


def from_pil_image(x: Image) -> Tensor:
    """A picture as a float32 tensor [C, H, W] in [-1, 1]."""
    return from_bytes(pil_bytes(x))


def pil_bytes(x: Image) -> Tensor:
    """A picture of 8-bit channels as a uint8 tensor [C, H, W]."""
    raw = torch.frombuffer(bytearray(x.tobytes()), dtype=torch.uint8)
    return raw.view(x.height, x.width, len(x.getbands())).permute(2, 0, 1)


def raw_bytes(x: Tensor) -> bytearray:
    """The elements of a uint8 tensor, last axis fastest (without numpy; `bytes(storage)` would
    go byte by byte).
    """
    buffer = bytearray(x.numel())
    if buffer:
        torch.frombuffer(buffer, dtype=torch.uint8).view(x.shape).copy_(x)
    return buffer


def to_pil_image(x: Tensor) -> Image:
    """A tensor [C, H, W] or [1, C, H, W] in [-1, 1] as a picture: 1 channel L, 3 channels RGB, 4
    channels RGBA.
    """
    if x.ndim == 4 and x.shape[0] == 1:
        x = x[0]
    modes = {1: 'L', 2: 'LA', 3: 'RGB', 4: 'RGBA'}
    if x.ndim != 3 or x.shape[0] not in modes:
        raise ValueError(
            f'to_pil_image got a tensor of shape {list(x.shape)}; it takes [C, H, W] with 1 to 4 '
            'channels'
        )
    return _from_pil_bytes(to_bytes(x).cpu(), modes[x.shape[0]])


def _from_pil_bytes(x: Tensor, mode: str) -> Image:
    pil = require('PIL.Image', 'train', 'making pictures')
    return pil.frombytes(mode, (x.shape[2], x.shape[1]), raw_bytes(x.permute(1, 2, 0)))


def save_image(path: str | os.PathLike[str], x: Tensor) -> None:
    """Writes a tensor [C, H, W] in [-1, 1] as a picture, whole or not at all; the file's ending
    tells the format.
    """
    with whole_file(path, sync=False) as temporary:
        to_pil_image(x).save(temporary)


def make_grid(
    images: Tensor | Sequence[Tensor],
    columns: int | None = None,
    padding: int = 0,
    fill: float = -1.0,
) -> Tensor:
    """Images [N, C, H, W] side by side, row by row, as one [C, H', W']; ceil(sqrt(N)) columns
    where none are given.
    """
    if len(images) == 0:
        raise ValueError('make_grid got no images; it needs at least one')
    images = images if isinstance(images, Tensor) else torch.stack(list(images))
    n, c, h, w = images.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    grid = images.new_full(
        (c, rows * (h + padding) - padding, columns * (w + padding) - padding), fill
    )
    for i, image in enumerate(images):
        y, x = i // columns * (h + padding), i % columns * (w + padding)
        grid[:, y : y + h, x : x + w] = image
    return grid
