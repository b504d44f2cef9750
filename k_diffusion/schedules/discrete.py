"""Schedules in the timesteps of a model trained at a table of noise levels.

The table is a list of T ascending levels, or an object that has them as `sigmas` (such as a
CompVisDenoiser). Equal neighbours are dropped, so a table gives at most T steps. A model without a
table has no such timesteps; `vp` and `flow` are uniform in the two usual continuous times.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from ..core.incomplete_beta import beta_quantile
from ..core.registry import Registry
from .parts import append_zero, between_places, check_count, check_positive, distinct, ramp


class HasSigmas(Protocol):
    """An object that knows the levels it was trained at."""

    sigmas: Tensor


Table: TypeAlias = Tensor | Sequence[float] | HasSigmas

#: Schedules by name that take a table of levels: (n, table, device=None), by default on the device
#: of the table.
DISCRETE_SCHEDULES: Registry[Callable[..., Tensor]] = Registry('schedule of a discrete model')


@DISCRETE_SCHEDULES.register('simple')
def get_sigmas_simple(n: int, table: Table, device: Any = None) -> Tensor:
    """Take the levels at index T - 1 - floor(i T / n) for i from 0 to n - 1: [n + 1].

    The schedule starts at the highest level; "trailing" in diffusers. Not published in a paper.

    Args:
        n: Number of steps.
        table: The T ascending levels of the model, or an object that has them as sigmas.
        device: The device of the result; by default that of the table.
    """
    levels = _read_levels(n, table)
    last = len(levels) - 1
    return _select_levels(levels, [last - i * len(levels) // n for i in range(n)], table, device)


@DISCRETE_SCHEDULES.register('ddim_uniform')
def get_sigmas_ddim_uniform(n: int, table: Table, device: Any = None) -> Tensor:
    """Take the levels at index 1 + i floor(T / n) for i from n - 1 to 0: [n + 1].

    As published for DDIM, the schedule does not start at the highest level (for n = 1 it starts
    near the lowest); "leading" with an offset of 1 in diffusers.

    Args:
        n: Number of steps.
        table: The T ascending levels of the model, or an object that has them as sigmas.
        device: The device of the result; by default that of the table.

    References:
        Song et al. (2021), arXiv:2010.02502.
    """
    levels = _read_levels(n, table)
    last, stride = len(levels) - 1, max(len(levels) // n, 1)
    return _select_levels(
        levels, [min(1 + i * stride, last) for i in range(n - 1, -1, -1)], table, device
    )


@DISCRETE_SCHEDULES.register('normal')
def get_sigmas_normal(n: int, table: Table, device: Any = None) -> Tensor:
    """Space levels uniformly in index from T - 1 to 0, both included: [n + 1].

    Levels between two entries are log-linear; "linspace" in diffusers. Not published in a paper.

    Args:
        n: Number of steps.
        table: The T ascending levels of the model, or an object that has them as sigmas.
        device: The device of the result; by default that of the table.
    """
    levels = _read_levels(n, table)
    return _finish(between_places(levels, ramp(len(levels) - 1, 0, n)), table, device)


@DISCRETE_SCHEDULES.register('sgm_uniform')
def get_sigmas_sgm_uniform(n: int, table: Table, device: Any = None) -> Tensor:
    """Space levels uniformly in index from T - 1 to 0, with 0 in place of the lowest: [n + 1].

    Levels between two entries are log-linear. Not published in a paper.

    Args:
        n: Number of steps.
        table: The T ascending levels of the model, or an object that has them as sigmas.
        device: The device of the result; by default that of the table.
    """
    levels = _read_levels(n, table)
    return _finish(between_places(levels, ramp(len(levels) - 1, 0, n + 1)[:-1]), table, device)


@DISCRETE_SCHEDULES.register('beta')
def get_sigmas_beta_table(
    n: int, table: Table, alpha: float = 0.6, beta: float = 0.6, device: Any = None
) -> Tensor:
    """Take the levels at index round(q (T - 1)), q quantiles of Beta(alpha, beta): at most [n + 1].

    The quantiles are those at 1 - i / n for i from 0 to n - 1. The schedule is dense at both ends.

    Args:
        n: Number of steps.
        table: The T ascending levels of the model, or an object that has them as sigmas.
        alpha: Parameter of the distribution, > 0.
        beta: Parameter of the distribution, > 0.
        device: The device of the result; by default that of the table.

    References:
        Lee et al. (2024), arXiv:2407.12173.
    """
    levels = _read_levels(n, table)
    check_positive('0.6 is usual', alpha=alpha, beta=beta)
    last = len(levels) - 1
    return _select_levels(
        levels,
        [round(last * beta_quantile(1 - i / n, alpha, beta)) for i in range(n)],
        table,
        device,
    )


@DISCRETE_SCHEDULES.register('beta57')
def get_sigmas_beta57_table(n: int, table: Table, device: Any = None) -> Tensor:
    """Take get_sigmas_beta_table with alpha 0.5 and beta 0.7: at most [n + 1].

    It is denser at small levels.

    Args:
        n: Number of steps.
        table: The T ascending levels of the model, or an object that has them as sigmas.
        device: The device of the result; by default that of the table.

    References:
        Lee et al. (2024), arXiv:2407.12173.
    """
    return get_sigmas_beta_table(n, table, 0.5, 0.7, device)


def table_levels(table: Table) -> Tensor:
    """Return the ascending levels [T] of a table, in float64 on the CPU.

    Args:
        table: The levels, or an object that has them as sigmas.

    Raises:
        ValueError: If they are not ascending, finite and > 0, or not one-dimensional.
    """
    levels = torch.as_tensor(getattr(table, 'sigmas', table)).detach().cpu().double()
    if (
        levels.ndim != 1
        or not len(levels)
        or not ((levels > 0) & levels.isfinite()).all()
        or (levels.diff() < 0).any()
    ):
        raise ValueError(
            'table must be ascending, finite noise levels > 0 in one dimension, or an object that '
            f'has them as sigmas; got shape {tuple(levels.shape)}, starting with '
            f'{levels.flatten()[:3].tolist()}'
        )
    return levels


def _read_levels(n: int, table: Table) -> Tensor:
    """Return the levels of a table after a check of n."""
    check_count(n)
    return table_levels(table)


def _select_levels(levels: Tensor, index: list[int], table: Table, device: Any) -> Tensor:
    """Return the levels at some indices, and 0."""
    return _finish(levels[torch.tensor(index)], table, device)


def _finish(sigmas: Tensor, table: Table, device: Any) -> Tensor:
    """Drop equal neighbours, append 0, and move the levels to a device."""
    if device is None:
        device = torch.as_tensor(getattr(table, 'sigmas', table)).device
    return append_zero(distinct(sigmas.float())).to(device)
