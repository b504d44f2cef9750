"""Data sets of .npy, .safetensors and .pt files of sequences, fields and volumes.

A file holds one item [C, ...] or a stack of items [N, C, ...]; the number of spatial axes is the
model's. .npy and .safetensors files are mapped into memory; a .pt file is read whole and kept.
Nothing in a file is executed.
"""

from __future__ import annotations

import copy
import os
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..core.names import escape_name
from ..core.random import derive_seed
from .arrays import ENDINGS, ArrayFile, open_array
from .opening import DATASETS, LocatedConfig, Request
from .python import Item, PythonData

#: Number of items, evenly spaced, from which larger data sets are measured.
MEASURED = 4096
#: Integers of these types fill their range, as audio and images do; for others the range must be
#: given.
_RANGED = (torch.uint8, torch.int8, torch.int16, torch.uint16)


@DATASETS.register('tensors')
@dataclass(kw_only=True)
class TensorsConfig(LocatedConfig):
    """Files of tensors, with their scaling: the model's values are (value - mean) / std.

    Attributes:
        key: The name of the tensor, in files with several.
        labels: "folders", a file beside the data, or a tensor in its files.
        range: The values that become -1 and 1.
        standardize: Measure mean and std of each channel.
        mean: One number, or one for each channel; training fills it in.
        std: One number, or one for each channel; training fills it in.
        crop: Crop items larger than the model's input.
        flip: Spatial axes, from 0, along which half of the items are flipped.
    """

    pictures: ClassVar[bool] = False

    type: Literal['tensors'] = 'tensors'
    key: str | None = None
    labels: str | None = None
    range: tuple[float, float] | None = None
    standardize: bool = False
    mean: list[float] | None = None
    std: list[float] | None = None
    crop: Literal['random', 'centre'] | None = None
    flip: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.range is not None and not self.range[0] < self.range[1]:
            raise ValueError(
                f'range must be [low, high] in ascending order; got {list(self.range)}'
            )
        if (self.mean is None) != (self.std is None):
            raise ValueError('mean and std must be given together; got one of them')
        if self.range is not None and self.standardize:
            raise ValueError('range and standardize must not both be given; remove one of them')
        if self.std is not None and (min(self.std) <= 0 or len(self.std) != len(self.mean or [])):
            raise ValueError(
                f'mean and std must have as many numbers, with std > 0; got {self.mean} '
                f'and {self.std}'
            )
        if (
            self.range is not None
            and self.mean is not None
            and (self.mean, self.std) != _scaling_of(self.range)
        ):
            raise ValueError(
                f'mean and std must be {_scaling_of(self.range)} for the range '
                f'{list(self.range)}; remove them'
            )

    def open(self, request: Request) -> TensorFiles:
        """Open the data set, and measure its scaling if requested.

        Args:
            request: The sides and channels of the items.
        """
        return TensorFiles(self, request)


