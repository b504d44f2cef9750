"""Networks in pieces: each process holds a share of every weight (PyTorch's fully_shard, also known as FSDP2)."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def is_sharded(x: Any) -> bool:
    """Whether a tensor lies in pieces on several processes."""
    return hasattr(x, 'to_local') and hasattr(x, 'placements')


def local(x: Any) -> Tensor:
    """This process's piece of a tensor in pieces; another tensor as it is. (In-place changes reach the whole.)"""
    piece: Tensor = x.to_local() if is_sharded(x) else x
    return piece


def whole_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state with every tensor whole, on every process (all must call it where there are pieces)."""
    return {name: x.full_tensor() if is_sharded(x) else x for name, x in state.items()}  # type: ignore[attr-defined]
