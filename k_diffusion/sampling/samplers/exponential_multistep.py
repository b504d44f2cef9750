"""Exponential multistep steps x' = a x + sum b_j D_j + s z, with weights computed before the run.

D is interpolated in log sigma through its last values. The interpolant is integrated exactly
against the linear part of the flow, or of the reverse SDE of strength eta. The methods differ in
the values that they interpolate.
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
from ..definition import sampler
from ..loop import Step, Steps
from ..registry import Run
from ..watch import Asking
from .exponential_runge_kutta import res_2s_step


class Row(NamedTuple):
    """The weights of a step from sigma: x' = a x + sum b_j D_j + s z, with the newest D_j first.

    Attributes:
        a: Weight of x.
        b: Weights of the D_j.
        s: Deviation of the noise.
        correct: Correction of the step before, applied once D at sigma is known: x += sum correct_j
            D_j, over the new value and the older ones. None for no correction.
    """

    a: float
    b: tuple[float, ...]
    s: float = 0.0
    correct: tuple[float, ...] | None = None


Table: TypeAlias = Sequence[Row]

#: The step to sigma 0: the estimate itself. The weights of a higher order do not tend to it.
LAST = Row(0.0, (1.0,))
#: A last step this many times as long in log sigma as the one before takes fewer values.
LEAP = 2.0
#: The step between equal levels.
STAY = Row(1.0, ())


Past: TypeAlias = tuple[float, ...]


def past_levels(sigmas: Sequence[float], order: int) -> list[Past]:
    """Return, for each step, the levels of the last `order` model values, newest first.

    Args:
        sigmas: The noise levels, descending. Equal neighbours count as one level.
        order: Number of values.

    Raises:
        ValueError: If order is not a positive integer.
    """
    if not is_whole(order):
        raise ValueError(
            'order must be an integer >= 1 (3 is the usual value), the number of model values '
            f'used; got {show_value(order)}'
        )
    past: Past = ()
    pasts = []
    for sigma in sigmas[:-1]:
        if not past or sigma != past[0]:
            past = (sigma, *past[: order - 1])
        pasts.append(past)
    return pasts


def limit_order(pasts: list[Past], sigmas: Sequence[float]) -> list[Past]:
    """Limit the order to the number of steps left, where the schedule ends in a long step.

    Args:
        pasts: The past levels of each step.
        sigmas: The noise levels, descending.
    """
    if not ends_in_leap(sigmas):
        return pasts
    counts = [len(set(sigmas[i + 1 :])) for i in range(len(pasts))]
    return [past[: max(n, 1)] for past, n in zip(pasts, counts)]


def ends_in_leap(sigmas: Sequence[float]) -> bool:
    """Return True if the last step goes to 0 or is more than LEAP times as long as the one before.

    Lengths are in log sigma. Some programs end at a level such as 0.001 in place of 0. An
    extrapolation from earlier values is inaccurate over so long a step, and no later step corrects
    it.

    Args:
        sigmas: The noise levels, descending.
    """
    last = sorted({*sigmas})[:3]
    if last[0] == 0:
        return True
    return len(last) == 3 and math.log(last[1] / last[0]) > LEAP * math.log(last[2] / last[1])


def relative_nodes(past: Past, sigma_next: float) -> list[float]:
    """Return the positions of past levels in log sigma: 0, -r1, -r2, ...

    The origin is the start of the step; the unit is its length.

    Args:
        past: The levels, newest first.
        sigma_next: The level at the end of the step.
    """
    h = math.log(past[0] / sigma_next)
    return [math.log(past[0] / sigma) / h for sigma in past]


@functools.lru_cache(4096)
def exponential_row(past: Past, sigma_next: float, eta: float = 0.0) -> Row:
    """Return the exact weights of the interpolation through the past levels; order len(past).

    Args:
        past: The levels of the values, newest first.
        sigma_next: The level at the end of the step.
        eta: Strength of the SDE; 0 is the flow.
    """
    if past[0] == sigma_next:
        return STAY
    if sigma_next == 0:
        return LAST
    h = math.log(past[0] / sigma_next)
    H = (1 + eta) * h
    weights = exponential_weights(relative_nodes(past, sigma_next), H)
    return Row(math.exp(-H), tuple(weights), sigma_next * math.sqrt(-math.expm1(-2 * eta * h)))


@functools.lru_cache(4096)
def correction_weights(
    row: Row, past: Past, sigma_next: float, eta: float = 0.0
) -> tuple[float, ...]:
    """Return the weights of the correction that the value at sigma_next adds to the step `row`.

    They are the exact weights on this value and the past ones, minus those of the row.

    Args:
        row: The weights of the step.
        past: The levels of its values, newest first.
        sigma_next: The level at its end.
        eta: Strength of the SDE; 0 is the flow.
    """
    H = (1 + eta) * math.log(past[0] / sigma_next)
    weights = exponential_weights([1.0, *relative_nodes(past, sigma_next)], H)
    return (weights[0], *(c - b for c, b in zip(weights[1:], row.b)))


def fold_correction(row: Row, correct: tuple[float, ...] | None) -> Row:
    """Merge the correction of the step before into a row, which saves forming the corrected x.

    Args:
        row: The weights of the step.
        correct: Those of the correction, or None.
    """
    padded = itertools.zip_longest(row.b, correct or (), fillvalue=0.0)
    return row._replace(b=tuple(b + row.a * c for b, c in padded))


def adams_table(
    sigmas: Sequence[float], order: int, eta: float = 0.0, lower_order_final: bool = False
) -> Table:
    """Return the rows of exponential Adams-Bashforth; the order rises from 1 over the first steps.

    Args:
        sigmas: The noise levels, descending.
        order: Number of values.
        eta: Strength of the SDE; 0 is the flow.
        lower_order_final: Limit the order at the end of the schedule (`limit_order`).
    """
    pasts = past_levels(sigmas, order)
    pasts = limit_order(pasts, sigmas) if lower_order_final else pasts
    return [exponential_row(past, sigma_next, eta) for past, sigma_next in zip(pasts, sigmas[1:])]


def combine(x: Tensor, a: float, weights: Sequence[float], terms: Sequence[Tensor]) -> Tensor:
    """Return a x + sum weights_j terms_j as a new tensor.

    Args:
        x: A tensor.
        a: Its weight.
        weights: The weights of the terms.
        terms: Tensors like x.
    """
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
    """Return a number as a 0-d CPU tensor, by which small tensors are multiplied faster."""
    return torch.tensor(value, dtype=dtype)


def walk_table(
    steps: Steps,
    x: Tensor,
    table: Table,
    s_noise: float = 1.0,
    evaluate_again: bool = False,
    start: Callable[[Step, Tensor, Tensor], Asking[Tensor]] | None = None,
) -> Run[Tensor]:
    """Run the steps of a table.

    Args:
        steps: The run.
        x: Noise at the first level, [B, ...].
        table: A row for each step.
        s_noise: Factor of the noise.
        evaluate_again: Request D again at the corrected x (PECE); the second answer is kept and
            passed to the callback.
        start: Takes the first steps from (step, x, D), until there are as many values as the method
            uses.
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
    """Take exponential Adams-Bashforth steps of any order for the flow or the reverse SDE.

    The weights are exact. 1 NFE.

    Args:
        order: Number of values; the order of the method.
        eta: Strength of the SDE; 0 is the flow.
        s_noise: Factor of the noise.
        lower_order_final: Use at most as many values as there are steps left, in a schedule whose
            last step goes to 0 or is more than twice as long in log sigma as the one before.
        startup: 'ramp' for orders 1, 2, ... in the first steps; or 'res_2s' for order - 1 first
            steps of RES-2S (2 NFE each), which keeps order 3. With 'ramp' the first step has an
            error of h^2.

    Raises:
        ValueError: If startup is unknown, or eta > 0 with a startup that draws no noise.

    References:
        Hochbruck & Ostermann (2010), doi:10.1017/S0962492910000048, section 2.5.
    """
    starts = {'ramp': None, 'res_2s': res_2s_step}
    if startup not in tuple(starts):
        raise ValueError(unknown('startup', startup, starts))
    if eta and startup != 'ramp':
        raise ValueError(
            "startup must be 'ramp' for eta > 0, because 'res_2s' adds no noise; got "
            f'{startup!r} and eta {eta}'
        )
    table = adams_table(steps.sigmas, order, eta, lower_order_final)
    return walk_table(steps, x, table, s_noise, start=starts[startup])


