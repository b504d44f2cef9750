"""A Brownian path that remembers nothing but its seed: every value is drawn when asked for, the same one each time."""
from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..core.random import derive_seed, randn_items

DEPTH = 10                # halvings between (0, inf) and a cell
CELLS = 2 ** DEPTH
CELLS_PER_OCTAVE = 16     # cells of 4.4 % of the time from 2^-32 to 2^32, and one to either side
POINTS = 4                # asked-for values that are kept


class Point(NamedTuple):
    """A time and W there."""
    time: float
    value: Tensor


class BrownianPath:
    """W(time) [B, ...] for every time >= 0: W(0) = 0, increments independent and of variance their length.

    Its nodes lie at the powers of 2^(1/16). Halving (0, inf) in the node's number leads in 10 levels to the cell around a time,
    each node drawn given the two around it (a Brownian bridge) by a generator seeded with its number; a time within the cell is
    drawn given the cell's ends, by one seeded with the cell. So W there is a function of the seeds alone, and continuous.
    Of several times in one cell the later asked are drawn given the earlier, as long as these are kept: any two times, however
    close, differ by an increment of the right variance.
    The nodes on the way to the last cell are kept, so a walk draws only what lies below the fork of two ways: some four a step.
    """

    def __init__(self, x: Tensor, seeds: Sequence[int]) -> None:
        self._like = x.new_empty(0, dtype=torch.promote_types(x.dtype, torch.float32))
        self._shape, self._seeds = x.shape[1:], seeds
        self._origin = Point(0., self._like.new_zeros(x.shape))
        self._nodes: dict[int, Point] = {}
        self._points: list[Point] = []

    def __call__(self, time: float) -> Tensor:
        """W at a time."""
        for point in self._points:
            if point.time == time:
                return point.value
        left, right = low, high = self._cell(time)
        for point in self._points:
            if left.time < point.time < time:
                left = point
            elif time < point.time < right.time:
                right = point
        alone = left is low and right is high
        point = self._between(left, right, time, f'cell {low.time!r}' if alone else repr(time))
        self._points = [*self._points[1 - POINTS:], point]
        return point.value

    def draw(self, key: int | str) -> Tensor:
        """Unit Gaussian noise named by a key."""
        return randn_items(self._shape, [derive_seed(seed, 'brownian', key) for seed in self._seeds], self._like.device,
                           self._like.dtype)

    def _cell(self, time: float) -> tuple[Point, Point]:
        """The two nodes around a time, by bisection from (0, inf)."""
        low, high = 0, CELLS
        left, right = self._origin, Point(math.inf, self._origin.value)
        way = {}
        while high - low > 1:
            number = (low + high) // 2
            node = self._nodes.get(number)
            if node is None:
                node = self._between(left, right, 2. ** ((number - CELLS / 2) / CELLS_PER_OCTAVE), number)
            way[number] = node
            if node.time <= time:
                low, left = number, node
            else:
                high, right = number, node
        self._nodes = way
        return left, right

    def _between(self, left: Point, right: Point, time: float, key: int | str) -> Point:
        """W at a time given two points around it, the right one possibly at infinity."""
        share = (time - left.time) / (right.time - left.time)
        std = math.sqrt((time - left.time) * (1 - share))
        return Point(time, torch.lerp(left.value, right.value, share).add_(self.draw(key), alpha=std))
