"""Conversion between tensors and images, and grids of images."""

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
    """Convert [-1, 1] to uint8 0..255, rounded to the nearest; NaN becomes black.

    Args:
        x: Images of any shape.
    """
    return x.detach().float().nan_to_num(-1).clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)


def from_bytes(x: Tensor) -> Tensor:
    """Convert uint8 0..255 to float32 in [-1, 1].

    Args:
        x: Images of any shape.
    """
    return x.float().div_(127.5).sub_(1)


def round_to_bytes(x: Tensor) -> Tensor:
    """Round images in [-1, 1] to the 256 levels of a file, in float32; NaN is kept.

    Args:
        x: Images of any shape.
    """
    return torch.where(x.isnan(), x.float(), from_bytes(to_bytes(x)))


def from_pil_image(x: Image) -> Tensor:
    """Convert an image to a float32 tensor [C, H, W] in [-1, 1].

    Args:
        x: A PIL image.
    """
    return from_bytes(pil_bytes(x))


def pil_bytes(x: Image) -> Tensor:
    """Convert an image with 8-bit channels to a uint8 tensor [C, H, W].

    Args:
        x: A PIL image.
    """
    raw = torch.frombuffer(bytearray(x.tobytes()), dtype=torch.uint8)
    return raw.view(x.height, x.width, len(x.getbands())).permute(2, 0, 1)


def raw_bytes(x: Tensor) -> bytearray:
    """Return the elements of a uint8 tensor as bytes, the last axis fastest.

    It works without numpy; `bytes(storage)` would copy byte by byte.

    Args:
        x: The tensor.
    """
    buffer = bytearray(x.numel())
    if buffer:
        torch.frombuffer(buffer, dtype=torch.uint8).view(x.shape).copy_(x)
    return buffer


def to_pil_image(x: Tensor) -> Image:
    """Convert a tensor in [-1, 1] to an image: L for 1 channel, RGB for 3, RGBA for 4.

    Args:
        x: [C, H, W] or [1, C, H, W].

    Raises:
        ValueError: If the shape does not fit.
    """
    if x.ndim == 4 and x.shape[0] == 1:
        x = x[0]
    modes = {1: 'L', 2: 'LA', 3: 'RGB', 4: 'RGBA'}
    if x.ndim != 3 or x.shape[0] not in modes:
        raise ValueError(f'x must be [C, H, W] with 1 to 4 channels; got shape {list(x.shape)}')
    return _from_pil_bytes(to_bytes(x).cpu(), modes[x.shape[0]])


def _from_pil_bytes(x: Tensor, mode: str) -> Image:
    pil = require('PIL.Image', 'train', 'making pictures')
    return pil.frombytes(mode, (x.shape[2], x.shape[1]), raw_bytes(x.permute(1, 2, 0)))


def save_image(path: str | os.PathLike[str], x: Tensor) -> None:
    """Write a tensor [C, H, W] in [-1, 1] as an image, whole or not at all.

    Args:
        path: The file; its suffix sets the format.
        x: The image.
    """
    with whole_file(path, sync=False) as temporary:
        to_pil_image(x).save(temporary)


def make_grid(
    images: Tensor | Sequence[Tensor],
    columns: int | None = None,
    padding: int = 0,
    fill: float = -1.0,
) -> Tensor:
    """Arrange images [N, C, H, W] row by row in one image [C, H', W'].

    Args:
        images: The images.
        columns: Number of columns; ceil(sqrt(N)) by default.
        padding: Pixels between images.
        fill: Value between images.

    Raises:
        ValueError: If there are no images.
    """
    if len(images) == 0:
        raise ValueError('images must hold at least one image; got none')
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
