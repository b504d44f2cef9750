"""Data given from Python, tensors and data sets of torch, for the stream of training batches."""

from __future__ import annotations

import itertools
import random
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor
from torch.utils.data import TensorDataset, default_collate

from ..core.arguments import show_value
from ..core.devices import send
from ..core.images import from_bytes
from ..core.random import derive_seed
from .datasets import Dataset
from .opening import DATASETS, DatasetConfig, Request
from .reading import read_items

Item = dict[str, Any]


@DATASETS.register('python')
@dataclass(kw_only=True)
class PythonDataConfig(DatasetConfig):
    """The "dataset" section that training writes for data given to `K.train(dataset=...)`."""

    type: Literal['python'] = 'python'

    def open(self, request: Request) -> NoReturn:
        """Raise a ValueError that explains how to pass the data.

        Args:
            request: Not used.
        """
        raise ValueError(
            'dataset must be given for a config whose data is from Python; got none. Pass '
            'dataset=..., a tensor or a torch data set'
        )


class PythonData(Dataset):
    """Data whose items are tensors [C, ...], uint8 or float, with conditions by name.

    With `num_classes` the entry class_cond of each item is its class, which training removes at
    random for guidance. Other entries are passed to the network unchanged.

    Args:
        shape: The shape of an item.
        num_classes: The number of classes.
    """

    source = 'the data set'

    def __init__(self, shape: Sequence[int], num_classes: int = 0) -> None:
        super().__init__(tuple(shape), [str(i) for i in range(num_classes)])

    def __getitem__(self, index: int) -> Item:
        return {key: value[0] for key, value in self.read([index], [0]).items()}

    @abstractmethod
    def read(self, indices: Sequence[int], seeds: Sequence[int]) -> Item:
        """Return the items together: image [B, C, ...] and a value for each condition.

        Args:
            indices: The numbers of the items.
            seeds: A seed for each, for random numbers of the data set.
        """


class TensorData(PythonData):
    """A tensor [N, C, ...], and tensors [N, ...] of conditions.

    Args:
        images: The tensor.
        conditions: The conditions by name.
        num_classes: The number of classes.

    Raises:
        ValueError: If a condition has another number of items.
    """

    def __init__(self, images: Tensor, conditions: Mapping[str, Tensor], num_classes: int) -> None:
        super().__init__(images.shape[1:], num_classes)
        self.images, self.tensors = _numbers(images), dict(conditions)
        for key, value in self.tensors.items():
            if len(value) != len(images):
                raise ValueError(
                    f'dataset must hold as many values of {key} as items, '
                    f'{len(images)}; got {len(value)}'
                )

    def __len__(self) -> int:
        return len(self.images)

    def read(self, indices: Sequence[int], seeds: Sequence[int]) -> Item:
        """Return the items together, see PythonData.

        Args:
            indices: The numbers of the items.
            seeds: Not used.
        """
        index = torch.tensor(indices)
        return {'image': self.images[index]} | {k: v[index] for k, v in self.tensors.items()}


class MapData(PythonData):
    """A data set with __len__ and __getitem__.

    The generators of torch and Python are seeded for each item, so that random numbers of the data
    set depend only on the seed and the position of the item in the stream.

    Args:
        items: The data set.
        num_classes: The number of classes.

    Raises:
        ValueError: If it is empty.
    """

    def __init__(self, items: Any, num_classes: int) -> None:
        if not len(items):
            raise ValueError('dataset must hold at least one item; got an empty one')
        self.items = items
        super().__init__(_parts(items[0])['image'].shape, num_classes)

    def __len__(self) -> int:
        return len(self.items)

    def read(self, indices: Sequence[int], seeds: Sequence[int]) -> Item:
        """Return the items together, see PythonData.

        Args:
            indices: The numbers of the items.
            seeds: A seed for each.
        """
        before, items = random.getstate(), []
        with torch.random.fork_rng(devices=[]):
            for index, seed in zip(indices, seeds):
                torch.default_generator.manual_seed(seed)
                random.seed(seed)
                items.append(_parts(self.items[index]))
        random.setstate(before)
        return _stack(items)


