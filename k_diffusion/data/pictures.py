"""Pictures into tensors, by one set of rules.

- Orientation: the EXIF tag is applied.
- Depth: 16-bit greys are scaled (65535 becomes 255), and so are 32-bit integers, taken as 16-bit; floating-point greys are taken as 0..1.
- Transparency: laid over white where 1 or 3 channels are asked for (most icons are drawn for a white page), before resizing, so
  that no colour hidden under transparent pixels bleeds in; kept where 4 are asked for, and then resized premultiplied.
- Colour: palettes, CMYK, YCbCr and the rest become RGB; grey (ITU-R 601) where 1 channel is asked for.
- Size: resized with Pillow's antialiased bicubic filter until the picture just covers the frame, then cropped about its centre.
- Frames: of an animation or a file of many pages, the first.
"""
from __future__ import annotations

import os
from typing import IO, TYPE_CHECKING

import torch
from torch import Tensor

from ..core.extras import require
from ..core.images import pil_bytes, to_pil_image

if TYPE_CHECKING:
    from PIL.Image import Image

#: The endings of picture files, in lower case.
EXTENSIONS = frozenset(('.jpg', '.jpeg', '.png', '.ppm', '.pgm', '.pbm', '.pnm', '.bmp', '.tif', '.tiff', '.webp', '.gif', '.avif'))
#: The most pixels a picture may have, by what its header says: a file of a kilobyte can claim gigabytes.
PIXEL_LIMIT = 2**26
_MODES = {1: 'L', 3: 'RGB', 4: 'RGBA'}


class UnreadablePicture(ValueError):
    """A picture that cannot be decoded, or is not let; the message says why."""


def load_picture(source: str | os.PathLike[str] | IO[bytes], size: tuple[int, int], channels: int = 3,
                 pixel_limit: int = PIXEL_LIMIT) -> Tensor:
    """A picture file as uint8 [C, H, W] of the size (h, w); channels: 1 (grey), 3 (RGB) or 4 (RGBA)."""
    pil = require('PIL.Image', 'train', 'reading pictures')
    check_frame(size, channels)
    try:
        with pil.open(source) as picture:
            return picture_bytes(picture, size, channels, pixel_limit)
    except (UnreadablePicture, MemoryError):
        raise
    except Exception as error:  # a damaged file makes decoders raise almost anything
        raise UnreadablePicture(f'{type(error).__name__}: {error}' if not isinstance(error, OSError) else str(error)) from error


def picture_bytes(picture: Image, size: tuple[int, int], channels: int = 3, pixel_limit: int = PIXEL_LIMIT) -> Tensor:
    """A Pillow picture, decoded or not yet, as uint8 [C, H, W] of the size (h, w)."""
    operations = require('PIL.ImageOps', 'train', 'reading pictures')
    _check_pixels(picture.width, picture.height, pixel_limit)
    return pil_bytes(_framed(_in_mode(operations.exif_transpose(picture), _MODES[channels]), size, pixel_limit))


def check_frame(size: tuple[int, int], channels: int) -> None:
    """Refuses a size or a number of channels that no picture can have."""
    if channels not in _MODES:
        raise ValueError(f'{channels} channels are asked for; pictures have 1 (grey), 3 (RGB) or 4 (RGB and alpha)')
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f'the size {list(size)} is asked for; it must be [height, width], each at least 1')


def _check_pixels(width: int, height: int, limit: int) -> None:
    if width * height > limit:
        raise UnreadablePicture(f'{width} x {height} is more than {limit} pixels')


def _in_mode(picture: Image, mode: str) -> Image:
    pil = require('PIL.Image', 'train', 'reading pictures')
    if picture.mode.startswith('I'):
        picture = _scaled(picture.convert('I'), torch.int32, 65535)
    elif picture.mode == 'F':
        picture = _scaled(picture, torch.float32, 1)
    elif 'transparency' in picture.info or picture.mode[-1] in 'Aa':
        picture = picture.convert('RGBA')
        if mode != 'RGBA':
            picture = pil.alpha_composite(pil.new('RGBA', picture.size, 'white'), picture)
    elif picture.mode not in ('1', 'L', 'RGB'):
        picture = picture.convert('RGB')
    return picture.convert(mode)


def _scaled(picture: Image, dtype: torch.dtype, white: int) -> Image:
    """A grey picture of wide numbers as 8-bit grey."""
    values = torch.frombuffer(bytearray(picture.tobytes()), dtype=dtype).view(1, picture.height, picture.width)
    return to_pil_image(values / white * 2 - 1)


def _framed(picture: Image, size: tuple[int, int], pixel_limit: int) -> Image:
    """Resized so that it just covers the frame (h, w), then cropped to it about the centre."""
    h, w = size
    if picture.height * w < picture.width * h:
        width, height = picture.width * h // picture.height, h
    else:
        width, height = w, picture.height * w // picture.width
    if (width, height) != picture.size:
        _check_pixels(width, height, pixel_limit)
        pil = require('PIL.Image', 'train', 'reading pictures')
        picture = picture.resize((width, height), pil.Resampling.BICUBIC)
    left, top = round((width - w) / 2), round((height - h) / 2)
    return picture.crop((left, top, left + w, top + h))
