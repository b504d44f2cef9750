"""Runge-Kutta samplers driven by tables.

exp_rk works in log sigma on the data estimate, rk in sigma on the slope. Each table is also a
sampler by its own name (presets.py). The step to level 0 returns D with one model call.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ...core.registry import unknown
from ..coefficients import phi, to_d
from ..definition import sampler
from ..loop import Step, Steps
from ..registry import Run
from ..watch import Asking
from . import exponential_tables, runge_kutta_tables
from .exponential_formulas import Rows
from .runge_kutta_tables import Table


@functools.lru_cache(256)
def exponential_rows(name: str, h: float) -> Rows:
    """Return the rows of the stages and the weights of an exponential table, in float64.

    Args:
        name: The name of the table.
        h: The step in log sigma.
    """
    return exponential_tables.TABLES[name].rows(lambda k, share=1.0: phi(k, -share * h))


def add_all(x: Tensor, terms: Sequence[Tensor], weights: Sequence[float], h: float) -> Tensor:
    """Return x + h times the sum of the weighted terms; terms of weight 0 are skipped.

    Args:
        x: A tensor.
        terms: Tensors like x.
        weights: Their weights.
        h: The step.
    """
    for term, weight in zip(terms, weights):
        if weight:
            x = torch.add(x, term, alpha=h * weight)
    return x


@sampler(order=4, nfe=4, family='exponential Runge-Kutta', reference=exponential_tables.KROGSTAD)
def sample_exp_rk(steps: Steps, x: Tensor, *, table: str = 'res_4s_krogstad') -> Run[Tensor]:
    """Take explicit exponential Runge-Kutta steps of order 2 to 5 by the name of the table.

    x_i = e^{-c_i h} x + h sum_j a_ij D_j with h = log(sigma / sigma_next), D_j the estimate at x_j
    and the level sigma e^{-c_j h}. As many NFE as stages, 1 for the step to 0.

    Args:
        table: A name in K.sampling.EXPONENTIAL_TABLES.

    References:
        Hochbruck & Ostermann (2010), doi:10.1017/S0962492910000048, section 2.3.
    """
    _check_table(table, exponential_tables.TABLES)
    shares = exponential_tables.TABLES[table].shares
    for step in steps:
        estimates = [(yield from step.ask(x))]
        if step.sigma_next == 0:
            x = estimates[0]
        else:
            h = math.log(step.sigma / step.sigma_next)
            *stages, weights = exponential_rows(table, h)
            for share, row in zip(shares[1:], stages[1:]):
                x_i = add_all(x * math.exp(-share * h), estimates, row, h)
                estimates.append((yield from step.ask(x_i, step.sigma * math.exp(-share * h))))
            x = add_all(x * math.exp(-h), estimates, weights, h)
        x = yield x
    return x


@sampler(order=4, nfe=4, family='Runge-Kutta', reference=runge_kutta_tables.CLASSICAL)
def sample_rk(steps: Steps, x: Tensor, *, table: str = 'rk4_4s') -> Run[Tensor]:
    """Take explicit or implicit Runge-Kutta steps in sigma by the name of the table.

    x_i = x + h sum_j a_ij d_j with h = sigma_next - sigma, d_j the slope at x_j and the level sigma
    + c_j h. The stages of an implicit table start from the slope at the start of the step and are
    improved by fixed-point sweeps, each of which raises the order by one. As many NFE as stages, 1
    for the step to 0.

    Args:
        table: A name in K.sampling.RUNGE_KUTTA_TABLES.

    References:
        Hairer, Norsett & Wanner (1993), doi:10.1007/978-3-540-78862-1, II.1.
    """
    _check_table(table, runge_kutta_tables.TABLES)
    method = runge_kutta_tables.TABLES[table]
    for step in steps:
        denoised = yield from step.ask(x, borrow=step.sigma_next > 0)
        if step.sigma_next == 0:
            x = denoised
        else:
            slope = to_d(x, step.sigma, denoised)
            stages = _sweep if method.sweeps else _advance
            slopes = yield from stages(step, x, slope, method)
            x = add_all(x, slopes, method.weights, step.sigma_next - step.sigma)
        x = yield x
    return x


def _advance(step: Step, x: Tensor, slope: Tensor, method: Table) -> Asking[list[Tensor]]:
    """Return the slopes of the stages of an explicit method, of which the first is given."""
    slopes = [slope]
    for row in method.rows[1:]:
        slopes.append((yield from _slope(step, x, slopes, row)))
    return slopes


def _sweep(step: Step, x: Tensor, slope: Tensor, method: Table) -> Asking[list[Tensor]]:
    """Return the slopes of the stages of an implicit method, found by fixed-point sweeps."""
    slopes = [slope] * len(method.rows)
    for _ in range(method.sweeps):
        before, slopes = slopes, []
        for row in method.rows:
            slopes.append((yield from _slope(step, x, before, row)))
    return slopes


def _slope(step: Step, x: Tensor, slopes: Sequence[Tensor], row: Sequence[float]) -> Asking[Tensor]:
    """Return the slope at a stage with this row."""
    h = step.sigma_next - step.sigma
    x = add_all(x, slopes, row, h)
    # The maximum removes the rounding of a row that sums to 1.
    sigma = max(step.sigma + math.fsum(row) * h, step.sigma_next)
    return to_d(x, sigma, (yield from step.ask(x, sigma, borrow=True)))


def _check_table(name: str, names: Iterable[str]) -> None:
    if name not in tuple(names):
        raise ValueError(unknown('table', name, names))
