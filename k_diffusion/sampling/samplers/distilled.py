"""Samplers for distilled models, whose estimate is a sample: LCM and TCD.

Others lose variance with them at any number of steps.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

from torch import Tensor

from ...core.arguments import show_value
from ..loop import Steps
from ..registry import Run, sampler
from .exponential_multistep import Row, walk_table

BETA_MIN, BETA_RANGE = 0.1, 19.9  # of the VP SDE: log(1 + sigma^2) = 0.1 t + 19.9 t^2 / 2


@sampler(
    order=0,
    stochastic=True,
    noise='path',
    family='distilled models',
    reference='Song et al. 2023, arXiv:2303.01469, algorithm 1',
)
def sample_lcm(steps: Steps, x: Tensor, *, s_noise: float = 1.0) -> Run[Tensor]:
    """Consistency sampling: x' = D + sigma' z. 1 NFE.

    Song et al. (2023), arXiv:2303.01469, algorithm 1; for latents Luo et al. (2023),
    arXiv:2310.04378.
    """
    table = [Row(0.0, (1.0,), sigma_next) for sigma_next in steps.sigmas[1:]]
    return walk_table(steps, x, table, s_noise)


@sampler(
    order=0,
    stochastic=True,
    noise='path',
    family='distilled models',
    reference='Zheng et al. 2024, arXiv:2402.19159',
)
def sample_tcd(
    steps: Steps,
    x: Tensor,
    *,
    gamma: float = 0.3,
    s_noise: float = 1.0,
    clock: tuple[Callable[[float], float], Callable[[float], float]] | None = None,
) -> Run[Tensor]:
    """Trajectory consistency: x' = D + sigma_s eps + sqrt(sigma'^2 - sigma_s^2) z, sigma_s at (1 -
    gamma) of the time of sigma'. 1 NFE.

    Zheng et al. (2024), arXiv:2402.19159. gamma 0 is DDIM, 1 is LCM. clock: (sigma to time, time to
    sigma); by default that of the VP SDE with linear beta.
    """
    if not 0 <= gamma <= 1:
        raise ValueError(
            f'gamma={gamma} leads to no time between 0 and that of the next level; give 0 (DDIM) '
            'to 1 (LCM)'
        )
    if clock is not None and (
        not isinstance(clock, Sequence) or len(clock) != 2 or not all(map(callable, clock))
    ):
        raise TypeError(
            f'clock must be two functions, sigma to time and time to sigma; got {show_value(clock)}'
        )
    to_time, to_sigma = clock or (_vp_time, _vp_sigma)
    table = []
    for sigma, sigma_next in itertools.pairwise(steps.sigmas):
        sigma_s = sigma_next * (1 - gamma)  # 0 or sigma_next itself, unless
        if sigma_next and 0 < gamma < 1:
            sigma_s = float(to_sigma((1 - gamma) * to_time(sigma_next)))
        share = sigma_s / sigma if sigma else 0.0
        table.append(Row(share, (1 - share,), math.sqrt(max(0.0, sigma_next**2 - sigma_s**2))))
    return walk_table(steps, x, table, s_noise)


def _vp_time(sigma: float) -> float:
    return (math.sqrt(BETA_MIN**2 + 2 * BETA_RANGE * math.log1p(sigma**2)) - BETA_MIN) / BETA_RANGE


def _vp_sigma(t: float) -> float:
    return math.sqrt(math.expm1(BETA_MIN * t + BETA_RANGE * t**2 / 2))
