"""The two files of a decoded data set: its pictures, and what else is known of them, with a
checksum for each block of pictures.

The pictures are looked through whenever they are opened, a block at a time by several threads,
which costs about what reading the file costs. What cannot be read, is of another size or does not
have its checksum counts as damaged.
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

#: About how many bytes a block has.
_BLOCK = 2**22
#: Changes whenever pictures are decoded by other rules or the files are written otherwise.
_VERSION = 2


@dataclass(frozen=True)
class Facts:
    """Facts about decoded pictures that are stored beside their values."""

    owner: str  # digest of the data set's name and the shape of its pictures
    labels: list[int]
    kept: list[int]  # the numbers of the pictures that could be read
    skipped: list[tuple[str, str]]
    found_before: list[tuple[str, str]]  # what of `skipped` was known before any was decoded
    block: int  # pictures in a block
    checksums: list[int]  # CRC-32 of each block


class CacheFiles:
    """The files of one data set in a folder; they are named after all that the pictures depend
    on.
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
        """Return the facts about a data set of so many items, or None where there is no file or
        it is damaged.
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
        """Write what is known; the pictures are whole by then."""
        values = asdict(facts)
        write_json(self.path, {**values, 'digest': _digest(json.dumps(values))})

    @contextmanager
    def new_pictures(self) -> Iterator[IO[bytes]]:
        """A file for the pictures, one after the other, that takes its name at the end."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.path.unlink(missing_ok=True)
        with whole_file(self.pictures) as temporary, open(temporary, 'wb') as file:
            yield file

    def damaged_blocks(self, facts: Facts) -> list[int]:
        """The numbers of the blocks that do not have their checksums."""
        size = facts.block * self.picture_bytes
        with (
            open(self.pictures, 'rb') as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
            memoryview(mapped) as data,
        ):

            def checksum(number: int) -> int:
                with data[number * size : (number + 1) * size] as block:
                    return zlib.crc32(block)

            found = list(map_in_threads(checksum, len(facts.checksums), 8))
        return [number for number, value in enumerate(found) if value != facts.checksums[number]]

    def replace_block(self, number: int, data: bytes | bytearray) -> None:
        """Write a block anew."""
        with open(self.pictures, 'rb+') as file:
            file.seek(number * self.block * self.picture_bytes)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def remove_older(self) -> None:
        """Remove the files of the same data set as it was before, and those that this version
        does not read.
        """
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
