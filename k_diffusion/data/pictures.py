"""Conversion of images to tensors by one set of rules.

- Orientation: the EXIF tag is applied.
- Depth: greys of more than 8 bits are scaled by the rules of `greys`.
- Formats: those in FORMATS, which Pillow decodes itself, for any suffix of the file. Formats that
would start another program (Ghostscript for .eps), films, documents and stubs are excluded.
- Transparency: composited over white for 1 or 3 channels (most icons are drawn for a white page),
before resizing, so that no colour hidden under transparent pixels bleeds in; kept for 4 channels,
and then resized premultiplied.
- Colour: palettes, CMYK, YCbCr and others become RGB, or grey (ITU-R 601) for 1 channel.
- Size: resized with Pillow's antialiased bicubic filter until the image just covers the frame, then
cropped around its centre.
- Frames: the first one of an animation or a file of several pages.
- Limits: an image of more than PIXEL_LIMIT pixels, or one so thin that covering the frame takes
more, is refused by its header, before anything is decoded. So is one whose decoding takes more than
PICTURE_BYTES, and an icon larger than icons are. Images decoded at the same time take at most
DECODING_BYTES together (one may always be decoded).
"""

from __future__ import annotations

import io
import math
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import IO, TYPE_CHECKING, TypeVar

from torch import Tensor

from ..core.extras import require
from ..core.images import pil_bytes
from .greys import is_wide, tags_of, to_8_bits

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar('T')

#: The accepted formats by Pillow's names, with the suffixes of their files.
FORMATS = {
    'AVIF': '.avif .avifs',
    'BLP': '.blp',
    'BMP': '.bmp',
    'CUR': '.cur',
    'DCX': '.dcx',
    'DDS': '.dds',
    'DIB': '.dib',
    'FITS': '.fit .fits',
    'FLI': '.flc .fli',
    'FTEX': '.ftc .ftu',
    'GBR': '.gbr',
    'GIF': '.gif',
    'ICNS': '.icns',
    'ICO': '.ico',
    'IM': '.im',
    'JPEG': '.jfif .jpe .jpeg .jpg .mpo',
    'JPEG2000': '.j2c .j2k .jp2 .jpc .jpf .jpx',
    'MSP': '.msp',
    'PCD': '.pcd',
    'PCX': '.pcx',
    'PIXAR': '.pxr',
    'PNG': '.apng .png',
    'PPM': '.pbm .pfm .pgm .pnm .ppm',
    'PSD': '.psd',
    'QOI': '.qoi',
    'SGI': '.bw .rgb .rgba .sgi',
    'SUN': '.ras',
    'TGA': '.icb .tga .vda .vst',
    'TIFF': '.tif .tiff',
    'WEBP': '.webp',
    'XBM': '.xbm',
    'XPM': '.xpm',
}
#: The most common formats. Their first bytes identify them; trying the others first takes a third
#: of the time of a small image.
_COMMON = ('PNG', 'JPEG', 'WEBP', 'GIF', 'BMP', 'TIFF')
#: The suffixes of image files, in lower case.
EXTENSIONS = frozenset(' '.join(FORMATS.values()).split())
#: Largest number of pixels of an image by its header: a file of a kilobyte can claim gigabytes.
PIXEL_LIMIT = 2**26
#: Largest number of bytes to decode one image, and all images that the threads of a process decode
#: at the same time.
PICTURE_BYTES, DECODING_BYTES = 2**30, 2**28
#: Largest number of scans of a JPEG file (progressive ones have about 10): each takes a few bytes
#: and the time of a whole image.
SCANS = 100
_MODES = {1: 'L', 3: 'RGB', 4: 'RGBA'}
#: Largest size of an icon file in bytes, and largest number of pixels of an image in it (the
#: largest in use has 1024 x 1024).
ICON_BYTES, ICON_PIXELS = 2**24, 2**22
_ICON_BEGINNINGS = (b'\0\0\1\0', b'icns')
#: Files of at most so many bytes are read at once.
_SMALL_FILE = 2**16
#: Images whose decoding takes at most so many bytes do not wait for others.
_SMALL = 2**20
#: The position of width and height in a PNG and a JPEG 2000.
_ICON_SIZES = re.compile(rb'(?:IHDR|\xff\x4f\xff\x51.{4})(.{4})(.{4})', re.DOTALL)


