"""The order of the samples of shards in an epoch, computed for any position.

An epoch concatenates the shards in an order drawn from (seed, epoch), cuts the row of samples into
windows of `window` and permutes each window by a generator of (seed, epoch, window). The sample at
a position is therefore known without those before it, and does not depend on workers, processes or
a resume. A window has the effect of a shuffle buffer; the cuts differ between epochs.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate

import torch
from torch import Tensor

from ...core.random import derive_seed, generator
from ..datasets import permutation


class ShardOrder:
    """Sample indices by position in an epoch; samples are numbered shard by shard.

    Args:
        counts: Number of samples of each shard.
        window: Number of samples that are shuffled together; 1 disables it.
    """

    def __init__(self, counts: Sequence[int], window: int) -> None:
        self.starts = torch.tensor([0, *accumulate(counts)])
        self.total, self.window = int(self.starts[-1]), window
        self._rows = lru_cache(maxsize=2)(self._row)
        self._windows = lru_cache(maxsize=4)(self._permute)

    def __reduce__(self) -> tuple[type[ShardOrder], tuple[list[int], int]]:
        return ShardOrder, (self.starts.diff().tolist(), self.window)

    def indices(self, seed: int, epoch: int, first: int, count: int) -> Tensor:
        """Return the indices of the samples at positions of an epoch, int64 [count].

        Args:
            seed: The seed of the run.
            epoch: The epoch, from 0.
            first: The first position, from 0.
            count: Number of positions; first + count is at most the number of samples.
        """
        parts = []
        while count > 0:
            start, samples = self._windows(seed, epoch, self._window_at(seed, epoch, first))
            parts.append(samples[first - start : first - start + count])
            first, count = first + len(parts[-1]), count - len(parts[-1])
        return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64)

    def shards_ahead(self, seed: int, epoch: int, first: int) -> list[int]:
        """Return the shards in the window of a position and in the next one, in order.

        Args:
            seed: The seed of the run.
            epoch: The epoch.
            first: The position.
        """
        number = self._window_at(seed, epoch, first)
        order, ends = self._rows(seed, epoch)
        start, _ = self._bounds(seed, epoch, number)
        _, end = self._bounds(seed, epoch, number + 1)
        shards = torch.searchsorted(ends, torch.tensor([start, max(start, end - 1)]), right=True)
        low, high = shards.clamp(max=len(order) - 1).tolist()
        return order[low : high + 1].tolist()

    def locate(self, index: int) -> tuple[int, int]:
        """Return the shard of a sample and its index there.

        Args:
            index: The index of the sample.
        """
        shard = int(torch.searchsorted(self.starts, index, right=True)) - 1
        return shard, index - int(self.starts[shard])

    def _phase(self, seed: int, epoch: int) -> int:
        """Return the number of missing samples of the first window."""
        if self.window >= self.total:
            return 0
        return derive_seed(seed, 'phase of windows', epoch) % self.window

    def _window_at(self, seed: int, epoch: int, position: int) -> int:
        return (position + self._phase(seed, epoch)) // self.window

    def _bounds(self, seed: int, epoch: int, number: int) -> tuple[int, int]:
        start = number * self.window - self._phase(seed, epoch)
        return max(0, min(start, self.total)), min(start + self.window, self.total)

    def _row(self, seed: int, epoch: int) -> tuple[Tensor, Tensor]:
        """Return the shards in the order of an epoch, and the end of each in the row of samples."""
        order = permutation(seed, epoch, len(self.starts) - 1)
        return order, self.starts.diff()[order].cumsum(0)

    def _permute(self, seed: int, epoch: int, number: int) -> tuple[int, Tensor]:
        """Return the first position of a window, and its samples in order."""
        start, end = self._bounds(seed, epoch, number)
        order, ends = self._rows(seed, epoch)
        places = start + torch.randperm(
            end - start, generator=generator(seed, 'window', epoch, number)
        )
        rows = torch.searchsorted(ends, places, right=True)
        shards = order[rows]
        begins = ends[rows] - self.starts.diff()[shards]
        return start, self.starts[shards] + places - begins
