"""Exponential general linear methods: values of earlier steps, and stages inside the step.

P is the polynomial in log sigma through D at the start of the step and at the starts of steps
before it; a stage at the share c lies at sigma e^{-c h}.

References:
    Ostermann, Thalhammer & Wright (2006), doi:10.1007/s10543-006-0054-3.
"""

from __future__ import annotations

import functools
import math
from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

from ...core.arguments import check_whole
from ..coefficients import exponential_weights, lagrange
from ..definition import sampler
from ..loop import Steps
from ..registry import Run
from .exponential_multistep import Past, past_levels, relative_nodes
from .exponential_tables import KROGSTAD

OSTERMANN = 'Ostermann, Thalhammer & Wright 2006, doi:10.1007/s10543-006-0054-3'
Weights = tuple[float, ...]


def _weights_at(nodes: Sequence[float], place: float) -> list[float]:
    """Return the weights of the values at the nodes in their polynomial at a place."""
    return [math.fsum(c * place**k for k, c in enumerate(row)) for row in lagrange(nodes)]


@functools.lru_cache(4096)
def lawson_rows(past: Past, sigma_next: float, modified: bool) -> tuple[Weights, ...]:
    """Return the weights of the three later stages and of the end of a Lawson step.

    The classical Runge-Kutta method takes a step for D - P, whose linear part is integrated
    exactly; P is integrated exactly. The weights belong to the values of P, newest first, then to
    the stages. The modified end has, in place of P, the polynomial through the last stage as well.

    Args:
        past: The levels of the values, newest first.
        sigma_next: The level at the end of the step.
        modified: Modify the end.
    """
    nodes, h = relative_nodes(past, sigma_next), math.log(past[0] / sigma_next)
    half = exponential_weights([2 * node for node in nodes], h / 2)
    full = exponential_weights(nodes, h)
    middle, decay = _weights_at(nodes, 1 / 2), h * math.exp(-h / 2)
    stages = (
        tuple(half),
        (*(b - h / 2 * p for b, p in zip(half, middle)), h / 2),
        (*(b - decay * p for b, p in zip(full, middle)), 0.0, decay),
    )
    if modified:
        nodes = [*nodes, 1.0]
        full, middle = exponential_weights(nodes, h), _weights_at(nodes, 1 / 2)
        *b, last = (w - 2 / 3 * decay * p for w, p in zip(full, middle))
        return (*stages, (*b, decay / 3, decay / 3, last))
    ends = _weights_at(nodes, 1.0)
    b = [w - 2 / 3 * decay * p - h / 6 * q for w, p, q in zip(full, middle, ends)]
    return (*stages, (*b, decay / 3, decay / 3, h / 6))


def _combine(x: Tensor, decay: float, terms: Sequence[Tensor], weights: Weights) -> Tensor:
    """Return e^{-decay} x plus the sum of the weighted terms."""
    x = x * math.exp(-decay)
    for term, weight in zip(terms, weights):
        if weight:
            x = torch.add(x, term, alpha=weight)
    return x


@sampler(order=4, nfe=4, family='exponential general linear', reference=KROGSTAD)
def sample_exp_lawson(
    steps: Steps, x: Tensor, *, values: int = 2, modified: bool = True
) -> Run[Tensor]:
    """Take generalised Lawson steps: classical Runge-Kutta for D less its extrapolation.

    4 NFE, 1 for the step to 0.

    Args:
        values: Number of values of earlier and this step that are extrapolated.
        modified: Let the end of the step use the last stage as a value too.

    Raises:
        ValueError: If values is not an integer >= 1.

    References:
        Krogstad (2005), doi:10.1016/j.jcp.2004.08.006; Ostermann, Thalhammer & Wright (2006),
        doi:10.1007/s10543-006-0054-3.
    """
    check_whole('values', values)
    pasts, history = past_levels(steps.sigmas, values), deque[Tensor](maxlen=values)
    for step in steps:
        denoised = yield from step.ask(x)
        if step.sigma_next == 0:
            x = denoised
        elif step.sigma_next < step.sigma:
            history.appendleft(denoised)
            *rows, end = lawson_rows(pasts[step.i], step.sigma_next, modified)
            h, terms = math.log(step.sigma / step.sigma_next), list(history)
            for share, row in zip((1 / 2, 1 / 2, 1.0), rows):
                x_i = _combine(x, share * h, terms, row)
                terms.append((yield from step.ask(x_i, step.sigma * math.exp(-share * h))))
            x = _combine(x, h, terms, end)
        x = yield x
    return x


@sampler(order=4, nfe=2, family='exponential general linear', reference=OSTERMANN)
def sample_exp_pec(
    steps: Steps, x: Tensor, *, values: int = 3, corrections: int = 1
) -> Run[Tensor]:
    """Predict the end of the step by exponential Adams-Bashforth, evaluate there and correct.

    1 NFE and one for each correction; 1 for the step to 0.

    Args:
        values: Number of values of the predictor; the corrector has one more.
        corrections: Number of corrections.

    Raises:
        ValueError: If values or corrections is not an integer >= 1.

    References:
        Ostermann, Thalhammer & Wright (2006), doi:10.1007/s10543-006-0054-3.
    """
    check_whole('values', values)
    check_whole('corrections', corrections)
    pasts, history = past_levels(steps.sigmas, values), deque[Tensor](maxlen=values)
    for step in steps:
        denoised = yield from step.ask(x)
        if step.sigma_next == 0:
            x = denoised
        elif step.sigma_next < step.sigma:
            history.appendleft(denoised)
            h = math.log(step.sigma / step.sigma_next)
            nodes = relative_nodes(pasts[step.i], step.sigma_next)
            end = _combine(x, h, history, tuple(exponential_weights(nodes, h)))
            corrector = tuple(exponential_weights([1.0, *nodes], h))
            for _ in range(corrections):
                ahead = yield from step.ask(end, step.sigma_next)
                end = _combine(x, h, [ahead, *history], corrector)
            x = end
        x = yield x
    return x