class UnreadablePicture(ValueError):
    """An image cannot or must not be decoded; the message gives the reason."""


def load_picture(
    source: str | os.PathLike[str] | IO[bytes],
    size: tuple[int, int],
    channels: int = 3,
    pixel_limit: int = PIXEL_LIMIT,
    grey_range: tuple[float, float] | None = None,
) -> Tensor:
    """Load an image file as uint8 [C, H, W].

    Args:
        source: The file.
        size: Height and width of the result.
        channels: 1 (grey), 3 (RGB) or 4 (RGBA).
        pixel_limit: Largest number of pixels.
        grey_range: Black and white of grey images; None for those of the file format.

    Raises:
        UnreadablePicture: If it cannot be decoded.
    """
    check_frame(size, channels)
    return read_picture(
        source, lambda picture: picture_bytes(picture, size, channels, pixel_limit, grey_range)
    )


def load_pixels(
    source: str | os.PathLike[str] | IO[bytes],
    size: tuple[int, int],
    channels: int,
    grey_range: tuple[float, float] | None = None,
) -> bytes:
    """Load an image file as the bytes of [H, W, C], which is faster for small images.

    Args:
        source: The file.
        size: Height and width of the result.
        channels: 1 (grey), 3 (RGB) or 4 (RGBA).
        grey_range: Black and white of grey images; None for those of the file format.

    Raises:
        UnreadablePicture: If it cannot be decoded.
    """
    return read_picture(
        source,
        lambda picture: convert_picture(
            picture, lambda framed: framed.tobytes(), size, channels, PIXEL_LIMIT, grey_range
        ),
    )


def read_picture(source: str | os.PathLike[str] | IO[bytes], use: Callable[[Image], T]) -> T:
    """Return the result of a function on an image file as opened by Pillow, not decoded yet.

    Args:
        source: The file.
        use: The function.

    Raises:
        UnreadablePicture: If the file cannot be opened or decoded. The exception holds text only: a
            chained one would keep the frames of the decoder, and with them every decoded byte.
    """
    pil = require('PIL.Image', 'train', 'reading pictures')
    try:
        with _open_source(source) as file:
            check_icon(file)
            with pil.open(file, formats=readable_formats()) as picture:
                return use(picture)
    except (UnreadablePicture, MemoryError):
        raise
    except pil.UnidentifiedImageError:
        reason = 'it is not a picture of a kind that is read'
    except OSError as error:
        reason = str(error)
    except Exception as error:  # a damaged file makes decoders raise almost anything
        reason = f'{type(error).__name__}: {error}'
    raise UnreadablePicture(reason)


def _open_source(source: str | os.PathLike[str] | IO[bytes]) -> AbstractContextManager[IO[bytes]]:
    if not isinstance(source, (str, os.PathLike)):
        return nullcontext(source)
    with open(source, 'rb', buffering=0) as file:
        data = file.read(_SMALL_FILE + 1)
    return io.BytesIO(data) if len(data) <= _SMALL_FILE else open(source, 'rb')


def picture_bytes(
    picture: Image,
    size: tuple[int, int],
    channels: int = 3,
    pixel_limit: int = PIXEL_LIMIT,
    grey_range: tuple[float, float] | None = None,
) -> Tensor:
    """Convert a Pillow image, decoded or not, to uint8 [C, H, W].

    Args:
        picture: The image.
        size: Height and width of the result.
        channels: 1 (grey), 3 (RGB) or 4 (RGBA).
        pixel_limit: Largest number of pixels.
        grey_range: Black and white of grey images.
    """
    return convert_picture(picture, pil_bytes, size, channels, pixel_limit, grey_range)


