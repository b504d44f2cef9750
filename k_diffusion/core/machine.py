"""What the machine at hand can do: its memory, and how fast it multiplies."""

from __future__ import annotations

import os
import time

import torch


def memory_bytes(device: torch.device) -> int | None:
    """The memory of a device, or of the machine where the device shares it; None where nobody
    says.
    """
    if device.type == 'cuda':
        return int(torch.cuda.get_device_properties(device).total_memory)
    try:
        return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    except (AttributeError, ValueError, OSError):
        return None


def multiply_rate(device: torch.device, seconds: float = 0.3, side: int = 1024) -> float:
    """Floating-point operations per second of float32 matrix products, two for each
    multiply-add; the best of some tries.
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
