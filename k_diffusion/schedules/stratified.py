"""Uniform numbers spread evenly over a batch, the accumulated batches and the processes."""

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
    """Draw uniform numbers in [0, 1), one from each stratum of this group.

    There are shape[-1] * groups equal strata; this group has every groups-th, in order.

    Args:
        shape: The shape of the result.
        group: The index of the group.
        groups: The number of groups.
        dtype: The dtype of the result.
        device: Its device.

    Raises:
        ValueError: If group or groups is out of range.
    """
    if groups <= 0:
        raise ValueError(f'groups must be >= 1; got {groups}')
    if not 0 <= group < groups:
        raise ValueError(f'group must be from 0 to {groups - 1}; got {group}')
    n = shape[-1] * groups
    strata = torch.arange(group, n, groups, dtype=dtype, device=device)
    return (strata + torch.rand(shape, dtype=dtype, device=device)) / n


_state = threading.local()


@contextmanager
def enable_stratified(group: int = 0, groups: int = 1, disable: bool = False) -> Iterator[None]:
    """Stratify the noise levels drawn within this context, in this thread.

    Args:
        group: The index of this group.
        groups: The number of groups.
        disable: Draw without stratification.
    """
    before = getattr(_state, 'settings', None)
    _state.settings = None if disable else (group, groups)
    try:
        yield
    finally:
        _state.settings = before


def enable_stratified_accelerate(
    accelerator: Any, disable: bool = False
) -> AbstractContextManager[None]:
    """Stratify over the processes and accumulated batches of an accelerate.Accelerator.

    Args:
        accelerator: The accelerator.
        disable: Draw without stratification.
    """
    steps = accelerator.gradient_state.num_steps
    group = accelerator.process_index * steps + accelerator.step % steps
    return enable_stratified(group, accelerator.num_processes * steps, disable)


def stratified_with_settings(
    shape: Sequence[int], dtype: torch.dtype | None = None, device: Any = None
) -> Tensor:
    """Draw uniform numbers in [0, 1), stratified within enable_stratified.

    Args:
        shape: The shape of the result.
        dtype: The dtype of the result.
        device: Its device.
    """
    settings = getattr(_state, 'settings', None)
    if settings is None:
        return torch.rand(shape, dtype=dtype, device=device)
    group, groups = settings
    return stratified_uniform(shape, group, groups, dtype, device)
