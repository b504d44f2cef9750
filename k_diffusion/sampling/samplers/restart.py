"""Restart: noise leads back to a higher level, from which Heun steps go down again.

References:
    Xu et al. (2023), arXiv:2306.14878.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ...core.arguments import is_whole
from ..definition import sampler
from ..loop import Steps
from ..registry import Run


@sampler(
    order=2,
    nfe=2,
    stochastic=True,
    noise='independent',
    family='Restart',
    reference='Xu et al. 2023, arXiv:2306.14878, section 3.1',
)
def sample_restart(
    steps: Steps,
    x: Tensor,
    *,
    s_noise: float = 1.0,
    intervals: Sequence[tuple[float, float]] | None = None,
    times: int = 2,
    inner_steps: int | None = None,
) -> Run[Tensor]:
    """Take Heun steps, and at restart intervals add noise and repeat the way down.

    A restart begins at the level of the schedule nearest to the low end of its interval and adds
    noise up to the high end. 2 NFE, 1 for the step to 0.

    Args:
        s_noise: Factor of the noise.
        intervals: (low, high) noise levels of the restarts. By default one from 0.1 to 2, or to the
            highest level of a schedule below 2; none in a schedule without levels in between.
        times: Number of restarts in each interval.
        inner_steps: Number of steps of each way down; by default a quarter of those of the
            schedule.

    Raises:
        ValueError: If an interval does not fit into the schedule, or times or inner_steps is not an
            integer in its range.

    References:
        Xu et al. (2023), arXiv:2306.14878, section 3.1.
    """
    at = steps.sigmas[0]
    for step in steps.walk(restart_pairs(steps.sigmas, intervals, times, inner_steps)):
        if step.sigma > at:
            x = step.add_noise(x, s_noise * math.sqrt(step.sigma**2 - at**2), at, step.sigma)
        d, h = (yield from step.ask_slope(x)), step.sigma_next - step.sigma
        if step.sigma_next > 0:
            x_2 = torch.add(x, d, alpha=h)
            d = (d + (yield from step.ask_slope(x_2, step.sigma_next))) / 2
        x = torch.add(x, d, alpha=h)
        at = step.sigma_next
        x = yield x
    return x


def restart_pairs(
    sigmas: Sequence[float],
    intervals: Sequence[tuple[float, float]] | None,
    times: int,
    inner_steps: int | None = None,
) -> list[tuple[float, float]]:
    """Return the steps of a schedule with those of the restarts inserted.

    Args:
        sigmas: The noise levels, descending.
        intervals: (low, high) of the restarts, or None for the default one.
        times: Number of restarts in each interval.
        inner_steps: Number of steps of each way down.

    Returns:
        (sigma, sigma_next) of each step.

    Raises:
        ValueError: If an interval does not fit into the schedule, or times or inner_steps is not an
            integer in its range.
    """
    knots = [sigma for sigma in sigmas if sigma > 0]
    inserted: dict[float, list[tuple[float, float]]] = {}
    n = max(1, (len(set(sigmas)) - 1) // 4) if inner_steps is None else inner_steps
    if not is_whole(times, 0) or not is_whole(n):
        raise ValueError(
            'times must be an integer >= 0, and inner_steps an integer >= 1 or None; got '
            f'{times} and {inner_steps}'
        )
    for low, high in _intervals(intervals, knots):
        ends = high ** (1 / 7), low ** (1 / 7)
        down = [high, *((ends[0] + i / n * (ends[1] - ends[0])) ** 7 for i in range(1, n)), low]
        inserted[low] = inserted.get(low, []) + int(times) * list(itertools.pairwise(down))
    pairs = []
    for sigma, sigma_next in itertools.pairwise(sigmas):
        if sigma != sigma_next:
            pairs += [(sigma, sigma_next), *inserted.pop(sigma_next, [])]
    return pairs


def _intervals(
    intervals: Sequence[tuple[float, float]] | None, knots: Sequence[float]
) -> list[tuple[float, float]]:
    """Return the restart intervals in descending order, each low end a level of the schedule.

    The default interval is left out where the schedule has no place for it.
    """

    def knot(low: float) -> float:
        return min((abs(math.log(sigma / low)), sigma) for sigma in knots)[1] if knots else math.inf

    top = max(knots, default=0.0)
    if intervals is None:
        low, high = knot(0.1), min(2.0, top)
        return [(low, high)] if low < high else []
    try:
        pairs = [(float(low), float(high)) for low, high in intervals]
    except (TypeError, ValueError):
        raise ValueError(
            f'intervals must be pairs of noise levels, ((0.1, 2.),) for example; got {intervals}'
        ) from None
    for low, high in pairs:
        if not 0 < low < high < math.inf:
            raise ValueError(
                f'each of intervals must be (low, high) with 0 < low < high; got {(low, high)}'
            )
        fits = knot(low) < min(high, top)
        if not fits or high > top * (1 + 1e-6):  # float32 may have rounded the top down
            raise ValueError(
                f'each of intervals must begin nearest to a level below its end and end within '
                f'the schedule, which has the levels {top:g} to {min(knots, default=0.0):g} '
                f'above 0; got {(low, high)}'
            )
    return sorted(((knot(low), min(high, top)) for low, high in pairs), reverse=True)
