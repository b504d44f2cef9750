"""Randomness named by what it is for: a draw is a function of (seed, keys), never of who draws it
or when.

So that neither the batch size nor the number of workers or processes nor a pause can change a
result.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def derive_seed(seed: int, *keys: float | str) -> int:
    """A 63-bit seed for the stream named by the keys: equal names give equal seeds, different ones
    unrelated seeds.

    (A seed that is an integer of numpy or torch names the same stream as Python's.)
    """
    digest = hashlib.blake2b(repr((operator.index(seed), *keys)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, 'little') >> 1


def generator(seed: int, *keys: int | str, device: Any = 'cpu') -> torch.Generator:
    """A fresh generator for the stream named by the keys."""
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
    """Gaussian noise [B, *shape] whose item i depends on seeds[i] alone, bit for bit; of unit
    variance, or another deviation.

    In float64 it is that of float32, cast: one seed is one noise in either precision. (torch's
    generator for the CPU reads the lower 32 bits of a seed, so in a long run two items may share a
    noise. That does no harm: no two share it and the picture.)
    """
    dtype = dtype or torch.get_default_dtype()
    out = torch.empty(len(seeds), *shape, device=device, dtype=drawn_dtype(dtype))
    source = torch.Generator(out.device)
    for item, seed in zip(out if len(seeds) > 1 else (out,), seeds):
        item.normal_(std=std, generator=source.manual_seed(seed))
    return out.to(dtype)


def drawn_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the precision in which seeded noise of a dtype is drawn: float32 for float64."""
    return torch.float32 if dtype == torch.float64 else dtype
