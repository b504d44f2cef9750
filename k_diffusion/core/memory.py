"""The C library's memory, where it gets in the way of training on a CPU."""

from __future__ import annotations

import contextlib
import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt's names for them


def keep_freed_memory() -> None:
    """Lets the C library keep freed memory for the next tensor instead of handing it back to the
    system, where it can.

    Each step of a small network frees and takes again the same tens of megabytes; clearing new
    pages for them costs a fifth of the time (benchmarks/RESULTS.md). Blocks over 32 MB, the most
    that glibc lets be kept, still go back at once.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_THRESHOLD, 32 * 2**20)
        mallopt(_TRIM_THRESHOLD, 2**30)
