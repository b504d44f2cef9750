"""Uniform numbers spread evenly over a batch, over the batches that are accumulated and over the
processes.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor


def stratified_uniform(
    shape: Sequence[int],
    group: int = 0,
    groups: int = 1,
    dtype: torch.dtype | None = None,
    device: Any = None,
) -> Tensor:
    """Uniform numbers in [0, 1): of shape[-1] * groups equal strata, this group draws one from
    every groups-th, in order.
    """
    if groups <= 0:
        raise ValueError(f'groups is {groups}; it must be at least 1')
    if not 0 <= group < groups:
        raise ValueError(f'group is {group}; it must be from 0 to {groups - 1}')
    n = shape[-1] * groups
    strata = torch.arange(group, n, groups, dtype=dtype, device=device)
    return (strata + torch.rand(shape, dtype=dtype, device=device)) / n


_state = threading.local()


@contextmanager
def enable_stratified(group: int = 0, groups: int = 1, disable: bool = False) -> Iterator[None]:
    """Within it (and this thread) noise levels are drawn stratified, as this group of so many."""
    before = getattr(_state, 'settings', None)
    _state.settings = None if disable else (group, groups)
    try:
        yield
    finally:
        _state.settings = before


def enable_stratified_accelerate(
    accelerator: Any, disable: bool = False
) -> AbstractContextManager[None]:
    """enable_stratified over the processes and the accumulated batches of an
    accelerate.Accelerator.
    """
    steps = accelerator.gradient_state.num_steps
    group = accelerator.process_index * steps + accelerator.step % steps
    return enable_stratified(group, accelerator.num_processes * steps, disable)


def stratified_with_settings(
    shape: Sequence[int], dtype: torch.dtype | None = None, device: Any = None
) -> Tensor:
    """Uniform numbers in [0, 1), stratified within enable_stratified."""
    settings = getattr(_state, 'settings', None)
    if settings is None:
        return torch.rand(shape, dtype=dtype, device=device)
    group, groups = settings
    return stratified_uniform(shape, group, groups, dtype, device)
