"""Count the multiply-adds of a block of code."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode


class FlopCounter:
    """Counts the multiply-adds of matrix products, convolutions and attention in `flops`."""

    def __init__(self) -> None:
        # torch counts attention on all devices but the CPU, which has its own operator.
        attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        self.mode = FlopCounterMode(display=False, custom_mapping={attention: _attention_flops})
        self.reported = 0

    @property
    def flops(self) -> int:
        """Multiply-adds: half of the count of torch, plus those reported by `op`."""
        return self.mode.get_total_flops() // 2 + self.reported


_state = threading.local()


@contextmanager
def flop_counter(enable: bool = True) -> Iterator[FlopCounter]:
    """Count the multiply-adds of a block, on real tensors or, at no cost, on the meta device.

    Args:
        enable: Count; False counts nothing.

    Example:
        with flop_counter() as counter: model(x, sigma)
    """
    counter, outer = FlopCounter(), getattr(_state, 'counter', None)
    _state.counter = counter if enable else None
    try:
        with counter.mode if enable else nullcontext():
            yield counter
    finally:
        _state.counter = outer


def op(op: Callable[..., int], *args: Any, **kwargs: Any) -> None:
    """Report the work of a kernel that torch cannot count: op(*args, **kwargs) multiply-adds.

    Args:
        op: Returns the multiply-adds.
        *args: Its arguments.
        **kwargs: Its named arguments.
    """
    counter = getattr(_state, 'counter', None)
    if counter is not None:
        counter.reported += op(*args, **kwargs)


def op_linear(x: Tensor, weight: Tensor) -> int:
    """Return the multiply-adds of x [..., in] times weight [out, in]."""
    return prod(x.shape) * weight.shape[0]


def op_attention(q: Tensor, k: Tensor, v: Tensor) -> int:
    """Return the multiply-adds of attention: the scores and the weighted sums.

    Args:
        q: [..., N, D].
        k: [..., M, D].
        v: [..., M, D'].
    """
    return prod(q.shape[:-1]) * k.shape[-2] * (q.shape[-1] + v.shape[-1])


def op_natten(q: Tensor, k: Tensor, v: Tensor, kernel_size: int) -> int:
    """Return the multiply-adds of neighbourhood attention.

    Args:
        q: [..., D].
        k: Likewise.
        v: [..., D'].
        kernel_size: The side of the neighbourhood.
    """
    return prod(q.shape[:-1]) * (q.shape[-1] + v.shape[-1]) * kernel_size**2


def _attention_flops(q: Any, k: Any, v: Any, *args: Any, **kwargs: Any) -> int:
    # torch passes shapes, and counts two operations per multiply-add.
    return 2 * op_attention(*(torch.empty(shape, device='meta') for shape in (q, k, v)))
