"""CIFAR-10 from its published archives or their contents; nothing in them is run."""

from __future__ import annotations

import gzip
import io
import math
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..core.pickle_state import Budget, Foreign, Record, Unreadable
from ..core.unpickling import Machine
from .archives import read_heads
from .datasets import Dataset, Images
from .opening import DATASETS, LocatedConfig, Request
from .published import CIFAR10, fetch, missing

_PYTHON = [f'data_batch_{i}' for i in range(1, 6)]
_BINARY = [f'data_batch_{i}.bin' for i in range(1, 6)]
_PIXELS = 3 * 32 * 32
#: Largest size of a batch in bytes (the published ones have 31 million).
BATCH_LIMIT = 2**26
#: Largest unpacked size of an archive in bytes (the published ones have 186 million).
ARCHIVE_LIMIT = 2**29
#: Names in numpy's pickles of arrays.
_ARRAY_NAMES = {
    ('numpy.core.multiarray', '_reconstruct'),
    ('numpy._core.multiarray', '_reconstruct'),
    ('numpy', 'ndarray'),
    ('numpy', 'dtype'),
}


@DATASETS.register('cifar10')
@dataclass(kw_only=True)
class CIFAR10Config(LocatedConfig):
    """The 50,000 training images of CIFAR-10.

    location is the archive (python or binary), its unpacked folder, or the folder of either.
    """

    type: Literal['cifar10'] = 'cifar10'
    download: bool = True

    def open(self, request: Request) -> Dataset:
        """Open the images, which are downloaded if necessary.

        Args:
            request: The size and channels of the items.
        """
        batches = _find(self.place())
        if batches is None:
            searched = f'{self.place()} (an archive or its unpacked folder)'
            if not self.download:
                raise FileNotFoundError(missing(CIFAR10, self.place(), searched))
            fetch(CIFAR10, self.place(), searched)
            batches = _find(self.place()) or []
        images, labels = (
            torch.cat(parts) for parts in zip(*(_parse(name, data) for name, data in batches))
        )
        return Images(images, labels, CIFAR10.class_names, str(self.place())).reframe(
            request.size, request.channels
        )


def _find(place: Path) -> list[tuple[str, bytes]] | None:
    """Return the five batches (name, contents), or None."""
    for folder, names in (
        (place, _PYTHON),
        (place / 'cifar-10-batches-py', _PYTHON),
        (place, _BINARY),
        (place / 'cifar-10-batches-bin', _BINARY),
    ):
        if (folder / names[0]).is_file():
            return [(str(folder / name), _contents(folder / name)) for name in names]
    for archive in (place, place / 'cifar-10-python.tar.gz', place / 'cifar-10-binary.tar.gz'):
        if archive.is_file():
            return _unpack(archive)
    return None


def _contents(path: Path) -> bytes:
    if not path.is_file():
        raise FileNotFoundError(f'{path} is missing; all five batches must lie in one folder')
    with open(path, 'rb') as file:
        return _check_limit(file.read(BATCH_LIMIT + 1), str(path))


def _unpack(archive: Path) -> list[tuple[str, bytes]]:
    """Return the batches in an archive, read in one pass; other members are ignored."""
    contents: dict[str, bytes] = {}
    try:
        with (
            open(archive, 'rb') as archive_file,
            gzip.open(archive_file)
            if archive_file.peek(2)[:2] == b'\x1f\x8b'
            else archive_file as file,
        ):
            for member, end in read_heads(file):
                if end > ARCHIVE_LIMIT:
                    raise tarfile.ReadError(f'it unpacks to more than {ARCHIVE_LIMIT:,} bytes')
                name = member.name.rpartition('/')[2]
                if member.isreg() and name in (*_PYTHON, *_BINARY):
                    file.seek(member.offset_data)
                    data = file.read(min(member.size, BATCH_LIMIT + 1))
                    contents[name] = _check_limit(data, f'{archive}: {name}')
                    if len(data) < member.size:
                        raise EOFError(f'{name} is cut short')
    except (tarfile.TarError, EOFError, zlib.error, OSError, RecursionError) as error:
        raise ValueError(
            f'{archive} is cut short, damaged or not a .tar.gz archive ({error}); fetch it again'
        ) from None
    for names in (_PYTHON, _BINARY):
        if all(name in contents for name in names):
            return [(f'{archive}: {name}', contents[name]) for name in names]
    raise ValueError(
        f'{archive} must hold the five files {_PYTHON[0]} ... {_PYTHON[-1]}, with or without '
        '.bin; fetch it again'
    )


