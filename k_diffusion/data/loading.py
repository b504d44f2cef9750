"""The stream of training batches: a function of the data, the seed and the position in it, and of
nothing else.

Item p of the stream is picture number p % N of the order that the data set has in epoch p // N, by
default `permutation(seed, p // N, N)`, augmented by draws of (seed, p). An optimizer step
takes the next batch_size * world_size * grad_accum_steps items, so that its micro-step m on rank r
takes batch_size of them from base + (m * world_size + r) * batch_size on. Neither workers nor a
pause can change anything, and how the items of a step are spread over processes and micro-steps
changes only who takes them.
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

    A batch is a dict: image float32 [B, C, H, W] in [-1, 1] and, where there are, class_cond int64
    [B] and aug_cond float32 [B, 9], on the device; text, a list of B texts, where there are; on the
    CPU item int64 [B], the positions in the stream, and index [B], which pictures they are. (In
    place of an unreadable picture stands the next, with its own number and class.)
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,  # per process and micro-step
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        grad_accum_steps: int = 1,
        augmentation: BatchedAugmentation | None = None,
        num_workers: int = 0,  # processes that decode what is not decoded yet; 0: this one does
        start_method: str = 'spawn',  # how they start: spawn, fork or forkserver
        device: Any = 'cpu',
        worker_timeout: float | None = None,  # seconds until they count as hanging
        kept: Tensor | None = None,  # the numbers of the items that are used; None: all
        draws: Draws | None = None,  # what is drawn for an item; None: the newest way
    ) -> None:
        self.dataset, self.batch_size, self.seed = dataset, batch_size, seed
        self.rank, self.world_size, self.grad_accum_steps = rank, world_size, grad_accum_steps
        self.augmentation, self.num_workers, self.start_method, self.device = (
            augmentation,
            num_workers,
            start_method,
            torch.device(device),
        )
        self.worker_timeout, self.kept, self.draws = worker_timeout, kept, draws or Draws(seed)
        self.n_items = len(dataset) if kept is None else len(kept)
        self._noted = set(dataset.skipped)
        self.items_per_step = batch_size * world_size * grad_accum_steps
        self._check()

    def _check(self) -> None:
        for name in ('batch_size', 'world_size', 'grad_accum_steps'):
            if getattr(self, name) < 1:
                raise ValueError(f'{name} is {getattr(self, name)}; it must be at least 1')
        if self.num_workers < 0:
            raise ValueError(
                f'num_workers is {self.num_workers}; it must be at least 0 (0: this process reads '
                'the pictures)'
            )
        if not 0 <= self.rank < self.world_size:
            raise ValueError(
                f'rank is {self.rank}; with a world_size of {self.world_size} it must be from 0 '
                f'to {self.world_size - 1}'
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
        """The epoch that the item at a position belongs to, from 0."""
        return items // self.n_items

    def indices(self, position: int) -> Tensor:
        """Which pictures the batch_size items from a position on are: int64 [B]."""
        epoch, offset = divmod(position, self.n_items)
        chosen = self._order(epoch, offset, min(self.batch_size, self.n_items - offset))
        missing = self.batch_size - len(chosen)
        return torch.cat([chosen, self._order(epoch + 1, 0, missing)]) if missing else chosen

    def _order(self, epoch: int, first: int, count: int) -> Tensor:
        """Which items stand at `count` positions of an epoch from `first` on, int64 [count]."""
        if self.kept is None:
            return self.dataset.order(self.seed, epoch, first, count)
        return self.kept[permutation(self.seed, epoch, self.n_items)[first : first + count]]

    def iterate(self, items: int = 0) -> Iterator[dict[str, Any]]:
        """The micro-batches of this rank from the position `items` of the stream on.

        Beside an accelerator each is made while the one before is in use; on the CPU, when it is
        asked for, since a second thread that computes there takes more from the training than it
        gives.
        """
        with closing(self._batches(items + self.rank * self.batch_size)) as batches:
            yield from batches if self.device.type == 'cpu' else _ahead(batches)

    def _batches(self, first: int) -> Generator[dict[str, Any], None, None]:
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
                yield self._finished(position, batch)
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
                yield self._finished(position, batch)

    def _from_python(self, position: int) -> dict[str, Any]:
        """The batch at a position of data given from Python, which this process reads."""
        if not isinstance(self.dataset, PythonData):
            raise TypeError(
                'only data given from Python is read so; this is an error of the program'
            )
        positions, index = range(position, position + self.batch_size), self.indices(position)
        seeds = [derive_seed(self.seed, 'data', p) for p in positions]
        batch = batch_of(self.dataset, self.dataset.read(index.tolist(), seeds), self.device)
        return {**batch, 'item': torch.tensor(positions), 'index': index}

    def _note(self, skipped: list[tuple[str, str]]) -> None:
        new = [entry for entry in dict.fromkeys(skipped) if entry not in self._noted]
        self._noted.update(new)
        self.dataset.skipped += new

    def _finished(self, position: int, batch: Batch) -> dict[str, Any]:
        positions = range(position, position + self.batch_size)
        images, items = send(batch.images, self.device), torch.tensor(positions)
        result: dict[str, Any] = {'item': items, 'index': batch.numbers}
        if self.augmentation is not None and images.dtype != torch.uint8:
            raise ValueError(
                f'model.augment_prob must be 0, since {self.dataset.source} holds arrays of '
                f'{images.dtype}, '
                'which cannot be turned and stretched as pictures can'
            )
        if self.augmentation is None:
            result['image'] = (
                from_bytes(images) if images.dtype == torch.uint8 else images
            )  # latents are numbers already
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
        if self.draws.version == 1:
            return augmentation(
                images, [derive_seed(self.seed, 'augment', p) for p in items.tolist()]
            )
        return augmentation.apply(
            images, augmentation.numbers(self.draws.uniform(items, 13, 'augment'))
        )


def _ahead(batches: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The same, each made by a thread while the one before is in use."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, batches)
        while True:
            batch = coming.result()
            coming = thread.submit(next, batches)
            yield batch