class TensorFiles(PythonData):
    """The items of files of tensors, scaled float32 [C, ...].

    Attributes:
        mean: A list of one number, or one for each channel; None for unscaled values.
        std: Like mean.
        labels: The classes [N], or None.
    """

    def __init__(self, section: TensorsConfig, request: Request) -> None:
        place = section.place()
        size, channels = request.sides, request.channels
        if any(axis not in range(len(size)) for axis in section.flip):
            raise ValueError(
                f'dataset.flip must hold spatial axes from 0 to {len(size) - 1}; got {section.flip}'
            )
        super().__init__((channels, *size))
        self.source = escape_name(place)
        self.crop, self.flip, self.names = section.crop, list(section.flip), None
        self.files = [open_array(path, section.key) for path in _find_files(place, section.labels)]
        self.stacked = [self._is_stack(file) for file in self.files]
        counts = [
            file.shape[0] if is_stack else 1 for file, is_stack in zip(self.files, self.stacked)
        ]
        self.ends = list(accumulate(counts))
        if len({file.dtype for file in self.files}) > 1:
            kinds = ' and '.join(
                sorted({str(file.dtype).removeprefix('torch.') for file in self.files})[:2]
            )
            raise ValueError(
                f'the files of {self.source} must hold numbers of one type; got {kinds}: convert '
                'them'
            )
        self.labels = self._read_labels(place, section, counts)
        self.mean, self.std = self._find_scaling(section)

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, index: int) -> Item:
        return {
            key: value[0]
            for key, value in self.read([index], [derive_seed(0, 'item', index)]).items()
        }

    def name(self, index: int) -> str:
        """Return the file of an item, and its row in a stack.

        Args:
            index: Its index.
        """
        file, row = self._locate(index)
        return escape_name(file.path) if row is None else f'{escape_name(file.path)}[{row}]'

    def fingerprint(self) -> str:
        """Return a text that changes with the files."""
        return repr([(file.path.name, file.stamp) for file in self.files])

    def read(self, indices: Sequence[int], seeds: Sequence[int]) -> Item:
        """Return items together, cropped and flipped by their seeds.

        Args:
            indices: The indices of the items.
            seeds: A seed for each.
        """
        items: Item = {
            'image': torch.stack([self._item(index, seed) for index, seed in zip(indices, seeds)])
        }
        return (
            items
            if self.labels is None
            else items | {'class_cond': self.labels[torch.tensor(indices)]}
        )

    def without_scale(self) -> TensorFiles:
        """Return the same data set in the units of its files."""
        other = copy.copy(self)
        other.mean = other.std = None
        return other

    def _item(self, index: int, seed: int) -> Tensor:
        x = self._raw(index)
        generator = torch.Generator().manual_seed(seed)
        size = self.image_shape[1:]
        draws = torch.rand(2, len(size), generator=generator).tolist()
        if self.crop is not None:
            shares = draws[0] if self.crop == 'random' else [0.5] * len(size)
            for axis, (length, share) in enumerate(zip(size, shares), 1):
                x = x.narrow(
                    axis,
                    min(int((x.shape[axis] - length + 1) * share), x.shape[axis] - length),
                    length,
                )
        axes = [axis + 1 for axis in self.flip if draws[1][axis] < 0.5]
        x = x.flip(axes) if axes else x
        if self.mean is None or self.std is None:
            return x.float()
        return scale(x, self.mean, self.std)

    def _raw(self, index: int) -> Tensor:
        """Return an item [C, ...] unscaled."""
        file, row = self._locate(index)
        return file.read(row).view(self.image_shape[0], *file.shape[-len(self.image_shape) + 1 :])

    def _locate(self, index: int) -> tuple[ArrayFile, int | None]:
        if not 0 <= index < len(self):
            raise IndexError(f'index must be from 0 to {len(self) - 1}; got {index}')
        number = bisect_right(self.ends, index)
        first = self.ends[number - 1] if number else 0
        return self.files[number], index - first if self.stacked[number] else None

    def _is_stack(self, file: ArrayFile) -> bool:
        """Return True if a file holds several items; refuse shapes that fit no item."""
        channels, *size = self.image_shape
        dims, shape = len(size), file.shape
        leading, sides = shape[:-dims], shape[-dims:]
        one = leading == (channels,) or (channels == 1 and leading == ())
        many = (len(leading) == 2 and leading[1] == channels) or (
            channels == 1 and len(leading) == 1
        )
        if not (one or many) or len(shape) < dims or 0 in shape:
            raise ValueError(
                f'{escape_name(file.path)} must hold an item {self._pattern("")} or a stack '
                f'{self._pattern("N")} for the {channels} channels and dims {dims} of the model; '
                f'got shape {list(shape)}'
            )
        if list(sides) != size and (self.crop is None or any(a < b for a, b in zip(sides, size))):
            fix = (
                'set dataset.crop to crop them, or model.input_size'
                if all(a >= b for a, b in zip(sides, size))
                else 'pad them, or set model.input_size'
            )
            raise ValueError(
                f'{escape_name(file.path)} must hold items with the sides {size} of '
                f'model.input_size; got {list(sides)}: {fix}'
            )
        return not one

    def _pattern(self, first: str) -> str:
        sides = 'L' if len(self.image_shape) == 2 else 'DHW'[4 - len(self.image_shape) :]
        return f'[{", ".join([*first, "C", *sides])}]'

    def _find_scaling(
        self, section: TensorsConfig
    ) -> tuple[list[float] | None, list[float] | None]:
        dtype = self.files[0].dtype
        if section.mean is not None:
            if len(section.mean) not in (1, self.image_shape[0]):
                raise ValueError(
                    f'dataset.mean must have one number, or one for each of {self.image_shape[0]} '
                    f'channels; got {len(section.mean)}'
                )
            return section.mean, section.std
        if section.standardize:
            return measure_channels(self)
        if section.range is not None:
            return _scaling_of(section.range)
        if dtype.is_floating_point:
            return None, None
        if dtype not in _RANGED:
            raise ValueError(
                f'dataset.range must be given for {str(dtype).removeprefix("torch.")}, [low, '
                'high] of the values, or dataset.standardize'
            )
        limits = torch.iinfo(dtype)
        return _scaling_of((limits.min, limits.max))

    def _read_labels(
        self, place: Path, section: TensorsConfig, counts: Sequence[int]
    ) -> Tensor | None:
        if section.labels is None:
            return None
        beside = _beside(place, section.labels)
        if section.labels == 'folders':
            if place.is_file() or any(file.path.parent == place for file in self.files):
                raise ValueError(
                    f'dataset.labels must not be "folders" unless all files of {self.source} are '
                    'in '
                    'folders of their classes'
                )
            names = [file.path.relative_to(place).parts[0] for file in self.files]
            class_names = sorted(set(names))
            self.class_names = [escape_name(name) for name in class_names]
            return torch.tensor(
                [class_names.index(name) for name, n in zip(names, counts) for _ in range(n)]
            )
        sources = (
            [open_array(beside)]
            if beside.is_file()
            else [open_array(file.path, section.labels) for file in self.files]
        )
        labels = torch.cat([file.read(None).reshape(-1) for file in sources])
        if labels.is_floating_point() or len(labels) != len(self) or labels.long().min() < 0:
            raise ValueError(
                f'dataset.labels must name integers from 0 on, one for each of {len(self)} items; '
                f'got {len(labels)} of {str(labels.dtype).removeprefix("torch.")}, the least '
                f'{labels.min().item():g}'
            )
        self.class_names = [str(i) for i in range(max(section.num_classes, int(labels.max()) + 1))]
        return labels.long()


