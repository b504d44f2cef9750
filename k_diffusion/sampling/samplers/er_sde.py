"""ER-SDE: the reverse SDE whose noise is set by a function (Cui et al. 2023, arXiv:2309.06169)."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from ...core.arguments import is_whole, show_value
from ..coefficients import integral
from ..loop import Steps
from ..registry import Run, sampler
from .exponential_multistep import LAST, STAY, Past, Row, past_levels, walk_table


def er_noise_scaler(sigma: float) -> float:
    """phi(sigma) = sigma (exp(sigma^0.3) + 10), the published choice for VE (Cui et al.

    2023, arXiv:2309.06169).
    """
    return sigma * (math.exp(min(sigma**0.3, 600.0)) + 10)


def er_row(
    past: Past, sigma_next: float, scaler: Callable[[float], float], exact: bool, points: int = 0
) -> Row:
    """x' = r x + (1 - r) D + P D' + Q D'' + sqrt(sigma'^2 - r^2 sigma^2) z, r = phi(sigma') /
    phi(sigma), the derivatives in sigma by differences of the past values. P and Q hold the
    integrals of `_integrals`.
    """
    sigma = past[0]
    if sigma == sigma_next:
        return STAY
    if sigma_next == 0:
        return LAST
    end, step = scaler(sigma_next), sigma_next - sigma
    r = end / scaler(sigma)
    first_integral, second_integral = _integrals(sigma, sigma_next, scaler, points)
    p = step + end * first_integral
    q = step**2 / 2 + end * second_integral
    b = [1 - r, 0.0, 0.0]
    if len(past) > 1:
        gap = sigma - past[1]
        b = [b[0] + p / gap, -p / gap, 0.0]
    if len(past) > 2:
        gain = 2 * q + (p * gap if exact else 0.0)  # of the second divided difference
        first, second = (
            gain / (sigma - past[2]) / gap,
            gain / (sigma - past[2]) / (past[1] - past[2]),
        )
        b = [b[0] + first, b[1] - first - second, second]
    variance = sigma_next**2 - (r * sigma) ** 2
    if variance < -1e-9 * sigma_next**2:
        raise ValueError(
            f'noise_scaler falls short between sigma {sigma:g} and {sigma_next:g}; '
            'noise_scaler(sigma) / sigma must not '
            'decrease as sigma grows'
        )
    return Row(r, tuple(b[: len(past)]), math.sqrt(max(0.0, variance)))


def _integrals(
    sigma: float, sigma_next: float, scaler: Callable[[float], float], points: int
) -> tuple[float, float]:
    """The integrals of 1 / phi(u) and (u - sigma) / phi(u) over u from sigma_next to sigma: to
    rounding, or by the left sum of so many points."""
    if points:
        width = (sigma - sigma_next) / points
        levels = [sigma_next + k * width for k in range(points)]
        return (
            width * math.fsum(1 / scaler(u) for u in levels),
            width * math.fsum((u - sigma) / scaler(u) for u in levels),
        )
    low, high = math.log(sigma_next), math.log(sigma)
    return (
        integral(lambda u: math.exp(u) / scaler(math.exp(u)), low, high),
        integral(lambda u: math.exp(u) * (math.exp(u) - sigma) / scaler(math.exp(u)), low, high),
    )


@sampler(
    order=2,
    stochastic=True,
    noise='path',
    family='ER-SDE',
    reference='Cui et al. 2023, arXiv:2309.06169',
)
def sample_er_sde(
    steps: Steps,
    x: Tensor,
    *,
    s_noise: float = 1.0,
    noise_scaler: Callable[[float], float] | None = None,
    max_stage: int = 3,
    exact: bool = False,
    points: int = 0,
) -> Run[Tensor]:
    """ER-SDE-k, k = max_stage = 1, 2 or 3: an exponential solver for the reverse SDE whose noise is
    set by a function. 1 NFE.

    Cui et al. (2023), arXiv:2309.06169. noise_scaler: phi(sigma); sigma gives the flow, sigma^2
    DDPM's noise, by default er_noise_scaler. exact: k = 3 takes the slope at the step's start where
    the published one takes it half a step back (order 3 in place of 2 for the flow). points: takes
    the integrals of phi by the left sum of so many points, as the authors' code does with 200,
    which leaves an error of about 1 / points in the slope's part; 0: exactly.
    """
    if not is_whole(max_stage) or max_stage > 3:
        raise ValueError(f'max_stage={max_stage} is not known; ER-SDE has 1, 2 or 3')

    def scaler(sigma: float) -> float:
        value = float((noise_scaler or er_noise_scaler)(sigma))
        if not 0 < value < math.inf:
            raise ValueError(
                f'noise_scaler({sigma:g}) is {value}; it must be positive and finite at every '
                'level above 0, sigma ** 2 say'
            )
        return value

    if not is_whole(points, 0):
        raise ValueError(f'points must be a whole number of at least 0; got {show_value(points)}')
    pasts = past_levels(steps.sigmas, max_stage)
    table = [
        er_row(past, sigma_next, scaler, exact, points)
        for past, sigma_next in zip(pasts, steps.sigmas[1:])
    ]
    return walk_table(steps, x, table, s_noise)
