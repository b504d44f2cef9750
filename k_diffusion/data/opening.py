"""The data set that a config names: its section, and opening it."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ..core.registry import Registry
from .caching import MEMORY_LIMIT, decode_once
from .datasets import Dataset
from .pictures import check_frame
from .ranges import range_notes


@dataclass(frozen=True)
class Request:
    """What a data set is opened for: items of so many sides and channels, where and whether code of
    a config may be run, and where files are kept that are made of it (None: nowhere).
    """

    sides: tuple[int, ...]
    channels: int
    base_dir: Path
    allow_code: bool
    cache_dir: Path | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of pictures."""
        height, width = self.sides
        return height, width


@dataclass(kw_only=True)
class DatasetConfig(ABC):
    """The keys that all data sets share.

    image_key, class_key: where an item holds its picture and its class ("huggingface": the column,
    by name or number; "custom"). num_classes: how many classes the model is told of, 0 for none;
    cond_dropout_rate: how often it is not told in training. class_names: their names, which
    training writes into the config of its checkpoints.
    """

    #: Whether its items are pictures in [-1, 1]; samples of others are tensors, in the units of the
    #: data.
    pictures: ClassVar[bool] = True

    type: str = ''
    image_key: int | str = 0
    class_key: int | str = 1
    num_classes: int = 0
    cond_dropout_rate: float = 0.1
    class_names: list[str] | None = None

    def __post_init__(self) -> None:
        if self.num_classes < 0:
            raise ValueError(
                f'num_classes is {self.num_classes}; it must be at least 0 (0: no classes)'
            )
        if not 0 <= self.cond_dropout_rate <= 1:
            raise ValueError(
                f'cond_dropout_rate is {self.cond_dropout_rate}; it must be a probability from 0 '
                'to 1'
            )

    def check_shape(self, size: tuple[int, ...], channels: int) -> None:
        """Refuse a size or a number of channels that no picture can have, where the items are
        pictures.
        """
        if self.pictures and len(size) != 2:
            raise ValueError(
                f'dims must be 2 for the dataset type {self.type!r}, whose items are pictures; '
                f'got {len(size)}: '
                'take the type tensors, or a model of pictures'
            )
        if self.pictures:
            check_frame((size[0], size[1]), channels)

    @abstractmethod
    def open(self, request: Request) -> Dataset:
        """The data set, decoded or to be decoded picture by picture."""

    def test_split(self) -> DatasetConfig | None:
        """Return the section of the test split that comes with a training split, if any."""
        return None


#: The "type" of a config's dataset section -> its dataclass.
DATASETS: Registry[type[DatasetConfig]] = Registry('dataset type')


@dataclass(kw_only=True)
class LocatedConfig(DatasetConfig):
    """The keys of data sets that lie somewhere: a folder or file (from the current folder; ~ is
    the home folder), or a name.
    """

    location: str = ''

    def place(self) -> Path:
        """The location as a path."""
        return Path(self.given_location()).expanduser()

    def given_location(self) -> str:
        """The location as it was given; a missing one is missed here, since sampling does
        without.
        """
        if not self.location:
            raise ValueError(
                f'dataset.location is missing; the dataset type {self.type!r} needs it to find '
                'its pictures'
            )
        return self.location


@dataclass(kw_only=True)
class PictureConfig(LocatedConfig):
    """The keys of data sets that read picture files.

    grey_range: the values that are black and white in grey pictures of one channel, [0, 4095] for
    12 bits in a 16-bit file, where those that the kind of file implies (see `pictures`) are not
    meant.
    """

    grey_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.grey_range is not None and not self.grey_range[0] < self.grey_range[1]:
            raise ValueError(
                f'grey_range is {list(self.grey_range)}; it must be [black, white], the first '
                'below the second'
            )


def open_dataset(
    section: DatasetConfig,
    size: Sequence[int],
    channels: int = 3,
    base_dir: str | os.PathLike[str] | None = None,
    allow_code: bool = False,
    *,
    memory_limit: int = MEMORY_LIMIT,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Dataset:
    """The data set of a config section, its items of a size, (h, w) of pictures.

    base_dir: the folder of the config file (a "custom" data set is named relative to it);
    allow_code: whether that may run. A set that takes at most `memory_limit` bytes is decoded now,
    into memory; a larger one into a file in `cache_dir`, where there is one, and else picture by
    picture as it is read. `progress(done, total)` is called while pictures are decoded.
    """
    section.check_shape(tuple(size), channels)
    request = Request(
        tuple(size),
        channels,
        Path(base_dir or ''),
        allow_code,
        Path(cache_dir) if cache_dir else None,
    )
    dataset = section.open(request)
    _check_classes(section.num_classes, dataset)
    if not section.pictures:
        return dataset
    dataset = decode_once(dataset, memory_limit, cache_dir, progress)
    dataset.notes += range_notes(dataset)
    return dataset


def _check_classes(wanted: int, dataset: Dataset) -> None:
    if wanted and not dataset.num_classes:
        raise ValueError(
            f'dataset.num_classes is {wanted}, but {dataset.source} has no classes; set it to 0, '
            'or, for a folder '
            'whose subfolders are the classes, set dataset.labels to "folders"'
        )
    if wanted and dataset.num_classes > wanted:
        raise ValueError(
            f'dataset.num_classes is {wanted}, but {dataset.source} has {dataset.num_classes} '
            'classes; '
            f'set it to {dataset.num_classes}'
        )
