"""The exponential multistep core: x' = a x + sum b_j D_j + s z, with a row of weights for each step
computed before the first.

The weights come from interpolating D in log sigma through the last values and integrating exactly
against the linear part of the flow (or of the reverse SDE of strength eta). Which values are
interpolated is all that tells the methods apart.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from ...core.arguments import is_whole, show_value
from ...core.registry import unknown
from ..coefficients import exponential_weights, get_ancestral_step
from ..loop import Asking, Step, Steps
from ..registry import Run, sampler
from .exponential_runge_kutta import res_2s_step


class Row(NamedTuple):
    """The weights of a step from sigma: x' = a x + sum b_j D_j + s z, the D_j newest first.

    correct: what D at sigma, once it is known, and the older values do to the step that led here: x
    += sum correct_j D_j.
    """

    a: float
    b: tuple[float, ...]
    s: float = 0.0
    correct: tuple[float, ...] | None = None


Table: TypeAlias = Sequence[Row]

#: The step to sigma 0: the estimate itself. The weights of a higher order do not tend to it by
#: themselves.
LAST = Row(0.0, (1.0,))
#: A last step so many times as long in log sigma as the one before is better taken with fewer
#: values.
LEAP = 2.0
#: Between equal levels.
STAY = Row(1.0, ())


Past: TypeAlias = tuple[float, ...]


def past_levels(sigmas: Sequence[float], order: int) -> list[Past]:
    """For each step, the levels of the last `order` values of the model, newest first (equal
    neighbours are one level).
    """
    if not is_whole(order):
        raise ValueError(
            'order must be a whole number >= 1 (3 is usual), how many values of the model are '
            f'used; got {show_value(order)}'
        )
    past: Past = ()
    pasts = []
    for sigma in sigmas[:-1]:
        if not past or sigma != past[0]:
            past = (sigma, *past[: order - 1])
        pasts.append(past)
    return pasts


def lowered(pasts: list[Past], sigmas: Sequence[float]) -> list[Past]:
    """The pasts cut so that the order is at most the number of steps left, where the schedule
    ends in a leap.
    """
    if not ends_in_leap(sigmas):
        return pasts
    left = [len(set(sigmas[i + 1 :])) for i in range(len(pasts))]
    return [past[: max(n, 1)] for past, n in zip(pasts, left)]


def ends_in_leap(sigmas: Sequence[float]) -> bool:
    """Whether the last step goes to 0, or is more than LEAP times as long in log sigma as the one
    before.

    Image programs end at 0.001 say in place of 0. What was extrapolated so far through the last few
    values would be far off, and with no step of its own after it nothing corrects it.
    """
    last = sorted({*sigmas})[:3]
    if last[0] == 0:
        return True
    return len(last) == 3 and math.log(last[1] / last[0]) > LEAP * math.log(last[2] / last[1])


def nodes_of(past: Past, sigma_next: float) -> list[float]:
    """Where the past levels lie in log sigma, from the start of the step in units of the step:
    0, -r1, -r2, ...
    """
    h = math.log(past[0] / sigma_next)
    return [math.log(past[0] / sigma) / h for sigma in past]


@functools.lru_cache(4096)
def exponential_row(past: Past, sigma_next: float, eta: float = 0.0) -> Row:
    """The exact weights of the interpolation through the past levels: order len(past)."""
    if past[0] == sigma_next:
        return STAY
    if sigma_next == 0:
        return LAST
    h = math.log(past[0] / sigma_next)
    H = (1 + eta) * h
    weights = exponential_weights(nodes_of(past, sigma_next), H)
    return Row(math.exp(-H), tuple(weights), sigma_next * math.sqrt(-math.expm1(-2 * eta * h)))


@functools.lru_cache(4096)
def corrected(row: Row, past: Past, sigma_next: float, eta: float = 0.0) -> tuple[float, ...]:
    """What the value at sigma_next adds to the step `row` made: exact weights on it and on the
    past, less those of the row.
    """
    H = (1 + eta) * math.log(past[0] / sigma_next)
    weights = exponential_weights([1.0, *nodes_of(past, sigma_next)], H)
    return (weights[0], *(c - b for c, b in zip(weights[1:], row.b)))


def folded(row: Row, correct: tuple[float, ...] | None) -> Row:
    """A row and the correction before it in one, so that the corrected x need not be formed."""
    padded = itertools.zip_longest(row.b, correct or (), fillvalue=0.0)
    return row._replace(b=tuple(b + row.a * c for b, c in padded))


def adams_table(
    sigmas: Sequence[float], order: int, eta: float = 0.0, lower_order_final: bool = False
) -> Table:
    """Rows of exponential Adams-Bashforth: the order rises 1, 2, .. over the first steps."""
    pasts = past_levels(sigmas, order)
    pasts = lowered(pasts, sigmas) if lower_order_final else pasts
    return [exponential_row(past, sigma_next, eta) for past, sigma_next in zip(pasts, sigmas[1:])]


def combine(x: Tensor, a: float, weights: Sequence[float], terms: Sequence[Tensor]) -> Tensor:
    """a x + sum weights_j terms_j, as a new tensor."""
    pairs = zip(weights, terms)
    if a == 1:
        weight, term = next(pairs)
        x = torch.add(x, term, alpha=weight)
    else:
        x = torch.mul(x, _scalar(a, x.dtype))
    for weight, term in pairs:
        x.add_(term, alpha=weight)
    return x


@functools.lru_cache(4096)
def _scalar(value: float, dtype: torch.dtype) -> Tensor:
    """Return a number as a 0-d tensor on the CPU; a small tensor is multiplied by it in two
    thirds of the time.
    """
    return torch.tensor(value, dtype=dtype)


def walk_table(
    steps: Steps,
    x: Tensor,
    table: Table,
    s_noise: float = 1.0,
    evaluate_again: bool = False,
    start: Callable[[Step, Tensor, Tensor], Asking[Tensor]] | None = None,
) -> Run[Tensor]:
    """The steps of a table. evaluate_again: D is asked for once more at the corrected x (PECE), and
    this answer, which is kept, is the one shown. start: makes the first steps instead, from (step,
    x, D), until there are as many values as the method takes.
    """
    order = max((len(row.b) for row in table), default=1)
    history: deque[Tensor] = deque(maxlen=order)
    for step in steps:
        row = table[step.i]
        denoised = yield from step.ask(x, draft=evaluate_again and bool(row.correct))
        if row.correct:
            x = combine(x, 1.0, row.correct, [denoised, *history])
            denoised = (yield from step.ask(x)) if evaluate_again else denoised
        history.appendleft(denoised)
        if start is not None and len(history) < order and step.sigma_next > 0:
            x = yield from start(step, x, denoised)
        else:
            x = combine(x, row.a, row.b, history)
        x = step.add_noise(x, s_noise * row.s)
        x = yield x
    return x


@sampler(
    order=3,
    noise='path',
    family='exponential multistep',
    reference='Hochbruck & Ostermann 2010, doi:10.1017/S0962492910000048, section 2.5',
)
def sample_exp_ab(
    steps: Steps,
    x: Tensor,
    *,
    order: int = 3,
    eta: float = 0.0,
    s_noise: float = 1.0,
    lower_order_final: bool = False,
    startup: Literal['ramp', 'res_2s'] = 'ramp',
) -> Run[Tensor]:
    """Exponential Adams-Bashforth with exact weights, of any order, for the flow or the reverse SDE
    of strength eta. 1 NFE.

    startup: 'ramp', orders 1, 2, ..; or 'res_2s', which makes the first order - 1 steps by RES-2S
    (2 NFE each) and so keeps the full order 3 (a ramp's first step has an error of h^2).
    lower_order_final: at most as many values as there are steps left, in a schedule whose last step
    goes to 0 or is more than twice as long in log sigma as the one before. Hochbruck & Ostermann
    (2010), doi:10.1017/S0962492910000048, section 2.5.
    """
    starts = {'ramp': None, 'res_2s': res_2s_step}
    if startup not in tuple(starts):
        raise ValueError(unknown('startup', startup, starts))
    if eta and startup != 'ramp':
        raise ValueError(
            "startup must be 'ramp' where eta is above 0, as res_2s makes no noise; got "
            f'{startup!r} and eta {eta}'
        )
    table = adams_table(steps.sigmas, order, eta, lower_order_final)
    return walk_table(steps, x, table, s_noise, start=starts[startup])


@sampler(order=2, family='exponential multistep', reference='Zhang et al. 2023, arXiv:2308.02157')
def sample_res_multistep(steps: Steps, x: Tensor, *, order: int = 2) -> Run[Tensor]:
    """Exponential Adams-Bashforth of order 2 (or another) by the name it bears in RES (Zhang et al.

    2023, arXiv:2308.02157). 1 NFE.
    """
    return walk_table(steps, x, adams_table(steps.sigmas, order))


def ancestral_table(sigmas: Sequence[float], eta: float) -> Table:
    """Rows of RES-2M to sigma_down, then noise of sigma_up; a single value where none is before it.

    The value before counts as the length of its own step, to its sigma_down, away.
    """
    table: list[Row] = []
    h_last = 0.0
    for sigma, sigma_next in itertools.pairwise(sigmas):
        if sigma == sigma_next:
            table.append(STAY)
            continue
        sigma_down, sigma_up = get_ancestral_step(sigma, sigma_next, eta)
        if sigma_down == 0:
            table.append(LAST._replace(s=sigma_up))
            h_last = 0.0
            continue
        h = math.log(sigma / sigma_down)
        nodes = [0.0, -h_last / h] if h_last else [0.0]
        table.append(Row(math.exp(-h), tuple(exponential_weights(nodes, h)), sigma_up))
        h_last = h
    return table


@sampler(
    order=2,
    stochastic=True,
    noise='path',
    family='exponential multistep',
    reference='Zhang et al. 2023, arXiv:2308.02157',
)
def sample_res_multistep_ancestral(
    steps: Steps, x: Tensor, *, eta: float = 1.0, s_noise: float = 1.0
) -> Run[Tensor]:
    """A step of res_multistep to sigma_down, then noise of sigma_up. 1 NFE.

    `exp_ab(order=2, eta=1)` is the reverse SDE of the same strength, another method of order 2.
    """
    return walk_table(steps, x, ancestral_table(steps.sigmas, eta), s_noise)


@sampler(
    order=3,
    family='exponential multistep',
    reference='Hochbruck & Ostermann 2010, doi:10.1017/S0962492910000048, section 2.5',
)
def sample_dpmpp_3m(steps: Steps, x: Tensor, *, lower_order_final: bool = True) -> Run[Tensor]:
    """DPM-Solver++(3M) with the exact curvature term, of which the published one is half (order
    3 against 2). 1 NFE.
    """
    table = adams_table(steps.sigmas, 3, lower_order_final=lower_order_final)
    return walk_table(steps, x, table)
