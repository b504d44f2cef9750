"""Schedules in the clock of a model that was trained at a table of noise levels.

The table is the T ascending levels, or what has them as `sigmas` (a CompVisDenoiser, say). Equal
neighbours are dropped, so a table gives at most T steps. A model without a table has no such clock:
`vp` and `flow` are uniform in the two continuous times in use.
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
    """What knows the levels it was trained at."""

    sigmas: Tensor


Table: TypeAlias = Tensor | Sequence[float] | HasSigmas

#: Schedules by name that take a table of levels: (n, table, device=None), the device that of the
#: table unless given.
DISCRETE_SCHEDULES: Registry[Callable[..., Tensor]] = Registry('schedule of a discrete model')


@DISCRETE_SCHEDULES.register('simple')
def get_sigmas_simple(n: int, table: Table, device: Any = None) -> Tensor:
    """Index T - 1 - floor(i T / n) for i from 0 to n - 1: [n + 1].

    From the highest level on; "trailing" in diffusers.
    """
    levels = _opened(n, table)
    last = len(levels) - 1
    return _picked(levels, [last - i * len(levels) // n for i in range(n)], table, device)


@DISCRETE_SCHEDULES.register('ddim_uniform')
def get_sigmas_ddim_uniform(n: int, table: Table, device: Any = None) -> Tensor:
    """Index 1 + i floor(T / n) for i from n - 1 to 0: [n + 1] (Song et al. 2021, arXiv:2010.02502).

    As DDIM was published it does not start at the highest level (and for n = 1 near the lowest);
    "leading" with an offset of 1 in diffusers.
    """
    levels = _opened(n, table)
    last, stride = len(levels) - 1, max(len(levels) // n, 1)
    return _picked(levels, [min(1 + i * stride, last) for i in range(n - 1, -1, -1)], table, device)


@DISCRETE_SCHEDULES.register('normal')
def get_sigmas_normal(n: int, table: Table, device: Any = None) -> Tensor:
    """Uniform in index from T - 1 to 0, both included, log-linear between two levels: [n + 1].
    "linspace" in diffusers.
    """
    levels = _opened(n, table)
    return _ended(between_places(levels, ramp(len(levels) - 1, 0, n)), table, device)


@DISCRETE_SCHEDULES.register('sgm_uniform')
def get_sigmas_sgm_uniform(n: int, table: Table, device: Any = None) -> Tensor:
    """Uniform in index from T - 1 to 0, the lowest level replaced by the zero, log-linear
    between two levels: [n + 1].
    """
    levels = _opened(n, table)
    return _ended(between_places(levels, ramp(len(levels) - 1, 0, n + 1)[:-1]), table, device)


@DISCRETE_SCHEDULES.register('beta')
def get_sigmas_beta_table(
    n: int, table: Table, alpha: float = 0.6, beta: float = 0.6, device: Any = None
) -> Tensor:
    """Index round(q (T - 1)), q the quantiles of Beta(alpha, beta) at 1 - i / n for i from 0 to n -
    1: at most [n + 1].

    Dense at both ends. Lee et al. (2024), "Beta Sampling is All You Need", arXiv:2407.12173.
    """
    levels = _opened(n, table)
    check_positive('0.6 is usual', alpha=alpha, beta=beta)
    last = len(levels) - 1
    return _picked(
        levels,
        [round(last * beta_quantile(1 - i / n, alpha, beta)) for i in range(n)],
        table,
        device,
    )


@DISCRETE_SCHEDULES.register('beta57')
def get_sigmas_beta57_table(n: int, table: Table, device: Any = None) -> Tensor:
    """get_sigmas_beta_table with alpha 0.5 and beta 0.7, denser at small levels: at most [n +
    1].
    """
    return get_sigmas_beta_table(n, table, 0.5, 0.7, device)


def table_levels(table: Table) -> Tensor:
    """The table's levels, ascending [T], in float64 on the CPU; a ValueError where they are no
    such thing.
    """
    levels = torch.as_tensor(getattr(table, 'sigmas', table)).detach().cpu().double()
    if (
        levels.ndim != 1
        or not len(levels)
        or not ((levels > 0) & levels.isfinite()).all()
        or (levels.diff() < 0).any()
    ):
        raise ValueError(
            f'a table of shape {tuple(levels.shape)} that begins {levels.flatten()[:3].tolist()} '
            'is no table of levels; '
            'give them in one dimension, ascending, finite and above 0, or an object that has '
            'them as sigmas'
        )
    return levels


def _opened(n: int, table: Table) -> Tensor:
    check_count(n)
    return table_levels(table)


def _picked(levels: Tensor, index: list[int], table: Table, device: Any) -> Tensor:
    return _ended(levels[torch.tensor(index)], table, device)


def _ended(sigmas: Tensor, table: Table, device: Any) -> Tensor:
    if device is None:
        device = torch.as_tensor(getattr(table, 'sigmas', table)).device
    return append_zero(distinct(sigmas.float())).to(device)
