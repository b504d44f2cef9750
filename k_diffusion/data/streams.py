"""Data sets that can be read in order only: rows shuffled in windows."""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..core.random import generator
from .datasets import Dataset
from .pictures import UnreadablePicture
from .reading import Batch, stack_items

#: The length of a stream, which is unknown.
ENDLESS = 2**62


class RowStream(Dataset):
    """Rows that are read in order, with each window of rows permuted by (seed, epoch, window).

    A window is held as it was read, not decoded. To start at a position, the rows of its epoch
    before it are skipped.

    Args:
        image_shape: The shape of the images.
        class_names: The classes.
        window: Number of rows that are shuffled together; 1 disables it.
    """

    streams = True

    def __init__(
        self, image_shape: tuple[int, ...], class_names: Sequence[str], window: int
    ) -> None:
        super().__init__(image_shape, class_names)
        self.window = window
        self._reading: tuple[int, Any, Iterator[Any]] | None = None

    def __len__(self) -> int:
        return ENDLESS

    @abstractmethod
    def rows(self, seed: int, epoch: int) -> Iterator[Any]:
        """Return the rows of an epoch from the first on.

        Args:
            seed: The seed of the run.
            epoch: The epoch.
        """

    @abstractmethod
    def decode(self, row: Any, index: int) -> dict[str, Any]:
        """Return a row as an item.

        Args:
            row: The row.
            index: Its index.
        """

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return a row by its index in the set; ascending indices are read in one pass."""
        if self._reading is None or index < self._reading[0]:
            self._reading = (-1, None, self.rows(0, -1))
        at, row, rest = self._reading
        if index > at:
            row = next(itertools.islice(rest, index - at - 1, None), None)
            self._reading = (index, row, rest)
        if row is None:
            raise IndexError(f'{self.source} has no row {index}')
        return self.decode(row, index)

    def order(self, seed: int, epoch: int, first: int, count: int) -> Tensor:
        """Return first, first + 1, ...: a stream is read in order.

        Args:
            seed: The seed of the run.
            epoch: The epoch.
            first: The first position.
            count: Number of positions.
        """
        return torch.arange(first, first + count)

    def batches(self, seed: int, first: int, size: int, stride: int) -> Iterator[Batch]:
        """Yield the batches of `size` items at the positions first, first + stride, ... of the run.

        Args:
            seed: The seed of the run.
            first: The first position.
            size: Number of items of a batch.
            stride: Distance of the positions.
        """
        windows = self._windows(seed, first)
        start, window = next(windows)
        for position in itertools.count(first, stride):
            items: list[dict[str, Any]] = []
            numbers: list[int] = []
            skipped: list[tuple[str, str]] = []
            for at in range(position, position + size):
                while at >= start + len(window):
                    start, window = next(windows)
                place, item = self._readable(window, at - start, start, skipped)
                items.append(item)
                numbers.append(start + place)
            yield stack_items(items, numbers, skipped)

    def _windows(self, seed: int, first: int) -> Iterator[tuple[int, list[Any]]]:
        """Yield windows of rows with their positions, from the one at a position on."""
        epoch, base, begin, rows = self._enter(seed, first)
        while True:
            for number in itertools.count(begin // self.window):
                window = list(itertools.islice(rows, self.window))
                if not window:
                    break
                mixed = torch.randperm(
                    len(window), generator=generator(seed, 'window', epoch, number)
                ).tolist()
                yield base + begin, [window[i] for i in mixed]
                begin += len(window)
            if not begin:
                raise ValueError(f'{self.source} holds no rows')
            epoch, base, begin = epoch + 1, base + begin, 0
            rows = self.rows(seed, epoch)

    def _enter(self, seed: int, first: int) -> tuple[int, int, int, Iterator[Any]]:
        """Return the epoch of a position, its start, the number of rows to skip, and the rows.

        A stream of unknown length counts as longer than the position until it has ended before it.
        """
        epoch, offset = 0, first
        for _ in range(2):
            rows, begin = self.rows(seed, epoch), offset // self.window * self.window
            count = sum(1 for _ in itertools.islice(rows, begin))
            if count == begin:
                break
            if not count:
                raise ValueError(f'{self.source} holds no rows')
            epoch, offset = divmod(first, count)
        return epoch, first - offset, begin, rows

    def _readable(
        self, window: list[Any], at: int, start: int, skipped: list[tuple[str, str]]
    ) -> tuple[int, dict[str, Any]]:
        """Return an item of a window and its position there, or the next readable one."""
        for step in range(len(window)):
            place = (at + step) % len(window)
            try:
                return place, self.decode(window[place], start + place)
            except UnreadablePicture as error:
                skipped.append((self.name(start + place), str(error)))
        name, reason = skipped[-1]
        raise ValueError(
            f'{self.source} has {len(window)} rows in a row that cannot be read (the last, '
            f'{name}: {reason}); check that they are images'
        )
