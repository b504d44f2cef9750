"""An adaptive solver for ordinary differential equations: Dormand and Prince (1980), orders 5 and 4, doi:10.1016/0771-050X(80)90013-3."""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0., 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),  # the fifth order, and the first stage of the next step
)
TIMES = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1., 1.)
ERROR = (71 / 57600, 0., -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)  # fifth order minus fourth

Parts: TypeAlias = tuple[Tensor, ...]
Slope: TypeAlias = Callable[[float, Parts], Parts]


def dormand_prince(slope: Slope, y: Parts, start: float, end: float, atol: float, rtol: float,
                   max_evaluations: int = 10_000) -> tuple[Parts, int]:
    """(y at end, calls of slope) for dy/dt = slope(t, y), y a tuple of tensors [B, ...].

    A step is accepted when in every part and every item the root mean square error is within atol + rtol |y|.
    """
    t, h = start, (end - start) / 1000
    k, evaluations = [slope(t, y)], 1
    while t != end:
        if evaluations >= max_evaluations:
            raise ValueError(f'{evaluations} evaluations ended at t={t:g} on the way to {end:g}; raise atol and rtol, or the limit')
        h = h if abs(h) < abs(end - t) else end - t
        for share, weights in zip(TIMES, STAGES):
            y_next = _combine(y, k, weights, h)
            k.append(slope(t + share * h, y_next))
        evaluations += len(STAGES)
        error = _error(y, y_next, _combine(None, k, ERROR, h), atol, rtol)
        if not math.isfinite(error):
            raise ValueError(f'the slope is NaN or infinite near t={t:g}; check the model there')
        if error <= 1:
            t, y, first = (end if h == end - t else t + h), y_next, k[-1]
        else:
            first = k[0]
        k = [first]
        h *= min(10., max(0.2, 0.9 * max(error, 1e-10) ** -0.2))
    return y, evaluations


def _combine(y: Parts | None, k: Sequence[Parts], weights: Sequence[float], h: float) -> Parts:
    """y + h sum of the weighted slopes, part by part."""
    sums = []
    for i, slopes in enumerate(zip(*k)):
        total = torch.zeros_like(slopes[0]) if y is None else y[i]
        for slope, weight in zip(slopes, weights):
            total = torch.add(total, slope, alpha=h * weight)
        sums.append(total)
    return tuple(sums)


def _error(y: Parts, y_next: Parts, difference: Parts, atol: float, rtol: float) -> float:
    """The largest error of any part and item, in units of the tolerance."""
    worst = [(e / (atol + rtol * torch.maximum(a.abs(), b.abs()))).reshape(len(e), -1).square().mean(1).max()
             for a, b, e in zip(y, y_next, difference)]
    return math.sqrt(torch.stack(worst).max())
