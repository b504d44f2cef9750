"""Pictures into tensors, by one set of rules.

- Orientation: the EXIF tag is applied.
- Depth: greys of more than 8 bits are scaled by the rules of `greys`.
- Formats: those in FORMATS, which Pillow decodes itself, whatever the ending of the file. Never
  those that would start another program (Ghostscript for .eps), nor films, documents and stubs.
- Transparency: laid over white where 1 or 3 channels are asked for (most icons are drawn for a
  white page), before resizing, so that no colour hidden under transparent pixels bleeds in; kept
  where 4 are asked for, and then resized premultiplied.
- Colour: palettes, CMYK, YCbCr and the rest become RGB; grey (ITU-R 601) where 1 channel is asked
  for.
- Size: resized with Pillow's antialiased bicubic filter until the picture just covers the frame,
  then cropped about its centre.
- Frames: of an animation or a file of many pages, the first.
- Limits: a picture of more than PIXEL_LIMIT pixels, or one so thin that covering the frame takes
  more, is refused by its header, before anything is decoded. So is one whose decoding takes more
  than PICTURE_BYTES, and an icon larger than icons are. Pictures decoded at the same time take at
  most DECODING_BYTES together (one may always be decoded).
"""

from __future__ import annotations

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

#: The formats that are read, as Pillow calls them, and the endings that it gives to their files.
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
#: Those that most pictures have. Their first bytes identify them; trying the others first takes a
#: third of the time of a small one.
_COMMON = ('PNG', 'JPEG', 'WEBP', 'GIF', 'BMP', 'TIFF')
#: The endings of picture files, in lower case.
EXTENSIONS = frozenset(' '.join(FORMATS.values()).split())
#: The most pixels a picture may have, by what its header says: a file of a kilobyte can claim
#: gigabytes.
PIXEL_LIMIT = 2**26
#: The most bytes that decoding one picture may take, and all those that the threads of a process
#: decode at the same time.
PICTURE_BYTES, DECODING_BYTES = 2**30, 2**28
#: The most scans of a JPEG file (progressive ones have about 10): each takes a few bytes and the
#: time of a whole picture.
SCANS = 100
_MODES = {1: 'L', 3: 'RGB', 4: 'RGBA'}
#: The most bytes that an icon file may have, and the most pixels that a picture in it may have (the
#: largest in use has 1024 x 1024).
ICON_BYTES, ICON_PIXELS = 2**24, 2**22
_ICON_BEGINNINGS = (b'\0\0\1\0', b'icns')
#: Where a PNG and a JPEG 2000 state their width and height.
_ICON_SIZES = re.compile(rb'(?:IHDR|\xff\x4f\xff\x51.{4})(.{4})(.{4})', re.DOTALL)


class UnreadablePicture(ValueError):
    """A picture that cannot be decoded, or is not let; the message says why."""


def load_picture(
    source: str | os.PathLike[str] | IO[bytes],
    size: tuple[int, int],
    channels: int = 3,
    pixel_limit: int = PIXEL_LIMIT,
    grey_range: tuple[float, float] | None = None,
) -> Tensor:
    """A picture file as uint8 [C, H, W] of the size (h, w); channels: 1 (grey), 3 (RGB) or 4
    (RGBA).

    grey_range: the values of black and white in grey pictures of one channel, None for those that
    the kind of file implies.
    """
    check_frame(size, channels)
    return read_picture(
        source, lambda picture: picture_bytes(picture, size, channels, pixel_limit, grey_range)
    )


def read_picture(source: str | os.PathLike[str] | IO[bytes], use: Callable[[Image], T]) -> T:
    """Return what a function makes of a picture file as Pillow opens it, its pixels not decoded
    yet.

    Raises:
        UnreadablePicture: The file cannot be opened or decoded. The exception holds text alone: a
            chained one would keep the frames of the decoder alive, and with them every byte that it
            has decoded.
    """
    pil = require('PIL.Image', 'train', 'reading pictures')
    try:
        with _opened(source) as file:
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


def _opened(source: str | os.PathLike[str] | IO[bytes]) -> AbstractContextManager[IO[bytes]]:
    return open(source, 'rb') if isinstance(source, (str, os.PathLike)) else nullcontext(source)


def picture_bytes(
    picture: Image,
    size: tuple[int, int],
    channels: int = 3,
    pixel_limit: int = PIXEL_LIMIT,
    grey_range: tuple[float, float] | None = None,
) -> Tensor:
    """A Pillow picture, decoded or not yet, as uint8 [C, H, W] of the size (h, w)."""
    _check_pixels(picture.width, picture.height, pixel_limit)
    _check_covering(picture.width, picture.height, size, pixel_limit)
    needed = _bytes_each_pixel(picture) * picture.width * picture.height
    if needed > PICTURE_BYTES:
        raise UnreadablePicture(
            f'{picture.width} x {picture.height} as {picture.format} takes more than '
            f'{PICTURE_BYTES:,} bytes to decode'
        )
    if picture.format in ('JPEG', 'MPO') and _count_scans(picture) > SCANS:
        raise UnreadablePicture(
            f'it has more than {SCANS} scans, each of which would be decoded over the whole picture'
        )
    with _DECODING.hold(needed):
        tags = tags_of(picture)  # (a picture that is turned has none)
        grey = _as_8_bits(_upright(picture), *tags, grey_range)
        return pil_bytes(_framed(_in_mode(grey, _MODES[channels]), size, pixel_limit))