@sampler(order=2, family='exponential multistep', reference='Zhang et al. 2023, arXiv:2308.02157')
def sample_res_multistep(steps: Steps, x: Tensor, *, order: int = 2) -> Run[Tensor]:
    """Take RES multistep steps, which are exponential Adams-Bashforth of order 2 or another.

    1 NFE.

    Args:
        order: Number of values; the order of the method.

    References:
        Zhang et al. (2023), arXiv:2308.02157.
    """
    return walk_table(steps, x, adams_table(steps.sigmas, order))


def ancestral_table(sigmas: Sequence[float], eta: float) -> Table:
    """Return rows of RES-2M to sigma_down, then noise of level sigma_up.

    A step without a value before uses a single value. The value before counts as far away as its
    own step to its sigma_down was long.

    Args:
        sigmas: The noise levels, descending.
        eta: Noise strength.
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
    """Take a step of res_multistep to sigma_down, then add noise of level sigma_up.

    `exp_ab` with order=2 and eta=1 solves the reverse SDE of the same strength by another method of
    order 2. 1 NFE.

    Args:
        eta: Noise strength; 0 disables noise, 1 is that of DDPM.
        s_noise: Factor of the noise.

    References:
        Zhang et al. (2023), arXiv:2308.02157.
    """
    return walk_table(steps, x, ancestral_table(steps.sigmas, eta), s_noise)


@sampler(
    order=3,
    family='exponential multistep',
    reference='Hochbruck & Ostermann 2010, doi:10.1017/S0962492910000048, section 2.5',
)
def sample_dpmpp_3m(steps: Steps, x: Tensor, *, lower_order_final: bool = True) -> Run[Tensor]:
    """Take DPM-Solver++(3M) steps with the exact curvature term.

    The published term is half of it and has order 2; this method has order 3. 1 NFE.

    Args:
        lower_order_final: Use at most as many values as there are steps left, as in
            `sample_exp_ab`.

    References:
        Hochbruck & Ostermann (2010), doi:10.1017/S0962492910000048, section 2.5.
    """
    table = adams_table(steps.sigmas, 3, lower_order_final=lower_order_final)
    return walk_table(steps, x, table)