class StreamData(PythonData):
    """A data set that can only be iterated; it restarts when it ends.

    Args:
        items: The data set.
        num_classes: The number of classes.

    Raises:
        TypeError: If it can only be iterated once.
        ValueError: If it is empty.
    """

    def __init__(self, items: Any, num_classes: int) -> None:
        self.items = items
        if iter(items) is items:
            raise TypeError(
                'dataset must be a data set that can be iterated repeatedly; '
                f'got {show_value(items)}, which ends after one pass'
            )
        first = next(iter(items), None)
        if first is None:
            raise ValueError('dataset must hold at least one item; got an empty one')
        super().__init__(_parts(first)['image'].shape, num_classes)

    def __len__(self) -> int:
        return 2**62

    def read(self, indices: Sequence[int], seeds: Sequence[int]) -> Item:
        """Return the items together, see PythonData.

        Args:
            indices: The numbers of the items; only their count is used.
            seeds: Not used.
        """
        return _stack([_parts(item) for item in itertools.islice(self.items, len(indices))])

    def iterate(self, first: int) -> Iterator[Item]:
        """Yield the items from a position in the stream on.

        Args:
            first: The position.

        Raises:
            ValueError: If the position is not 0 and the data set has no method `seek`.
        """
        if first and not hasattr(self.items, 'seek'):
            raise ValueError(
                'dataset must be map-style (__len__ and __getitem__) or have a method seek(n), '
                f'which skips n items, to resume a run after {first:,} items; got '
                f'{type(self.items).__name__}, which starts at its first item. Start a new run '
                'with another name'
            )
        if first:
            self.items.seek(first)
        while True:
            empty = True
            for item in self.items:
                empty = False
                yield _parts(item)
            if empty:
                raise ValueError(
                    'dataset must restart when it ends; got no more items from '
                    f'{show_value(self.items)}'
                )


class StreamLoader:
    """Endless micro-batches of one process from a `StreamData`; each item goes to one process.

    Args:
        dataset: The data set.
        batch_size: Items per process and micro-step.
        rank: The number of this process.
        world_size: The number of processes.
        grad_accum_steps: Micro-steps per optimizer step.
        device: The device of the batches.
    """

    def __init__(
        self,
        dataset: StreamData,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        grad_accum_steps: int = 1,
        device: Any = 'cpu',
    ) -> None:
        self.dataset, self.batch_size, self.rank = dataset, batch_size, rank
        self.world_size, self.device = world_size, device
        self.items_per_step = batch_size * world_size * grad_accum_steps

    def epoch(self, items: int) -> int:
        """Return 0, since the length of an epoch is unknown.

        Args:
            items: The position in the stream.
        """
        return 0

    def iterate(self, items: int = 0) -> Iterator[dict[str, Any]]:
        """Yield the micro-batches of this rank from a position in the stream on.

        Args:
            items: The position.
        """
        stream = self.dataset.iterate(items)
        for first in itertools.count(items, self.batch_size * self.world_size):
            every = list(itertools.islice(stream, self.batch_size * self.world_size))
            mine = slice(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)
            position = first + self.rank * self.batch_size
            batch = batch_of(self.dataset, _stack(every[mine]), self.device)
            yield {**batch, 'item': torch.arange(position, position + self.batch_size)}


def batch_of(dataset: PythonData, items: Item, device: Any) -> dict[str, Any]:
    """Return items as a batch of training: image, class_cond if there are classes, and cond.

    Args:
        dataset: The data set.
        items: The items together.
        device: The device of the batch.
    """
    items = {
        key: send(value, torch.device(device)) if isinstance(value, Tensor) else value
        for key, value in items.items()
    }
    image = items.pop('image')
    batch = {'image': from_bytes(image) if image.dtype == torch.uint8 else image}
    if dataset.num_classes:
        batch['class_cond'] = items.pop('class_cond').long()
    return {**batch, 'cond': items}


