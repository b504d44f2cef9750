"""Icons (.ico, .icns): files of small pictures in other formats, which Pillow decodes whatever size these have."""
from __future__ import annotations

import re
from typing import IO

#: The most bytes that an icon file may have, and the most pixels that a picture in it may have (the largest in use has 1024 x 1024).
ICON_BYTES, ICON_PIXELS = 2**24, 2**22
_BEGINNINGS = (b'\0\0\1\0', b'icns')
#: Where a PNG and a JPEG 2000 state their width and height.
_SIZES = re.compile(rb'(?:IHDR|\xff\x4f\xff\x51.{4})(.{4})(.{4})', re.DOTALL)


def check_icon(file: IO[bytes]) -> None:
    """Refuse an icon whose pictures state more than ICON_PIXELS; other files pass.

    Raises:
        ValueError: The file or a picture in it is too large for an icon.
    """
    start = file.tell()
    data = _read_icon(file)
    file.seek(start)
    if not data.startswith(_BEGINNINGS):
        return
    if len(data) > ICON_BYTES:
        raise ValueError(f'it is an icon of more than {ICON_BYTES:,} bytes')
    for width, height in ((int.from_bytes(side, 'big') for side in match.groups()) for match in _SIZES.finditer(data)):
        if width * height > ICON_PIXELS:
            raise ValueError(f'it is an icon that holds a picture of {width} x {height}, more than {ICON_PIXELS:,} pixels')


def _read_icon(file: IO[bytes]) -> bytes:
    """The bytes of a file that begins as an icon does, otherwise its first four."""
    data = file.read(4)
    return data + file.read(ICON_BYTES) if data in _BEGINNINGS else data
