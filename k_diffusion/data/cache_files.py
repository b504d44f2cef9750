"""The two cache files of a decoded data set: images, and facts with checksums.

The images are verified whenever they are opened, in blocks by several threads, which takes about as
long as reading the file. Images that cannot be read, have another size or another checksum count as
damaged.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from ..core.files import whole_file, write_json
from .threads import map_in_threads

#: Approximate size of a block in bytes.
_BLOCK = 2**22
#: Version of the decoding rules and of the file format.
_VERSION = 2


@dataclass(frozen=True)
class Facts:
    """Facts about decoded images, stored beside their values.

    Attributes:
        owner: Digest of the name of the data set and the shape of its images.
        labels: The classes.
        kept: Indices of the images that could be read.
        skipped: (name, reason) of the others.
        found_before: Those of `skipped` that were known before decoding.
        block: Number of images in a block.
        checksums: CRC-32 of each block.
    """

    owner: str
    labels: list[int]
    kept: list[int]
    skipped: list[tuple[str, str]]
    found_before: list[tuple[str, str]]
    block: int
    checksums: list[int]


class CacheFiles:
    """The files of one data set in a folder, named after everything that affects the images.

    Args:
        folder: The folder.
        fingerprint: The fingerprint of the data set.
        source: Its name.
        image_shape: The shape of its images.
    """

    def __init__(
        self, folder: Path, fingerprint: str, source: str, image_shape: tuple[int, ...]
    ) -> None:
        self.folder, self.picture_bytes = folder, math.prod(image_shape)
        self.block = max(1, _BLOCK // self.picture_bytes)
        self.owner = _digest(repr((source, image_shape)))
        key = _digest(repr((_VERSION, fingerprint, image_shape)))
        self.pictures, self.path = folder / f'{key}.uint8', folder / f'{key}.json'

    def facts(self, items: int) -> Facts | None:
        """Return the facts about a data set; None if there is no file or it is damaged.

        Args:
            items: Number of items of the data set.
        """
        facts = _read(self.path)
        if facts is not None and not all(
            type(index) is int and 0 <= index < items for index in facts.kept
        ):
            return None
        try:
            if (
                facts is None
                or self.pictures.stat().st_size != len(facts.kept) * self.picture_bytes
            ):
                return None
        except OSError:
            return None
        return facts

    def write_facts(self, facts: Facts) -> None:
        """Write the facts, after the images are complete.

        Args:
            facts: The facts.
        """
        values = asdict(facts)
        write_json(self.path, {**values, 'digest': _digest(json.dumps(values))})

    @contextmanager
    def new_pictures(self) -> Iterator[IO[bytes]]:
        """Open a new file of images, which takes its name at the end."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.path.unlink(missing_ok=True)
        with whole_file(self.pictures) as temporary, open(temporary, 'wb') as file:
            yield file

    def damaged_blocks(self, facts: Facts) -> list[int]:
        """Return the indices of the blocks without the right checksum.

        Args:
            facts: The facts.
        """
        size = facts.block * self.picture_bytes
        with (
            open(self.pictures, 'rb') as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
            memoryview(mapped) as data,
        ):

            def checksum(number: int) -> int:
                with data[number * size : (number + 1) * size] as block:
                    return zlib.crc32(block)

            checksums = list(map_in_threads(checksum, len(facts.checksums), 8))
        return [
            number for number, value in enumerate(checksums) if value != facts.checksums[number]
        ]

    def replace_block(self, number: int, data: bytes | bytearray) -> None:
        """Rewrite a block.

        Args:
            number: Its index.
            data: Its bytes.
        """
        with open(self.pictures, 'rb+') as file:
            file.seek(number * self.block * self.picture_bytes)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def remove_older(self) -> None:
        """Remove files of earlier versions of the data set, and files of other formats."""
        for path in self.folder.glob('*.json'):
            if (
                path == self.path
                or not re.fullmatch('[0-9a-f]{24}', path.stem)
                or not path.with_suffix('.uint8').exists()
            ):
                continue
            facts = _read(path)
            if facts is None or facts.owner == self.owner:
                path.unlink(missing_ok=True)
                path.with_suffix('.uint8').unlink(missing_ok=True)


def _read(path: Path) -> Facts | None:
    try:
        values: Any = json.loads(path.read_text('utf-8'))
        digest = values.pop('digest')
        facts = Facts(**values)
        if digest != _digest(json.dumps(asdict(facts))) or len(facts.checksums) != -(
            -len(facts.kept) // facts.block
        ):
            return None
        if len(facts.labels) != len(facts.kept) or not all(
            type(label) is int for label in facts.labels
        ):
            return None
        pairs = [
            [(name, reason) for name, reason in entries]
            for entries in (facts.skipped, facts.found_before)
        ]
        return Facts(**{**values, 'skipped': pairs[0], 'found_before': pairs[1]})
    except (
        OSError,
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        ZeroDivisionError,
        RecursionError,
    ):
        return None


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode('utf-8', 'surrogatepass'), digest_size=12).hexdigest()