def _check_limit(data: bytes, name: str) -> bytes:
    if len(data) > BATCH_LIMIT:
        raise ValueError(
            f'{name} must have at most {BATCH_LIMIT} bytes, more than a batch of CIFAR-10; fetch '
            'it again'
        )
    return data


def _parse(name: str, data: bytes) -> tuple[Tensor, Tensor]:
    """Return one batch as images uint8 [N, 3, 32, 32] and labels int64 [N]."""
    if name.endswith('.bin'):
        if not data or len(data) % (1 + _PIXELS):
            raise ValueError(
                f'{name} must have a multiple of {1 + _PIXELS} bytes; got {len(data)}. It is cut '
                'short: fetch it again'
            )
        records = torch.frombuffer(bytearray(data), dtype=torch.uint8).view(-1, 1 + _PIXELS)
        return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].long()
    batch = read_arrays(name, data)
    images, labels = batch.get(b'data'), batch.get(b'labels')
    if (
        not isinstance(images, Tensor)
        or images.ndim != 2
        or images.shape[1] != _PIXELS
        or not isinstance(labels, list)
        or not all(type(label) is int and 0 <= label < len(CIFAR10.class_names) for label in labels)
    ):
        raise ValueError(
            f'{name} is not a batch of CIFAR-10: it lacks an array "data" of [N, {_PIXELS}] bytes '
            'or a list "labels" '
            f'of numbers from 0 to {len(CIFAR10.class_names) - 1}'
        )
    return images.view(-1, 3, 32, 32), torch.tensor(labels, dtype=torch.int64)


def read_arrays(name: str, data: bytes) -> dict[Any, Any]:
    """Read a pickled dict of byte arrays (as uint8 tensors), text, numbers, lists and dicts.

    Args:
        name: Its name in messages.
        data: The pickle.

    Raises:
        ValueError: If it is damaged or names anything else.
    """
    machine = Machine(
        io.BytesIO(data), len(data), Budget(len(data)), records=_ARRAY_NAMES, text=False
    )
    try:
        value = machine.load()
    except Foreign as error:
        raise ValueError(
            f'{name} is refused: {error}, and only arrays of bytes, text and numbers are read'
        ) from None
    except Unreadable as error:
        raise ValueError(f'{name} is cut short or damaged ({error}); fetch it again') from None
    if not isinstance(value, dict) or isinstance(value, Record):
        raise ValueError(f'{name} holds {type(value).__name__}, not a dict of arrays')
    return {
        key: _array(name, entry) if isinstance(entry, Record) else entry
        for key, entry in value.items()
    }


def _array(name: str, record: Record) -> Tensor:
    """Return the array of bytes [N, ...] in a record of its construction by numpy."""
    try:
        _, shape, dtype, fortran, raw = record.state
        code = dtype.arguments[0]
    except (TypeError, ValueError, AttributeError, IndexError):
        raise ValueError(
            f'{name} is cut short or damaged (an array of it lacks its data); fetch it again'
        ) from None
    if code not in (b'u1', 'u1') or fortran:
        raise ValueError(f'{name} is refused: an array of {code!r} is not one of bytes, row by row')
    if (
        type(raw) is not bytes
        or type(shape) is not tuple
        or not all(type(side) is int and side >= 0 for side in shape)
        or math.prod(shape) != len(raw)
    ):
        raise ValueError(
            f'{name} is cut short or damaged (an array of it has another size than it states); '
            'fetch it again'
        )
    return (
        torch.frombuffer(bytearray(raw), dtype=torch.uint8).view(*shape)
        if raw
        else torch.empty(shape, dtype=torch.uint8)
    )
