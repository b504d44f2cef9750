"""Conversion of grey images of one channel and any depth to 8 bits.

Black and white are `grey_range` if it is set, and else implied by the file:

- 8 bits: 0 and 255.
- Integers of more bits: 0 and 65535, or the largest value of the file's number of bits below 16 (12
bits in a TIFF: 4095).
- Floating-point numbers: 0 and 1 if the largest is at most 1.1; 0 and 255 if it is between 16 and
280.5.
- A TIFF with WhiteIsZero is inverted.

Values outside (by more than a tenth for floating-point numbers) raise an error, since their meaning
is unknown; with `grey_range` they are clipped.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..core.extras import require
from ..core.images import to_pil_image

if TYPE_CHECKING:
    from PIL.Image import Image

#: Number of pixels converted at a time.
_PIXELS = 2**18
_BITS, _PHOTOMETRIC = 258, 262  # TIFF tags


def tags_of(picture: Image) -> tuple[bool, int]:
    """Return True if zero is white in a file, and the number of bits of its greys (16 if unknown).

    Args:
        picture: A PIL image.
    """
    tags: Any = getattr(picture, 'tag_v2', {})
    bits = tags.get(_BITS, (16,))
    bits = bits[0] if isinstance(bits, tuple) and bits else 16
    return tags.get(_PHOTOMETRIC) == 0, bits if 8 < bits < 16 else 16


def is_wide(picture: Image) -> bool:
    """Return True if an image has greys of more than 8 bits.

    Args:
        picture: A PIL image.
    """
    return picture.mode[0] in 'IF'


def to_8_bits(
    picture: Image, inverted: bool, bits: int, grey_range: tuple[float, float] | None
) -> Image:
    """Return a grey image with 8 bits; LA if one of its values marks transparent pixels.

    Args:
        picture: An image of the modes L, I, I;16 and similar, or F.
        inverted: Zero is white in its file.
        bits: Number of bits of its integers.
        grey_range: Black and white; None for those implied by the file.

    Raises:
        ValueError: If values are outside the implied range.
    """
    low, high = grey_range or _implied_range(picture, bits)
    if inverted:  # (Pillow inverts 8 bits itself)
        low, high = (high, low) if is_wide(picture) else (255 - high, 255 - low)
    clear = picture.info.get('transparency')
    result = require('PIL.Image', 'train', 'reading pictures').new(
        'LA' if isinstance(clear, int) else 'L', picture.size
    )
    for top, values in _strips(picture):
        shares = [(values.double() - low).div_(high - low)]
        if isinstance(clear, int):
            shares.append(values.ne(clear).double())
        result.paste(to_pil_image(torch.stack(shares).mul_(2).sub_(1)), (0, top))
    return result


def _implied_range(picture: Image, bits: int) -> tuple[float, float]:
    least, most = math.inf, -math.inf
    for _, values in _strips(picture):
        finite = values[values.isfinite()]
        if finite.numel():
            least, most = min(least, finite.min().item()), max(most, finite.max().item())
    if picture.mode != 'F':
        white, tolerance = float(2**bits - 1), 0.0
    else:
        white, tolerance = (255.0, 0.1) if most >= 16 else (1.0, 0.1)
    if least < -tolerance * white or most > (1 + tolerance) * white:
        raise ValueError(
            f'its greys go from {least:g} to {most:g}, for which black and white are unknown; '
            'set dataset.grey_range to [black, white]'
        )
    return 0.0, white


def _strips(picture: Image) -> Iterator[tuple[int, Tensor]]:
    """Yield a few rows of an image at a time: the first row and the values [rows, W]."""
    kind, dtype = ('F', torch.float32) if picture.mode == 'F' else ('I', torch.int32)
    rows = max(1, _PIXELS // picture.width)
    for top in range(0, picture.height, rows):
        strip = picture.crop((0, top, picture.width, min(top + rows, picture.height))).convert(kind)
        yield (
            top,
            torch.frombuffer(bytearray(strip.tobytes()), dtype=dtype).view(
                strip.height, strip.width
            ),
        )