def as_dataset(data: Any, num_classes: int = 0) -> Dataset:
    """Return data from Python as a data set.

    Args:
        data: A tensor [N, C, ...], uint8 or float; a torch data set, map-style or iterable, or a
            sequence, of tensors, (tensor, label) or dicts with the tensor under 'image' or 'x' and
            conditions under their names; or a data set of this package.
        num_classes: The number of classes of the labels; 0 passes labels to the network unchanged.

    Raises:
        TypeError: If it is none of these.
        ValueError: If its items cannot be used.
    """
    if isinstance(data, Dataset):
        return data
    if isinstance(data, Tensor):
        data = TensorDataset(data)
    if isinstance(data, TensorDataset):
        if len(data.tensors) > 2:
            raise ValueError(
                'dataset must hold tensors and labels; '
                f'got {len(data.tensors)} tensors. Name them: use items that are dicts'
            )
        labels = {'class_cond': data.tensors[1]} if len(data.tensors) == 2 else {}
        dataset: PythonData = TensorData(data.tensors[0], labels, num_classes)
    elif hasattr(data, '__getitem__') and hasattr(data, '__len__'):
        dataset = MapData(data, num_classes)
    elif hasattr(data, '__iter__'):
        dataset = StreamData(data, num_classes)
    else:
        raise TypeError(
            f'dataset must be a tensor [N, C, ...] or a torch data set; got {show_value(data)}'
        )
    if not 1 <= len(dataset.image_shape) <= 4:
        raise ValueError(
            'dataset must hold items of shape [C, ...] with at most 3 more dimensions; '
            f'got {list(dataset.image_shape)}'
        )
    if num_classes:
        _check_classes(dataset, num_classes)
    return dataset


def measure_sigma_data(dataset: Dataset, most: int = 4096) -> float:
    """Return the standard deviation of the values of a data set.

    Args:
        dataset: The data set.
        most: The largest number of items to read.

    Raises:
        ValueError: If it is 0 or not finite.
    """
    n = min(len(dataset), most)
    if isinstance(dataset, StreamData):
        images = dataset.read(range(256), [])['image']
    elif isinstance(dataset, PythonData):
        seeds = [derive_seed(0, 'measure', i) for i in range(n)]
        images = dataset.read([i * len(dataset) // n for i in range(n)], seeds)['image']
    elif dataset.streams:
        images = read_items(dataset, dataset.order(0, 0, 0, n).tolist()).images
    else:
        images = torch.stack([dataset[i * len(dataset) // n]['image'] for i in range(n)])
    values = from_bytes(images) if images.dtype == torch.uint8 else images
    std = float(values.double().std(correction=0))
    if not 0 < std < float('inf'):
        raise ValueError(
            'sigma_data must be a number for data whose standard deviation is 0 or not finite; '
            f'got a standard deviation of {std:g}'
        )
    return std


def _check_classes(dataset: PythonData, num_classes: int) -> None:
    """Raise a ValueError if labels are missing or not below the number of classes."""
    first = dataset[0] if not isinstance(dataset, StreamData) else dataset.read([0], [])
    if 'class_cond' not in first:
        raise ValueError(f'num_classes must be 0 for items without a label; got {num_classes}')
    labels = dataset.tensors['class_cond'] if isinstance(dataset, TensorData) else None
    if labels is not None and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise ValueError(
            f'num_classes must be above all labels, which go from {int(labels.min())} '
            f'to {int(labels.max())}; got {num_classes}'
        )


def _numbers(x: Tensor) -> Tensor:
    """Return a tensor as it is stored: uint8, or float32."""
    if x.dtype == torch.uint8:
        return x
    if not x.is_floating_point():
        raise ValueError(f'dataset must hold uint8 or floating-point tensors; got {x.dtype}')
    return x.float()


def _parts(item: Any) -> Item:
    """Return an item as a dict with the entry image."""
    if isinstance(item, Mapping):
        parts = dict(item)
        key = next((key for key in ('image', 'x') if key in parts), None)
        image = None if key is None else parts.pop(key)
    elif isinstance(item, (tuple, list)) and len(item) in (1, 2):
        image, parts = item[0], dict(zip(('class_cond',), item[1:]))
    else:
        image, parts = item, {}
    if not isinstance(image, Tensor):
        raise TypeError(
            'dataset must hold tensors, (tensor, label) or dicts with the tensor under '
            f"'image' or 'x'; got {show_value(item)}"
        )
    return {'image': _numbers(image), **parts}


def _stack(items: Sequence[Item]) -> Item:
    """Return items of one shape together."""
    shapes = {tuple(item['image'].shape) for item in items}
    if len(shapes) > 1:
        raise ValueError(
            'dataset must hold items of one shape; '
            f'got {" and ".join(str(list(shape)) for shape in sorted(shapes)[:2])}'
        )
    batch: Item = default_collate(list(items))
    return batch