def _bytes_each_pixel(picture: Image) -> int:
    """About how much memory decoding takes at most, with the copies that `_in_mode` makes
    (measured with Pillow 13).
    """
    if picture.format == 'JPEG2000':
        return 24
    if (
        picture.format == 'WEBP' or _is_transparent(picture) or picture.mode == 'P'
    ):  # (a palette is read with the pixels)
        return 16
    plain = (
        picture.mode in ('1', 'L', 'RGB')
        and picture.format != 'AVIF'
        and not picture.info.get('progressive')
    )
    return 4 if plain else 10


def _count_scans(picture: Image) -> int:
    """The scans of a JPEG file that is not decoded yet: within coded data no 0xff stands before
    another byte than 0.
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
    """The formats of FORMATS that the Pillow at hand knows, in the order in which it tries them."""
    pil = require('PIL.Image', 'train', 'reading pictures')
    pil.init()
    return [
        name
        for name in (*_COMMON, *(name for name in FORMATS if name not in _COMMON))
        if name in pil.OPEN
    ]


def check_frame(size: tuple[int, int], channels: int) -> None:
    """Refuses a size or a number of channels that no picture can have."""
    if channels not in _MODES:
        raise ValueError(
            f'{channels} channels are asked for; pictures have 1 (grey), 3 (RGB) or 4 (RGB and '
            'alpha)'
        )
    if len(size) != 2 or min(size) < 1:
        raise ValueError(
            f'the size {list(size)} is asked for; it must be [height, width], each at least 1'
        )


def _check_pixels(width: int, height: int, limit: int) -> None:
    if width * height > limit:
        raise UnreadablePicture(f'{width} x {height} is more than {limit} pixels')


def _check_covering(width: int, height: int, size: tuple[int, int], limit: int) -> None:
    """Refuse a picture too thin for the frame, whichever way its EXIF tag turns it (which is
    known only after decoding).
    """
    if (
        min(math.prod(_covering(width, height, size)), math.prod(_covering(height, width, size)))
        > limit
    ):
        raise UnreadablePicture(
            f'{width} x {height} is so thin that covering {size[1]} x {size[0]} takes more than '
            f'{limit} pixels'
        )


def _upright(picture: Image) -> Image:
    """The picture, decoded, turned by its EXIF tag where it has one (Pillow would copy any
    other).
    """
    picture.load()
    if is_turned(picture):
        return require('PIL.ImageOps', 'train', 'reading pictures').exif_transpose(picture)
    return picture


def is_turned(picture: Image) -> bool:
    """Return True if the EXIF tag of a picture turns or mirrors it."""
    return picture.getexif().get(0x0112, 1) in range(2, 9)


class _Allowance:
    """Bytes that threads share: who wants more than is left waits, unless nobody holds any."""

    def __init__(self, total: int) -> None:
        self.total, self.held, self.changed = total, 0, threading.Condition()

    @contextmanager
    def hold(self, n: int) -> Iterator[None]:
        with self.changed:
            self.changed.wait_for(lambda: not self.held or self.held + n <= self.total)
            self.held += n
        try:
            yield
        finally:
            with self.changed:
                self.held -= n
                self.changed.notify_all()


_DECODING = _Allowance(DECODING_BYTES)


def _is_transparent(picture: Image) -> bool:
    """Return True if a picture has transparency: in a channel, in one value, or in the colours
    of its palette.
    """
    return (
        'transparency' in picture.info
        or picture.mode[-1] in 'Aa'
        or (picture.palette is not None and picture.palette.mode[-1] == 'A')
    )


def _in_mode(picture: Image, mode: str) -> Image:
    pil = require('PIL.Image', 'train', 'reading pictures')
    if _is_transparent(picture):
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
    """The picture, its greys scaled where they have more bits than 8 or where it is said how."""
    if not is_wide(picture) and not (picture.mode == 'L' and grey_range):
        return picture
    try:
        return to_8_bits(picture, inverted, bits, grey_range)
    except ValueError as error:
        reason = str(error)
    raise UnreadablePicture(reason)


def _covering(width: int, height: int, size: tuple[int, int]) -> tuple[int, int]:
    """The (width, height) at which a picture just covers the frame (h, w)."""
    h, w = size
    return (width * h // height, h) if height * w < width * h else (w, height * w // width)


def _framed(picture: Image, size: tuple[int, int], pixel_limit: int) -> Image:
    """Resized so that it just covers the frame (h, w), then cropped to it about the centre."""
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
    """Refuse an icon whose pictures state more than ICON_PIXELS; other files pass.

    Raises:
        ValueError: The file or a picture in it is too large for an icon.
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
                f'it is an icon that holds a picture of {width} x {height}, more than '
                f'{ICON_PIXELS:,} pixels'
            )


def _read_icon(file: IO[bytes]) -> bytes:
    """The bytes of a file that begins as an icon does, otherwise its first four."""
    data = file.read(4)
    return data + file.read(ICON_BYTES) if data in _ICON_BEGINNINGS else data
