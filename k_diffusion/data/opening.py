"""Open the data set that a config section names."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ..core.registry import Registry
from .caching import MEMORY_LIMIT, DecodedPictures, decode_once
from .datasets import Dataset
from .pictures import check_frame
from .ranges import range_notes


@dataclass(frozen=True)
class Request:
    """The arguments for opening a data set.

    Attributes:
        sides: The size of the items, (height, width) for images.
        channels: The number of channels.
        base_dir: The folder of the config file.
        allow_code: Run the code that a config names.
        cache_dir: The folder for files made from the data set; None writes none.
    """

    sides: tuple[int, ...]
    channels: int
    base_dir: Path
    allow_code: bool
    cache_dir: Path | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of images."""
        height, width = self.sides
        return height, width


@dataclass(kw_only=True)
class DatasetConfig(ABC):
    """The keys that all data sets share.

    Attributes:
        image_key: Where an item holds its image: the column, by name or number, of the types
            "huggingface" and "custom".
        class_key: Where an item holds its class, likewise.
        num_classes: The number of classes that condition the model; 0 for none.
        cond_dropout_rate: The probability that training drops the class of an item.
        class_names: Their names, which training writes into the config of its checkpoints.
    """

    #: True for images in [-1, 1]; samples of other data sets are tensors in the units of the data.
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
        """Raise ValueError for a size or a number of channels that images cannot have.

        Does nothing for data sets whose items are not images.

        Args:
            size: The size of the items.
            channels: The number of channels.
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
        """Return the data set, decoded now or image by image.

        Args:
            request: Size, channels, folders and permissions.
        """

    def test_split(self) -> DatasetConfig | None:
        """Return the section of the test split that comes with a training split, if any."""
        return None


#: The "type" of a config's dataset section -> its dataclass.
DATASETS: Registry[type[DatasetConfig]] = Registry('dataset type')


@dataclass(kw_only=True)
class LocatedConfig(DatasetConfig):
    """The keys of data sets with a location.

    Attributes:
        location: A folder or file, relative to the current folder (~ is the home folder), or a
            name.
    """

    location: str = ''

    def place(self) -> Path:
        """Return the location as a path."""
        return Path(self.require_location()).expanduser()

    def require_location(self) -> str:
        """Return the location as the config gives it.

        Raises:
            ValueError: If it is missing; sampling from a checkpoint does not need it.
        """
        if not self.location:
            raise ValueError(
                f'dataset.location is missing; the dataset type {self.type!r} needs it to find '
                'its images'
            )
        return self.location


@dataclass(kw_only=True)
class PictureConfig(LocatedConfig):
    """The keys of data sets that read image files.

    Attributes:
        grey_range: The values of black and white in grey images of one channel, for example
            [0, 4095] for 12 bits in a 16-bit file; by default the range of the file type (see
            `pictures`).
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
    decoded: DecodedPictures | None = None,
) -> Dataset:
    """Return the data set of a config section, with its items at a given size.

    A data set of at most `memory_limit` bytes is decoded into memory now. A larger one is decoded
    into a file in `cache_dir`, or without one image by image as it is read.

    Args:
        section: The dataset section of a config.
        size: The size of the items, (height, width) for images.
        channels: The number of channels.
        base_dir: The folder of the config file, to which names of a "custom" data set are relative.
        allow_code: Run the code that a "custom" data set names.
        memory_limit: The limit for decoding into memory, in bytes.
        cache_dir: The folder of decoded files; None writes none.
        progress: Called as progress(done, total) while images are decoded.
        decoded: Images that were decoded before, which are used if they are those of the data set.

    Returns:
        The data set.

    Raises:
        ValueError: If the section does not fit the data set, the size or the channels.
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
    dataset = decode_once(dataset, memory_limit, cache_dir, progress, decoded)
    dataset.notes += range_notes(dataset)
    return dataset


def _check_classes(num_classes: int, dataset: Dataset) -> None:
    if num_classes and not dataset.num_classes:
        raise ValueError(
            f'dataset.num_classes is {num_classes}, but {dataset.source} has no classes; '
            'set it to 0, or, for a folder whose subfolders are the classes, set '
            'dataset.labels to "folders"'
        )
    if num_classes and dataset.num_classes > num_classes:
        raise ValueError(
            f'dataset.num_classes is {num_classes}, but {dataset.source} has {dataset.num_classes} '
            'classes; '
            f'set it to {dataset.num_classes}'
        )
