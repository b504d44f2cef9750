"""Samplers of distilled models: LCM and TCD for consistency models, and flow-map steps.

Other samplers lose variance with such models at any number of steps.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

from torch import Tensor

from ...core.arguments import show_value
from ..definition import sampler
from ..loop import Steps
from ..registry import Run
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
    """Sample a consistency model: x' = D + sigma' z.

    1 NFE.

    Args:
        s_noise: Factor of the noise.

    References:
        Song et al. (2023), arXiv:2303.01469, algorithm 1.
        Luo et al. (2023), arXiv:2310.04378 (latents).
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
    """Sample a trajectory consistency model: x' = D + sigma_s eps + noise.

    sigma_s is the level at (1 - gamma) times the time of sigma'; the noise has the deviation
    sqrt(sigma'^2 - sigma_s^2). 1 NFE.

    Args:
        gamma: Share of the noise, in [0, 1]; 0 is DDIM, 1 is LCM.
        s_noise: Factor of the noise.
        clock: (sigma to time, time to sigma); by default those of the VP SDE with linear beta.

    Raises:
        ValueError: If gamma is outside [0, 1].
        TypeError: If clock is not a pair of functions.

    References:
        Zheng et al. (2024), arXiv:2402.19159.
    """
    if not 0 <= gamma <= 1:
        raise ValueError(f'gamma must be in [0, 1] (0 is DDIM, 1 is LCM); got {gamma}')
    if clock is not None and (
        not isinstance(clock, Sequence) or len(clock) != 2 or not all(map(callable, clock))
    ):
        raise TypeError(
            f'clock must be two functions, sigma to time and time to sigma; got {show_value(clock)}'
        )
    to_time, to_sigma = clock or (_vp_time, _vp_sigma)
    table = []
    for sigma, sigma_next in itertools.pairwise(steps.sigmas):
        sigma_s = sigma_next * (1 - gamma)  # exact for gamma 0 and 1, and at level 0
        if sigma_next and 0 < gamma < 1:
            sigma_s = float(to_sigma((1 - gamma) * to_time(sigma_next)))
        share = sigma_s / sigma if sigma else 0.0
        table.append(Row(share, (1 - share,), math.sqrt(max(0.0, sigma_next**2 - sigma_s**2))))
    return walk_table(steps, x, table, s_noise)


@sampler(
    order=1,
    noise='path',
    family='distilled models',
    reference='Boffi et al. 2024, arXiv:2406.07507; Kim et al. 2023, arXiv:2310.02279',
)
def sample_flow_map(
    steps: Steps, x: Tensor, *, gamma: float = 0.0, s_noise: float = 1.0
) -> Run[Tensor]:
    """Take steps of a flow map: x' = M(x, sigma, sqrt(1 - gamma^2) sigma') + gamma sigma' z.

    M is the model's own map between two levels, exact for steps of any length if the model is. For
    a model that is not a flow map, M is a step of Euler's method. 1 NFE.

    Args:
        gamma: From 0 (no noise) to 1 (consistency sampling, as `lcm`).
        s_noise: Factor of the noise.

    Raises:
        ValueError: If gamma is outside [0, 1].

    References:
        Boffi et al. (2024), arXiv:2406.07507.
        Kim et al. (2023), arXiv:2310.02279 (gamma).
    """
    if not 0 <= gamma <= 1:
        raise ValueError(
            f'gamma must be from 0 (no noise) to 1 (as much as consistency sampling); got {gamma}'
        )
    for step in steps:
        x = yield from step.ask_map(x, math.sqrt(1 - gamma**2) * step.sigma_next)
        x = step.add_noise(x, gamma * step.sigma_next * s_noise)
        x = yield x
    return x


def _vp_time(sigma: float) -> float:
    """Return the time t of a level in the VP SDE with linear beta."""
    return (math.sqrt(BETA_MIN**2 + 2 * BETA_RANGE * math.log1p(sigma**2)) - BETA_MIN) / BETA_RANGE


def _vp_sigma(t: float) -> float:
    """Return the level at time t in the VP SDE with linear beta."""
    return math.sqrt(math.expm1(BETA_MIN * t + BETA_RANGE * t**2 / 2))
