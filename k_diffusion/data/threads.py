"""Work on many items by threads, with bounded memory."""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar('T')
#: Largest number of results that wait to be taken, and their approximate size in bytes.
_AHEAD, _AHEAD_BYTES = 512, 2**25
#: Largest number of items that a thread takes at once.
_SEVERAL = 32


#: Items that take fewer seconds than this are computed without threads, which would wait for each
#: other: most of the time of a small image is spent in Python. Decided after so many ranges.
_QUICK, _TRIED = 5e-4, 4


def map_in_threads(function: Callable[[int], T], count: int, bytes_each: int) -> Iterator[T]:
    """Yield function(0) ... function(count - 1) in order, computed ahead by threads.

    Args:
        function: Computes the result of a number.
        count: How many numbers there are.
        bytes_each: The size of a result, which limits how many may wait.
    """
    return map_ranges_in_threads(
        lambda numbers: [function(number) for number in numbers], count, bytes_each
    )


def map_ranges_in_threads(
    function: Callable[[range], list[T]], count: int, bytes_each: int
) -> Iterator[T]:
    """Yield the results of a function of a range for the numbers below `count`, in order.

    Decoding and resizing release Python's lock, so that threads are useful for large images.
    Passing several items at once saves a third of the time of small ones.

    Args:
        function: Computes the results of several numbers.
        count: How many numbers there are.
        bytes_each: The size of a result, which limits how many may wait.
    """
    workers = min(8, os.cpu_count() or 1)
    ahead = max(workers, min(_AHEAD, _AHEAD_BYTES // max(1, bytes_each)))
    several = max(1, min(_SEVERAL, ahead // (2 * workers), count // (2 * workers)))
    ranges = [range(first, min(first + several, count)) for first in range(0, count, several)]
    each = math.inf
    for numbers in ranges[:_TRIED]:
        start = time.perf_counter()
        results = function(numbers)
        each = min(each, (time.perf_counter() - start) / len(numbers))
        yield from results
    if each < _QUICK:
        for numbers in ranges[_TRIED:]:
            yield from function(numbers)
        return
    waiting: deque[Future[list[T]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for numbers in ranges[_TRIED:]:
                waiting.append(pool.submit(function, numbers))
                if len(waiting) * several >= ahead:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