def convert_picture(
    picture: Image,
    convert: Callable[[Image], T],
    size: tuple[int, int],
    channels: int,
    pixel_limit: int,
    grey_range: tuple[float, float] | None,
) -> T:
    """Return the result of a function on an image of the frame's size and mode.

    Args:
        picture: The image, decoded or not.
        convert: The function.
        size: Height and width of the frame.
        channels: 1 (grey), 3 (RGB) or 4 (RGBA).
        pixel_limit: Largest number of pixels.
        grey_range: Black and white of grey images.
    """
    width, height = picture.size
    _check_pixels(width, height, pixel_limit)
    _check_covering(width, height, size, pixel_limit)
    size_in_bytes = _bytes_each_pixel(picture) * width * height
    if size_in_bytes > PICTURE_BYTES:
        raise UnreadablePicture(
            f'{width} x {height} as {picture.format} takes more than '
            f'{PICTURE_BYTES:,} bytes to decode'
        )
    if picture.format in ('JPEG', 'MPO') and _count_scans(picture) > SCANS:
        raise UnreadablePicture(
            f'it has more than {SCANS} scans, each of which would be decoded over the whole picture'
        )
    with _DECODING.hold(size_in_bytes) if size_in_bytes > _SMALL else nullcontext():
        tags = tags_of(picture)  # a rotated image loses them
        grey = _as_8_bits(_turn_upright(picture), *tags, grey_range)
        return convert(_reframe(_in_mode(grey, _MODES[channels]), size, pixel_limit))


def _bytes_each_pixel(picture: Image) -> int:
    """Return the approximate largest memory of decoding per pixel, measured with Pillow 13.

    It includes the copies of `_in_mode`.
    """
    if picture.format == 'JPEG2000':
        return 24
    if (
        picture.format == 'WEBP' or _is_transparent(picture) or picture.mode == 'P'
    ):  # a palette is read with the pixels
        return 16
    plain = (
        picture.mode in ('1', 'L', 'RGB')
        and picture.format != 'AVIF'
        and not picture.info.get('progressive')
    )
    return 4 if plain else 10


def _count_scans(picture: Image) -> int:
    """Return the number of scans of a JPEG file that is not decoded yet.

    Within coded data 0xff is only followed by 0.
    """
    file = getattr(picture, 'fp', None)
    if file is None:
        return 0
    here, count, last = file.tell(), 0, b''
    file.seek(0)
    while data := file.read(2**20):
        count += (last + data).count(b'\xff\xda')
        last = data[-1:] if data[-1:] == b'\xff' else b''
    file.seek(here)
    return count


@cache
def readable_formats() -> list[str]:
    """Return the formats of FORMATS that the installed Pillow supports, in trial order."""
    pil = require('PIL.Image', 'train', 'reading pictures')
    pil.init()
    return [
        name
        for name in (*_COMMON, *(name for name in FORMATS if name not in _COMMON))
        if name in pil.OPEN
    ]


def check_frame(size: tuple[int, int], channels: int) -> None:
    """Raise a ValueError for a size or a number of channels that images cannot have.

    Args:
        size: Height and width.
        channels: Number of channels.
    """
    if channels not in _MODES:
        raise ValueError(
            f'channels must be 1 (grey), 3 (RGB) or 4 (RGB and alpha) for images; got {channels}'
        )
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f'size must be [height, width], each >= 1; got {list(size)}')


def _check_pixels(width: int, height: int, limit: int) -> None:
    if width * height > limit:
        raise UnreadablePicture(f'{width} x {height} is more than {limit} pixels')


def _check_covering(width: int, height: int, size: tuple[int, int], limit: int) -> None:
    """Refuse an image too thin for the frame, in either orientation.

    The EXIF tag is known after decoding only.
    """
    if (
        min(math.prod(_covering(width, height, size)), math.prod(_covering(height, width, size)))
        > limit
    ):
        raise UnreadablePicture(
            f'{width} x {height} is so thin that covering {size[1]} x {size[0]} takes more than '
            f'{limit} pixels'
        )


def _turn_upright(picture: Image) -> Image:
    """Return the decoded image, rotated by its EXIF tag; Pillow would copy others."""
    picture.load()
    if is_turned(picture):
        return require('PIL.ImageOps', 'train', 'reading pictures').exif_transpose(picture)
    return picture