def scale(x: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return (x - mean) / std in float32; wide types are converted after the subtraction.

    Args:
        x: [C, ...].
        mean: One number, or one for each channel.
        std: Like mean.
    """
    wide = torch.float64 if x.dtype in (torch.float64, torch.int32, torch.int64) else torch.float32
    shape = [-1] + [1] * (x.ndim - 1)
    centre, width = (torch.tensor(values, dtype=wide).view(shape) for values in (mean, std))
    return ((x.to(wide) - centre) / width).float()


def restore(x: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return samples [B, C, ...] in the units of the data, the inverse of `scale`.

    Args:
        x: The samples.
        mean: One number, or one for each channel.
        std: Like mean.
    """
    shape = [-1] + [1] * (x.ndim - 2)
    return x * x.new_tensor(std).view(shape) + x.new_tensor(mean).view(shape)


def measure_channels(dataset: TensorFiles) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of each channel, from at most MEASURED items.

    The deviation of a constant channel is 1.

    Args:
        dataset: The data set.

    Raises:
        ValueError: If a value is not finite.
    """
    n = min(len(dataset), MEASURED)
    moments = torch.zeros(2, dataset.image_shape[0], dtype=torch.float64)
    count = 0
    for i in range(n):
        index = i * len(dataset) // n
        x = dataset._raw(index).flatten(1).double()
        if not x.isfinite().all():
            raise ValueError(f'{dataset.name(index)} must hold finite numbers; got NaN or infinity')
        # The running mean and sum of squared deviations of Chan et al. (1979), which do not cancel.
        old, mean = moments[0].clone(), x.mean(1)
        total = count + x.shape[1]
        moments[0] += (mean - old) * x.shape[1] / total
        moments[1] += (x - mean[:, None]).square().sum(1) + (mean - old).square() * count * x.shape[
            1
        ] / total
        count = total
    std = (moments[1] / count).sqrt()
    return moments[0].tolist(), torch.where(std > 0, std, 1.0).tolist()


def _scaling_of(limits: tuple[float, float]) -> tuple[list[float], list[float]]:
    """Return the mean and std that map a range to [-1, 1]."""
    low, high = limits
    return [(low + high) / 2], [(high - low) / 2]


def _find_files(place: Path, labels: str | None) -> list[Path]:
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise FileNotFoundError(
            f'no data at {place}; dataset.location must be a file or folder of {", ".join(ENDINGS)}'
        )
    left_out = _beside(place, labels) if labels else None
    paths = [path for path in _walk(place) if path != left_out]
    if not paths:
        raise ValueError(f'{place} must hold files of tensors ({", ".join(ENDINGS)}); got none')
    return paths


def _walk(folder: Path) -> Iterable[Path]:
    """Yield the files of tensors below a folder in the order of their names as text."""
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.name.startswith('.'):
            continue
        if entry.is_dir():
            yield from _walk(Path(entry.path))
        elif Path(entry.name).suffix in ENDINGS:
            yield Path(entry.path)


def _beside(place: Path, name: str) -> Path:
    return (place if place.is_dir() else place.parent) / name
