"""ER-SDE: solvers of the reverse SDE with noise set by a function.

References:
    Cui et al. (2023), arXiv:2309.06169.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from ...core.arguments import is_whole, show_value
from ..coefficients import integral
from ..definition import sampler
from ..loop import Steps
from ..registry import Run
from .exponential_multistep import LAST, STAY, Past, Row, past_levels, walk_table


def er_noise_scaler(sigma: float) -> float:
    """Return phi(sigma) = sigma (exp(sigma^0.3) + 10), the published choice for VE.

    Args:
        sigma: The noise level.

    References:
        Cui et al. (2023), arXiv:2309.06169.
    """
    return sigma * (math.exp(min(sigma**0.3, 600.0)) + 10)


def er_row(
    past: Past, sigma_next: float, scaler: Callable[[float], float], exact: bool, points: int = 0
) -> Row:
    """Return the weights of a step of ER-SDE.

    x' = r x + (1 - r) D + P D' + Q D'' + sqrt(sigma'^2 - r^2 sigma^2) z with r = phi(sigma') /
    phi(sigma). The derivatives in sigma are differences of the past values. P and Q hold the
    integrals of `_integrals`.

    Args:
        past: The levels of the past values, newest first.
        sigma_next: The level at the end of the step.
        scaler: phi.
        exact: Take the slope at the start of the step; the published method takes it half a step
            earlier.
        points: Number of points of the quadrature; 0 integrates to rounding.

    Raises:
        ValueError: If phi(sigma) / sigma decreases, so that the variance is negative.
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
        gain = 2 * q + (p * gap if exact else 0.0)
        # gain of the second divided difference, over its two gaps
        first = gain / (sigma - past[2]) / gap
        second = gain / (sigma - past[2]) / (past[1] - past[2])
        b = [b[0] + first, b[1] - first - second, second]
    variance = sigma_next**2 - (r * sigma) ** 2
    if variance < -1e-9 * sigma_next**2:
        raise ValueError(
            'noise_scaler must return phi with phi(sigma) / sigma not decreasing in sigma; got '
            f'too small a value between sigma {sigma:g} and {sigma_next:g}'
        )
    return Row(r, tuple(b[: len(past)]), math.sqrt(max(0.0, variance)))


def _integrals(
    sigma: float, sigma_next: float, scaler: Callable[[float], float], points: int
) -> tuple[float, float]:
    """Return the integrals of 1 / phi(u) and (u - sigma) / phi(u) from sigma_next to sigma.

    Args:
        points: Number of points of the left sum; 0 integrates to rounding.
    """
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
    """Take ER-SDE steps: an exponential solver of the reverse SDE with noise set by a function.

    1 NFE.

    Args:
        s_noise: Factor of the noise.
        noise_scaler: phi(sigma); sigma gives the probability flow, sigma^2 the noise of DDPM. By
            default `er_noise_scaler`.
        max_stage: The k of ER-SDE-k: 1, 2 or 3.
        exact: For k = 3, take the slope at the start of the step; the published method takes it
            half a step earlier (order 3 in place of 2 for the flow).
        points: Integrate phi by a left sum of this many points, as the authors' code does with 200;
            its error is about 1 / points in the slope term. 0 integrates to rounding.

    Raises:
        ValueError: If max_stage or points is out of range, or noise_scaler returns a value that is
            not positive and finite.

    References:
        Cui et al. (2023), arXiv:2309.06169.
    """
    if not is_whole(max_stage) or max_stage > 3:
        raise ValueError(f'max_stage must be 1, 2 or 3; got {max_stage}')

    def scaler(sigma: float) -> float:
        value = float((noise_scaler or er_noise_scaler)(sigma))
        if not 0 < value < math.inf:
            raise ValueError(
                f'noise_scaler must return a positive finite number at every level above 0, as '
                f'sigma ** 2 does; got {value} at sigma {sigma:g}'
            )
        return value

    if not is_whole(points, 0):
        raise ValueError(f'points must be an integer >= 0; got {show_value(points)}')
    pasts = past_levels(steps.sigmas, max_stage)
    table = [
        er_row(past, sigma_next, scaler, exact, points)
        for past, sigma_next in zip(pasts, steps.sigmas[1:])
    ]
    return walk_table(steps, x, table, s_noise)
