"""Properties of the machine: its memory, and its speed of multiplication."""

from __future__ import annotations

import os
import time

import torch


def memory_bytes(device: torch.device) -> int | None:
    """Return the memory of a device, or of the machine if the device shares it; None if unknown.

    Args:
        device: The device.
    """
    if device.type == 'cuda':
        return int(torch.cuda.get_device_properties(device).total_memory)
    try:
        return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    except (AttributeError, ValueError, OSError):
        return None


def multiply_rate(device: torch.device, seconds: float = 0.3, side: int = 1024) -> float:
    """Measure the floating-point operations per second of float32 matrix products.

    A multiply-add is two operations. The result is the best of several tries.

    Args:
        device: The device.
        seconds: Duration of the measurement.
        side: Side of the matrices.
    """
    a = torch.randn(side, side, device=device)
    best, end = 0.0, time.perf_counter() + seconds
    while True:
        start = time.perf_counter()
        (a @ a).sum().item()
        now = time.perf_counter()
        best = max(best, 2 * side**3 / (now - start))
        if now > end:
            return best
