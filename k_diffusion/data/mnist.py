"""MNIST and what is published in its format, IDX."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import IO, Literal

import torch
from torch import Tensor

from .datasets import Dataset, Images
from .opening import DATASETS, LocatedConfig, Request
from .published import FASHION_MNIST, MNIST, Published, PublishedFile, fetch, missing

#: Upper limit for the size of an IDX file in bytes, as its header states it.
IDX_LIMIT = 2**31
#: Upper limit for an unpacked .gz file: the larger of this many bytes and this multiple of the
#: packed size (MNIST shrinks to a fifth).
UNPACKED, EXPANSION = 2**26, 100


@DATASETS.register('mnist', 'fashion-mnist')
@dataclass(kw_only=True)
class MNISTConfig(LocatedConfig):
    """The training or test images of MNIST or Fashion-MNIST.

    The IDX files, plain or .gz, are in `location` or in location/MNIST/raw (FashionMNIST/raw).

    Attributes:
        download: Fetch missing files.
        split: 'train' or 'test'.
    """

    type: Literal['mnist', 'fashion-mnist'] = 'mnist'
    download: bool = True
    split: Literal['train', 'test'] = 'train'

    def open(self, request: Request) -> Dataset:
        """Read the images at the size and with the channels of request."""
        published = FASHION_MNIST if self.type == 'fashion-mnist' else MNIST
        if self.split == 'test':
            published = published._replace(files=published.test_files)
        images, labels = (read_idx(path) for path in self._files(published))
        if images.ndim != 3 or labels.ndim != 1:
            raise ValueError(
                f'{self.place()}: the images have the shape {list(images.shape)} and the labels '
                f'{list(labels.shape)}; '
                'they must be [N, height, width] and [N]'
            )
        return Images(
            images[:, None], labels.long(), published.class_names, str(self.place())
        ).reframe(request.size, request.channels)

    def test_split(self) -> MNISTConfig | None:
        """Return the section of the test images, without a download; None for a test section."""
        return replace(self, split='test', download=False) if self.split == 'train' else None

    def _files(self, published: Published) -> list[Path]:
        below = self.place() / ('FashionMNIST' if self.type == 'fashion-mnist' else 'MNIST') / 'raw'
        for folder in (self.place(), below):
            paths = [_find_present(folder / file.name) for file in published.files]
            if all(paths):
                return [path for path in paths if path]
        searched = f'{self.place()} or {below}'
        if not self.download:
            raise FileNotFoundError(missing(published, below, searched))
        fetch(published, below, searched)
        for file in published.files:
            _check_content(below / file.name, file)
        return [below / file.name for file in published.files]


def _find_present(path: Path) -> Path | None:
    """Return the path of a file with or without .gz, or None if neither exists."""
    return next(
        (candidate for candidate in (path.with_suffix(''), path) if candidate.is_file()), None
    )


def _check_content(path: Path, file: PublishedFile) -> None:
    if (
        file.content is not None
        and hashlib.sha256(gzip.decompress(path.read_bytes())).hexdigest() != file.content
    ):
        raise ValueError(
            f'{path} was downloaded and does not hold what was published; delete it and fetch it '
            'by other means'
        )


def read_idx(path: Path) -> Tensor:
    """Read an IDX file of bytes as a uint8 tensor.

    The format: the bytes 0 0 8, the number of axes, each length as 4 bytes (big-endian), the data.

    Args:
        path: A plain or gzipped file.

    Returns:
        The array, in the shape that the header states.

    Raises:
        ValueError: If the file is damaged, or not an IDX file of bytes.
    """
    try:
        with open(path, 'rb') as plain, gzip.open(plain) as unzipped:
            is_packed = path.suffix == '.gz'
            limit = max(UNPACKED, EXPANSION * path.stat().st_size) if is_packed else IDX_LIMIT
            return _parse_idx(unzipped if is_packed else plain, min(limit, IDX_LIMIT))
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f'{path} is cut short or damaged ({error}); fetch it again') from None
    except ValueError as error:
        raise ValueError(f'{path} {error}; fetch it again') from None


def _parse_idx(file: IO[bytes] | gzip.GzipFile, limit: int) -> Tensor:
    head = file.read(4)
    if len(head) < 4 or head[:3] != b'\0\0\x08' or not 1 <= head[3] <= 4:
        raise ValueError('is not an IDX file of bytes')
    lengths = file.read(4 * head[3])
    shape = [int.from_bytes(lengths[i : i + 4], 'big') for i in range(0, len(lengths), 4)]
    size = prod(shape)
    if len(shape) < head[3] or len(lengths) % 4 or not 0 < size <= limit:
        raise ValueError(
            f'claims the shape {shape}, which is empty, cut short or more than {limit} bytes'
        )
    data = bytearray()
    while chunk := file.read(min(2**20, size + 1 - len(data))):
        data += chunk
    if len(data) != size:
        raise ValueError(
            f'holds {"more" if len(data) > size else "fewer"} than the {size} bytes of the shape '
            f'{shape}'
        )
    return torch.frombuffer(data, dtype=torch.uint8).view(shape)
