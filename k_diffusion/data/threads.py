"""Work on many items by threads, with bounded memory."""
from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar('T')
#: The most results, and about the most bytes of them, that wait to be taken.
_AHEAD, _AHEAD_BYTES = 512, 2**25


def map_in_threads(function: Callable[[int], T], count: int, bytes_each: int) -> Iterator[T]:
    """Yield function(0) ... function(count - 1) in order, computed by threads a little ahead of who takes them.

    (Decoding and resizing leave Python's lock, so that threads serve.)

    Args:
        function: What is computed of a number.
        count: How many numbers there are.
        bytes_each: The size of a result, which decides how many may wait.
    """
    workers = min(8, os.cpu_count() or 1)
    ahead = max(workers, min(_AHEAD, _AHEAD_BYTES // max(1, bytes_each)))
    waiting: deque[Future[T]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for index in range(count):
                waiting.append(pool.submit(function, index))
                if len(waiting) >= ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