def is_turned(picture: Image) -> bool:
    """Return True if the EXIF tag of an image rotates or mirrors it.

    Args:
        picture: A PIL image.
    """
    return picture.getexif().get(0x0112, 1) in range(2, 9)


class _Allowance:
    """Bytes shared by threads: a request for more than is left waits, unless none are held."""

    def __init__(self, total: int) -> None:
        self.total, self.in_use, self.condition = total, 0, threading.Condition()

    @contextmanager
    def hold(self, n: int) -> Iterator[None]:
        with self.condition:
            self.condition.wait_for(lambda: not self.in_use or self.in_use + n <= self.total)
            self.in_use += n
        try:
            yield
        finally:
            with self.condition:
                self.in_use -= n
                self.condition.notify_all()


_DECODING = _Allowance(DECODING_BYTES)


def _is_transparent(picture: Image) -> bool:
    """Return True if an image has transparency: in a channel, in one value, or in its palette."""
    return (
        'transparency' in picture.info
        or picture.mode[-1] in 'Aa'
        or (picture.palette is not None and picture.palette.mode[-1] == 'A')
    )


def _in_mode(picture: Image, mode: str) -> Image:
    if _is_transparent(picture):
        pil = require('PIL.Image', 'train', 'reading pictures')
        picture = picture.convert('LA') if picture.mode == 'La' else picture
        picture = picture if picture.mode == 'RGBA' else picture.convert('RGBA')
        if mode != 'RGBA':
            picture = pil.alpha_composite(pil.new('RGBA', picture.size, 'white'), picture)
    elif picture.mode not in ('1', 'L', 'RGB'):
        picture = picture.convert('RGB')
    return picture if picture.mode == mode else picture.convert(mode)


def _as_8_bits(
    picture: Image, inverted: bool, bits: int, grey_range: tuple[float, float] | None
) -> Image:
    """Return the image with greys of more than 8 bits, or with a given range, scaled."""
    if not is_wide(picture) and not (picture.mode == 'L' and grey_range):
        return picture
    try:
        return to_8_bits(picture, inverted, bits, grey_range)
    except ValueError as error:
        reason = str(error)
    raise UnreadablePicture(reason)


def _covering(width: int, height: int, size: tuple[int, int]) -> tuple[int, int]:
    """Return the (width, height) at which an image just covers the frame (h, w)."""
    h, w = size
    return (width * h // height, h) if height * w < width * h else (w, height * w // width)


def _reframe(picture: Image, size: tuple[int, int], pixel_limit: int) -> Image:
    """Resize an image so that it just covers the frame (h, w), and crop it around its centre."""
    h, w = size
    width, height = _covering(picture.width, picture.height, size)
    if (width, height) != picture.size:
        _check_pixels(width, height, pixel_limit)
        pil = require('PIL.Image', 'train', 'reading pictures')
        picture = picture.resize((width, height), pil.Resampling.BICUBIC)
    if picture.size == (w, h):
        return picture
    left, top = round((width - w) / 2), round((height - h) / 2)
    return picture.crop((left, top, left + w, top + h))


def check_icon(file: IO[bytes]) -> None:
    """Refuse an icon whose images state more than ICON_PIXELS; other files pass.

    Args:
        file: The file.

    Raises:
        ValueError: If the file or an image in it is too large for an icon.
    """
    start = file.tell()
    data = _read_icon(file)
    file.seek(start)
    if not data.startswith(_ICON_BEGINNINGS):
        return
    if len(data) > ICON_BYTES:
        raise ValueError(f'it is an icon of more than {ICON_BYTES:,} bytes')
    for width, height in (
        (int.from_bytes(side, 'big') for side in match.groups())
        for match in _ICON_SIZES.finditer(data)
    ):
        if width * height > ICON_PIXELS:
            raise ValueError(
                f'it is an icon that holds an image of {width} x {height}, more than '
                f'{ICON_PIXELS:,} pixels'
            )


def _read_icon(file: IO[bytes]) -> bytes:
    """Return the bytes of a file that starts like an icon, otherwise its first four."""
    data = file.read(4)
    return data + file.read(ICON_BYTES) if data in _ICON_BEGINNINGS else data
