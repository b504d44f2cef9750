"""Work on many items by threads, with bounded memory."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar('T')
#: Largest number of results that wait to be taken, and their approximate size in bytes.
_AHEAD, _AHEAD_BYTES = 512, 2**25
#: Largest number of items that a thread takes at once.
_SEVERAL = 32


def map_in_threads(function: Callable[[int], T], count: int, bytes_each: int) -> Iterator[T]:
    """Yield function(0) ... function(count - 1) in order, computed ahead by threads.

    Decoding and resizing release Python's lock, so that threads are useful. Passing several items
    at once saves a third of the time of small images.

    Args:
        function: Computes the result of a number.
        count: How many numbers there are.
        bytes_each: The size of a result, which limits how many may wait.
    """
    workers = min(8, os.cpu_count() or 1)
    ahead = max(workers, min(_AHEAD, _AHEAD_BYTES // max(1, bytes_each)))
    several = max(1, min(_SEVERAL, ahead // (2 * workers), count // (2 * workers)))
    waiting: deque[Future[list[T]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for first in range(0, count, several):
                waiting.append(
                    pool.submit(_map, function, range(first, min(first + several, count)))
                )
                if len(waiting) * several >= ahead:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _map(function: Callable[[int], T], numbers: range) -> list[T]:
    return [function(number) for number in numbers]
