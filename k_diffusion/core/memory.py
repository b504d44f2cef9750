"""Settings of the C library's allocator for training on a CPU."""

from __future__ import annotations

import contextlib
import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt's names for them


def keep_freed_memory() -> None:
    """Let the C library keep freed memory for later tensors, where it can.

    Each step of a small network frees and allocates the same tens of megabytes; clearing new pages
    for them takes a fifth of the time (benchmarks/RESULTS.md). Blocks over 32 MB, the largest that
    glibc can keep, are still returned to the system.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_THRESHOLD, 32 * 2**20)
        mallopt(_TRIM_THRESHOLD, 2**30)
