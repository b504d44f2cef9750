"""Solvers for ordinary differential equations: classical Runge-Kutta, and adaptive per item.

References:
    Dormand & Prince (1980), doi:10.1016/0771-050X(80)90013-3 (orders 5 and 4).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor

from ...core.tensors import append_dims, mean_per_item
from ..step_size import check_tolerances

RUNGE_KUTTA = (1 / 6, 1 / 3, 1 / 3, 1 / 6)

STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (
        35 / 384,
        0.0,
        500 / 1113,
        125 / 192,
        -2187 / 6784,
        11 / 84,
    ),  # order 5; stage 1 of the next step
)
TIMES = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
# order 5 minus order 4
ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)

Parts: TypeAlias = tuple[Tensor, ...]
Time = TypeVar('Time', float, Tensor)
Slope: TypeAlias = Callable[[Time, Parts], Parts]


def runge_kutta_step(slope: Slope[float], y: Parts, t: float, h: float) -> Parts:
    """Take a step of the classical method of order 4, with 4 calls of slope.

    Args:
        slope: dy/dt as a function of (t, y).
        y: The state, a tuple of tensors.
        t: The time.
        h: The step.
    """
    k1 = slope(t, y)
    k2 = slope(t + h / 2, _combine(y, [k1], (0.5,), h))
    k3 = slope(t + h / 2, _combine(y, [k2], (0.5,), h))
    k4 = slope(t + h, _combine(y, [k3], (1.0,), h))
    return _combine(y, [k1, k2, k3, k4], RUNGE_KUTTA, h)


def dormand_prince(
    slope: Slope[Tensor],
    y: Parts,
    start: float,
    end: float,
    atol: float,
    rtol: float,
    max_evaluations: int = 10_000,
    report: Callable[[float], object] | None = None,
) -> tuple[Parts, int]:
    """Solve dy/dt = slope(t, y) from start to end by Dormand-Prince 5(4).

    Each item has its own time and steps, so that its result does not depend on the others. A step
    of an item is accepted if in every part its root mean square error is within atol + rtol |y|.

    Args:
        slope: dy/dt as a function of (t, y), with t a float64 tensor [B] on the CPU.
        y: The state, a tuple of tensors [B, ...].
        start: The first time.
        end: The last time.
        atol: Absolute tolerance.
        rtol: Relative tolerance.
        max_evaluations: Largest number of calls of slope.
        report: Called with the share of the way that all items have covered.

    Returns:
        y at end, and the number of calls of slope.

    Raises:
        ValueError: If max_evaluations is exceeded, or the slope is not finite.
    """
    check_tolerances(atol, rtol)
    t = torch.full([len(y[0])], start, dtype=torch.float64)
    h = torch.full_like(t, (end - start) / 1000)
    k, evaluations = [slope(t, y)], 1
    while not (t == end).all():
        if evaluations >= max_evaluations:
            slowest = t[(t - end).abs().argmax()].item()
            raise ValueError(
                f'{evaluations} evaluations only reached t={slowest:g} on the way to {end:g}; '
                'raise '
                'atol, rtol or the limit'
            )
        h = torch.where(h.abs() < (end - t).abs(), h, end - t)
        for share, weights in zip(TIMES, STAGES):
            y_next = _combine(y, k, weights, h)
            k.append(slope(t + share * h, y_next))
        evaluations += len(STAGES)
        error = _error(y, y_next, _combine(None, k, ERROR, h), atol, rtol)
        if not error.isfinite().all():
            raise ValueError(
                f'the slope is NaN or infinite near t={t[~error.isfinite()][0].item():g}; check '
                'the model there'
            )
        is_accepted = error <= 1
        y, k = _select(is_accepted, y_next, y), [_select(is_accepted, k[-1], k[0])]
        t = torch.where(is_accepted, torch.where(h == end - t, end, t + h), t)
        h = h * (0.9 * error.clamp_min(1e-10) ** -0.2).clamp(0.2, 10.0)
        if report is not None:
            report(((t - start) / (end - start)).min().item())
    return y, evaluations


def _combine(
    y: Parts | None, k: Sequence[Parts], weights: Sequence[float], h: float | Tensor
) -> Parts:
    """Return y + h times the sum of the weighted slopes, for each part; h is a number or [B]."""
    sums = []
    for i, slopes in enumerate(zip(*k)):
        total = slopes[0] * weights[0]
        for slope, weight in zip(slopes[1:], weights[1:]):
            total = torch.add(total, slope, alpha=weight)
        total = total * (append_dims(h.to(total), total.ndim) if isinstance(h, Tensor) else h)
        sums.append(total if y is None else y[i] + total)
    return tuple(sums)


def _error(y: Parts, y_next: Parts, difference: Parts, atol: float, rtol: float) -> Tensor:
    """Return the largest error of an item over its parts, in units of the tolerance.

    The result is float64 [B] on the CPU: the only wait for the device in a step.
    """
    worst = [
        mean_per_item(
            (e / (atol + rtol * torch.maximum(a.abs(), b.abs()))).reshape(len(e), -1).square()
        )
        for a, b, e in zip(y, y_next, difference)
    ]
    return torch.stack(worst).amax(0).cpu().double().sqrt()


def _select(condition: Tensor, yes: Parts, no: Parts) -> Parts:
    """Select each item from `yes` or `no`."""
    return tuple(
        torch.where(append_dims(condition.to(a.device), a.ndim), a, b) for a, b in zip(yes, no)
    )
