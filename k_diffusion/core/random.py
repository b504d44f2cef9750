"""Randomness by name: a draw is a function of (seed, keys).

Results therefore do not depend on batch size, workers, processes or interruptions.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .philox import draw_normals


def derive_seed(seed: int, *keys: float | str) -> int:
    """Return a 63-bit seed for the stream named by the keys.

    Equal names give equal seeds, different names unrelated seeds. Integers of numpy and torch name
    the same stream as Python's.

    Args:
        seed: The seed of the run.
        *keys: The name of the stream.
    """
    digest = hashlib.blake2b(repr((operator.index(seed), *keys)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, 'little') >> 1


def generator(seed: int, *keys: int | str, device: Any = 'cpu') -> torch.Generator:
    """Return a new generator for the stream named by the keys.

    Args:
        seed: The seed of the run.
        *keys: The name of the stream.
        device: The device of the generator.
    """
    return torch.Generator(device).manual_seed(
        derive_seed(seed, *keys) if keys else operator.index(seed)
    )


def randn_items(
    shape: Sequence[int],
    seeds: Sequence[int],
    device: Any = 'cpu',
    dtype: torch.dtype | None = None,
    std: float = 1.0,
) -> Tensor:
    """Return Gaussian noise [B, *shape] whose item i is a function of seeds[i], bit for bit.

    Float64 noise is float32 noise, cast, so that a seed gives the same noise in both precisions.
    torch's CPU generator reads the lower 32 bits of a seed, so in a long run two items may share a
    noise; this is harmless, since they do not share the image as well.

    Args:
        shape: The shape of an item.
        seeds: A seed for each item.
        device: The device of the result.
        dtype: Its dtype.
        std: Standard deviation of the noise.
    """
    dtype = dtype or torch.get_default_dtype()
    out = torch.empty(len(seeds), *shape, device=device, dtype=noise_dtype(dtype))
    source = torch.Generator(out.device)
    for item, seed in zip(out if len(seeds) > 1 else (out,), seeds):
        item.normal_(std=std, generator=source.manual_seed(seed))
    return out.to(dtype)


def draw_items(
    shape: Sequence[int],
    seeds: Sequence[int],
    keys: Sequence[float | str],
    device: Any = 'cpu',
    dtype: torch.dtype | None = None,
    std: float = 1.0,
    counter: bool = False,
) -> Tensor:
    """Draw Gaussian noise [B, *shape] whose item i depends on seeds[i] and the keys alone.

    Args:
        shape: Of one item.
        seeds: One for each item.
        keys: The purpose.
        device: Where the noise is drawn.
        dtype: Of the noise.
        std: Its standard deviation.
        counter: Draw all items at once by a counter (`draw_normals`), alike on every device. False:
            each by a generator of torch for the device.
    """
    if counter:
        # An item has 64 bits; seeds beyond them are hashed, so that all integers are seeds.
        items = [seed if -(2**63) <= seed < 2**63 else derive_seed(seed, 'item') for seed in seeds]
        noise = draw_normals(derive_seed(0, *keys), items, shape, device, dtype)
        return noise if std == 1.0 else noise.mul_(std)
    return randn_items(shape, [derive_seed(seed, *keys) for seed in seeds], device, dtype, std)


def noise_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the precision in which seeded noise of a dtype is drawn: float32 for float64.

    Args:
        dtype: The dtype.
    """
    return torch.float32 if dtype == torch.float64 else dtype
