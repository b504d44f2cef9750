"""A Brownian path defined by its seed: each value is drawn on request, and always the same."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..core.random import draw_items

SPAN = 64  # the nodes are powers of 2 from 2^-64 to 2^64
COARSEST = 3  # the widest leaves are 2^-3 octaves, 9 % of the time
FINEST = 44  # the narrowest leaves, for steps as short
POINTS = 4  # number of requested values kept


class Point(NamedTuple):
    """A time and the value W there."""

    time: float
    value: Tensor


class BrownianPath:
    """A Brownian path W(time) [B, ...] for every time >= 0.

    W(0) = 0; increments are independent, and their variance is their length.

    (0, inf) is halved in the exponent of the time, down to leaves no wider than the step that asks.
    Each node is drawn given the two around it (a Brownian bridge), by a generator seeded with its
    exponent. A time inside a leaf is drawn given the ends of the leaf, by the generator of the
    middle of the leaf, so that a finer level of halving moves W there only a little. W is therefore
    a function of the seeds, the time and the level of halving, and does not depend on earlier
    requests. The two times of a step lie in two leaves, so its increment has the right variance.

    Steps of 1/8 octave (9 %) and more all see the same path, exactly. Shorter steps see more of its
    detail; where the level of detail changes from one step to the next, neighbours may be
    correlated by up to 0.1. The nodes on the way to the last leaf are kept, so that a walk draws
    three or four values per step.

    Args:
        x: A tensor like the values, [B, ...].
        seeds: A seed for each item.
    """

    def __init__(self, x: Tensor, seeds: Sequence[int], counter: bool = False) -> None:
        self._like = x.new_empty(0, dtype=torch.promote_types(x.dtype, torch.float32))
        self._shape, self._seeds, self._counter = x.shape[1:], seeds, counter
        self._origin = Point(0.0, self._like.new_zeros(x.shape))
        self._nodes: dict[float, Point] = {}
        self._points: dict[tuple[float, int], Tensor] = {}

    def __call__(self, time: float, other: float = 0.0) -> Tensor:
        """Return W at a time, as a step between it and the other time sees it."""
        if time == 0:
            return self._origin.value
        level = _level(time, other)
        value = self._points.get((time, level))
        if value is None:
            left, right, key = self._leaf(time, level)
            value = self._between(left, right, time, key).value
            self._points[time, level] = value
            if len(self._points) > POINTS:
                del self._points[next(iter(self._points))]  # the oldest
        return value

    def draw(self, key: float | str, std: float = 1.0) -> Tensor:
        """Draw Gaussian noise named by a key.

        Args:
            key: The name; the same key gives the same noise.
            std: Its standard deviation.
        """
        return draw_items(
            self._shape,
            self._seeds,
            ('brownian', key),
            self._like.device,
            self._like.dtype,
            std,
            self._counter,
        )

    def _leaf(self, time: float, level: int) -> tuple[Point, Point, float]:
        """Return the two nodes around a time at a level, and the exponent of their middle."""
        low, high = -float(SPAN), float(SPAN)
        left, right = self._origin, Point(math.inf, self._origin.value)
        way = {}
        while high - low > 2.0**-level:
            middle = (low + high) / 2
            node = self._nodes.get(middle)
            if node is None:
                node = self._between(left, right, 2.0**middle, middle)
            way[middle] = node
            if node.time <= time:
                low, left = middle, node
            else:
                high, right = middle, node
        self._nodes = way
        return left, right, (low + high) / 2

    def _between(self, left: Point, right: Point, time: float, key: float) -> Point:
        """Return W at a time given two points around it; the right one may be at infinity."""
        share = (time - left.time) / (right.time - left.time)
        value = self.draw(key, math.sqrt((time - left.time) * (1 - share)))
        return Point(time, value.add_(left.value, alpha=1 - share).add_(right.value, alpha=share))


def _level(time: float, other: float) -> int:
    """Return how often an octave is halved so that leaves are no wider than the step."""
    if time <= 0 or other <= 0:
        return COARSEST
    octaves = max(2.0**-FINEST, abs(math.log2(time) - math.log2(other)))
    return max(COARSEST, math.ceil(-math.log2(octaves)))
