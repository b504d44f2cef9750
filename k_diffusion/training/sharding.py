"""Networks in pieces: each process holds a share of every weight (PyTorch's fully_shard, also known as FSDP2)."""
from __future__ import annotations

from typing import Any

from torch import Tensor


def is_sharded(x: Any) -> bool:
    """Whether a tensor lies in pieces on several processes."""
    return hasattr(x, 'to_local') and hasattr(x, 'placements')


def local(x: Any) -> Tensor:
    """This process's piece of a tensor in pieces; another tensor as it is. (In-place changes reach the whole.)"""
    piece: Tensor = x.to_local() if is_sharded(x) else x
    return piece
