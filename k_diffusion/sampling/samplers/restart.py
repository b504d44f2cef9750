"""Restart: noise leads back up, and Heun steps down again (Xu et al. 2023, arXiv:2306.14878)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ...core.arguments import is_whole
from ..loop import Steps
from ..registry import Run, sampler


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
    """Restart: at the knot nearest to an interval's low end noise leads back to its high end,
    `times` times, by Heun steps all along.

    Xu et al. (2023), arXiv:2306.14878, section 3.1. intervals: by default from 0.1 to 2, or to the
    highest level of a schedule below that; none in a schedule without levels in between.
    inner_steps: of each way down (a quarter of the schedule's by default). 2 NFE, but 1 for the
    step to 0.
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
    """The steps of a schedule with the ways down from each interval's high end put in, the
    highest interval first.
    """
    knots = [sigma for sigma in sigmas if sigma > 0]
    inserted: dict[float, list[tuple[float, float]]] = {}
    n = max(1, (len(set(sigmas)) - 1) // 4) if inner_steps is None else inner_steps
    if not is_whole(times, 0) or not is_whole(n):
        raise ValueError(
            f'times={times} and inner_steps={inner_steps} make no ways down; give whole numbers, '
            'times of at least 0 and '
            'inner_steps of at least 1, or None'
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
    """The restart intervals from the highest down, each low end a knot of the schedule; the
    default one where it has a place.
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
            f'intervals={intervals} are no pairs of noise levels; give ((0.1, 2.),) say'
        ) from None
    for low, high in pairs:
        if not 0 < low < high < math.inf:
            raise ValueError(
                f'the restart interval {(low, high)} is no range of noise levels; give 0 < low < '
                'high'
            )
        if not knot(low) < min(high, top) or high > top * (
            1 + 1e-6
        ):  # the top, which float32 may have rounded down
            raise ValueError(
                f'the restart interval {(low, high)} does not fit into a schedule of the levels '
                f'{top:g} to '
                f'{min(knots, default=0.0):g} above 0; give one that begins nearest to a level '
                'below its end and ends within'
            )
    return sorted(((knot(low), min(high, top)) for low, high in pairs), reverse=True)
