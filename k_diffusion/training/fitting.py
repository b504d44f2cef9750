"""Find the size of a micro-batch that fits into memory, from the activations of one item."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def activation_bytes(run: Callable[[], Tensor]) -> int:
    """Return the bytes that a forward pass stores for its backward pass; a storage counts once.

    Args:
        run: The forward pass.
    """
    storages: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        loss = run()
        del loss
    return sum(storages.values())


def free_bytes(device: torch.device) -> int | None:
    """Return the free memory: of the GPU, else of the machine and its container; None if unknown.

    Args:
        device: The device.
    """
    if device.type == 'cuda':
        return int(torch.cuda.mem_get_info(device)[0])
    limits = [value for value in (_available(), _container()) if value is not None]
    return min(limits) // int(os.environ.get('LOCAL_WORLD_SIZE', 1)) if limits else None


def _available() -> int | None:
    """Return the free memory of the machine."""
    try:
        lines = Path('/proc/meminfo').read_text().splitlines()
        return next(
            int(line.split()[1]) * 1024 for line in lines if line.startswith('MemAvailable')
        )
    except (OSError, StopIteration, ValueError):
        return None


def _container() -> int | None:
    """Return the free memory of the container."""
    for limit, usage_file in (
        ('memory.max', 'memory.current'),
        ('memory/memory.limit_in_bytes', 'memory/memory.usage_in_bytes'),
    ):
        try:
            return int(Path('/sys/fs/cgroup', limit).read_text()) - int(
                Path('/sys/fs/cgroup', usage_file).read_text()
            )
        except (OSError, ValueError):
            continue
    return None


def micro_batch(batch: int, per_item: int, fixed: int, free: int | None, share: float = 0.8) -> int:
    """Return the largest divisor of `batch` that fits into a share of the free memory.

    Each item counts twice, because gradients of activations are stored beside them.

    Args:
        batch: The number of items.
        per_item: The activations of an item in bytes.
        fixed: Further memory in bytes.
        free: The free memory in bytes; None if unknown.
        share: The share that may be used.

    Raises:
        MemoryError: If not even one item fits.
    """
    if free is None:
        return batch
    room = share * free - fixed
    if room < 2 * per_item:
        raise MemoryError(
            f'one picture takes {(fixed + 2 * per_item) / 2**30:.2f} GiB to train on, and '
            f'{free / 2**30:.2f} GiB are free; '
            'take a smaller model, or pass checkpointing=True'
        )
    return next(n for n in range(batch, 0, -1) if batch % n == 0 and 2 * per_item * n <= room)


def fits(run: Callable[[], Any]) -> bool:
    """Return True if a function runs without exhausting the memory of the GPU.

    Args:
        run: The function.
    """
    try:
        run()
        return True
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return False
