"""The stream of training batches, a function of the data, the seed and the position only.

Item p of the stream is item p % N of the order of the data set in epoch p // N, by default
`permutation(seed, p // N, N)`. Its augmentation is drawn from (seed, p). An optimizer step takes
the next batch_size * world_size * grad_accum_steps items: its micro-step m on rank r takes
batch_size of them from base + (m * world_size + r) * batch_size on. The number of workers, an
interruption, and the distribution of a step over processes and micro-steps do not change the items
of a step.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import torch
from torch import Tensor

from ..augmentation import BatchedAugmentation
from ..core.devices import send
from ..core.draws import Draws
from ..core.images import from_bytes
from ..core.random import derive_seed
from .datasets import Dataset, permutation
from .python import PythonData, batch_of
from .reading import Batch, read
from .streams import RowStream


class Loader:
    """Endless micro-batches of one process.

    A batch is a dict. On the device: image float32 [B, C, H, W] in [-1, 1], and, if the data set
    has them, class_cond int64 [B] and aug_cond float32 [B, 9]. On the CPU: text, a list of B
    strings, if the data set has them; item int64 [B], the positions in the stream; and index [B],
    the numbers of the items in the data set. An unreadable item is replaced by the next one, with
    its own number and class.

    Args:
        dataset: The data set.
        batch_size: Items per process and micro-step.
        seed: The seed of the order and the augmentation.
        rank: The number of this process.
        world_size: The number of processes.
        grad_accum_steps: Micro-steps per optimizer step.
        augmentation: The augmentation.
        num_workers: Processes that decode items; 0 decodes in this process.
        start_method: How they start: spawn, fork or forkserver; None takes forkserver on Linux,
            where workers share the memory of torch, else spawn.
        device: The device of the batches.
        worker_timeout: Seconds without an answer after which a worker counts as hanging.
        item_indices: The indices of the items that are used; None uses all.
        draws: The random draws for an item; None uses the newest version.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        grad_accum_steps: int = 1,
        augmentation: BatchedAugmentation | None = None,
        num_workers: int = 0,
        start_method: str | None = None,
        device: Any = 'cpu',
        worker_timeout: float | None = None,
        item_indices: Tensor | None = None,
        draws: Draws | None = None,
    ) -> None:
        self.dataset, self.batch_size, self.seed = dataset, batch_size, seed
        self.rank, self.world_size, self.grad_accum_steps = rank, world_size, grad_accum_steps
        self.augmentation, self.num_workers, self.start_method, self.device = (
            augmentation,
            num_workers,
            start_method,
            torch.device(device),
        )
        self.worker_timeout, self.item_indices, self.draws = (
            worker_timeout,
            item_indices,
            draws or Draws(seed),
        )
        self.n_items = len(dataset) if item_indices is None else len(item_indices)
        self._reported_skips = set(dataset.skipped)
        self.items_per_step = batch_size * world_size * grad_accum_steps
        self._check()

    def _check(self) -> None:
        """Raise a ValueError if an argument is out of its range."""
        for name in ('batch_size', 'world_size', 'grad_accum_steps'):
            if getattr(self, name) < 1:
                raise ValueError(f'{name} must be >= 1; got {getattr(self, name)}')
        if self.num_workers < 0:
            raise ValueError(
                'num_workers must be >= 0 (0 reads the items in this process); got '
                f'{self.num_workers}'
            )
        if not 0 <= self.rank < self.world_size:
            raise ValueError(
                f'rank must be from 0 to {self.world_size - 1} with world_size '
                f'{self.world_size}; got {self.rank}'
            )
        if self.n_items < self.items_per_step:
            raise ValueError(
                f'{self.dataset.source} has {self.n_items} images, fewer than the '
                f'{self.items_per_step} of one step '
                f'(batch size {self.batch_size} x {self.world_size} processes x '
                f'{self.grad_accum_steps} accumulation steps); '
                'lower the batch size or add images'
            )

    def epoch(self, items: int) -> int:
        """Return the epoch of a position, from 0.

        Args:
            items: The position in the stream.
        """
        return items // self.n_items

    def indices(self, position: int) -> Tensor:
        """Return the numbers of the batch_size items from a position on: int64 [B].

        Args:
            position: The position in the stream.
        """
        epoch, offset = divmod(position, self.n_items)
        numbers = self._order(epoch, offset, min(self.batch_size, self.n_items - offset))
        missing = self.batch_size - len(numbers)
        return torch.cat([numbers, self._order(epoch + 1, 0, missing)]) if missing else numbers

    def _order(self, epoch: int, first: int, count: int) -> Tensor:
        """Return the numbers of `count` items of an epoch from `first` on: int64 [count]."""
        if self.item_indices is None:
            return self.dataset.order(self.seed, epoch, first, count)
        return self.item_indices[permutation(self.seed, epoch, self.n_items)[first : first + count]]

    def iterate(self, items: int = 0) -> Iterator[dict[str, Any]]:
        """Yield the micro-batches of this rank from a position in the stream on.

        With a GPU each one is prepared while the previous one is in use. On the CPU it is prepared
        on request, since a second thread would slow the training down there.

        Args:
            items: The position.
        """
        with closing(self._batches(items + self.rank * self.batch_size)) as batches:
            yield from batches if self.device.type == 'cpu' else _prefetch(batches)

    def _batches(self, first: int) -> Generator[dict[str, Any], None, None]:
        """Yield the micro-batches whose first item is at `first`, and so on."""
        positions = range(first, 2**63, self.batch_size * self.world_size)
        if isinstance(self.dataset, PythonData):
            yield from map(self._from_python, positions)
            return
        if isinstance(self.dataset, RowStream):
            rows = self.dataset.batches(
                self.seed, first, self.batch_size, self.batch_size * self.world_size
            )
            for position, batch in zip(positions, rows):
                self._note(batch.skipped)
                yield self._prepare(position, batch)
            return
        with closing(
            read(
                self.dataset,
                map(self.indices, positions),
                self.num_workers,
                self.start_method,
                self.worker_timeout,
            )
        ) as batches:
            for position, batch in zip(positions, batches):
                self._note(batch.skipped)
                yield self._prepare(position, batch)

    def _from_python(self, position: int) -> dict[str, Any]:
        """Read the batch at a position from data given from Python."""
        if not isinstance(self.dataset, PythonData):
            raise TypeError(
                f'dataset must be data given from Python; got {type(self.dataset).__name__}'
            )
        positions, index = range(position, position + self.batch_size), self.indices(position)
        seeds = [derive_seed(self.seed, 'data', p) for p in positions]
        batch = batch_of(self.dataset, self.dataset.read(index.tolist(), seeds), self.device)
        return {**batch, 'item': torch.tensor(positions), 'index': index}

    def _note(self, skipped: list[tuple[str, str]]) -> None:
        """Record unreadable items of the data set."""
        new = [entry for entry in dict.fromkeys(skipped) if entry not in self._reported_skips]
        self._reported_skips.update(new)
        self.dataset.skipped += new

    def _prepare(self, position: int, batch: Batch) -> dict[str, Any]:
        """Send a batch to the device and augment it."""
        positions = range(position, position + self.batch_size)
        images, items = send(batch.images, self.device), torch.tensor(positions)
        result: dict[str, Any] = {'item': items, 'index': batch.numbers}
        if self.augmentation is not None and images.dtype != torch.uint8:
            raise ValueError(
                f'model.augment_prob must be 0 for arrays of {images.dtype}, which cannot be '
                f'augmented like images; got such arrays in {self.dataset.source}'
            )
        if self.augmentation is None:
            # Latents are floating-point numbers already.
            result['image'] = from_bytes(images) if images.dtype == torch.uint8 else images
        else:
            result['image'], result['aug_cond'] = self._augment(self.augmentation, images, items)
        if batch.labels is not None:
            result['class_cond'] = send(batch.labels, self.device)
        if batch.texts is not None:
            result['text'] = batch.texts
        return result

    def _augment(
        self, augmentation: BatchedAugmentation, images: Tensor, items: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the augmented images and their conditions."""
        if self.draws.version == 1:
            return augmentation(
                images, [derive_seed(self.seed, 'augment', p) for p in items.tolist()]
            )
        return augmentation.apply(
            images, augmentation.numbers(self.draws.uniform(items, 13, 'augment'))
        )


def _prefetch(batches: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Prepare each batch in a thread while the previous one is in use."""
    with ThreadPoolExecutor(1) as thread:
        future = thread.submit(next, batches)
        while True:
            batch = future.result()
            future = thread.submit(next, batches)
            yield batch
