"""Adams-Bashforth in a power of the noise level, the variable in which Karras schedules have equal steps."""
from __future__ import annotations

import functools
import math
from collections.abc import Sequence

from torch import Tensor

from ..core.arguments import is_whole
from ..core.protocols import DenoiseFn
from .catalogue import Run, sampler
from .coefficients import lagrange
from .loop import Callback, ExtraArgs, Sigmas, levels
from .multistep import table_of, walk_slopes
from .quadrature import gauss_legendre


def power_weights(past: Sequence[float], sigma_next: float, rho: float) -> list[float]:
    """w_j = the integral of l_j(u) rho u^(rho - 1) over u from past[0]^(1/rho) to sigma_next^(1/rho): x' = x + sum w_j eps_j.

    l_j: the Lagrange polynomials of the past levels in u = sigma^(1/rho), newest first. For a whole rho the integrand is a
    polynomial of degree len(past) + rho - 2, and the quadrature exact; sigma_next may be 0.
    """
    start, end = past[0] ** (1 / rho), sigma_next ** (1 / rho)
    h = end - start
    rows = lagrange([(sigma ** (1 / rho) - start) / h for sigma in past])
    weights = [0.] * len(past)
    for node, weight in gauss_legendre(12):
        s = (1 + node) / 2
        density = weight / 2 * h * rho * (start + s * h) ** (rho - 1)
        for j, row in enumerate(rows):
            weights[j] += density * math.fsum(c * s ** k for k, c in enumerate(row))
    return weights


def check_power(order: int, rho: float) -> None:
    """Refuses an order or a rho that makes no method."""
    if not is_whole(order):
        raise ValueError(f'order={order} is no number of slopes to use; give a whole number of at least 1 (3 or 4 are usual)')
    if not 0 < rho < math.inf:
        raise ValueError(f'rho={rho} is no root to take of a noise level; it must be positive and finite (7 is usual)')


@sampler(order=3)
def sample_rab(model: DenoiseFn, x: Tensor, sigmas: Sigmas, extra_args: ExtraArgs = None, callback: Callback = None,
               disable: bool | None = None, order: int = 3, rho: float = 7.) -> Run[Tensor]:
    """Adams-Bashforth with exact weights in sigma^(1/rho): the last `order` slopes, interpolated there. 1 NFE.

    rho = 1 is lms, and a large rho the interpolation in log sigma; finite at sigma 0. Made for few steps, with `afs`. The
    order rises 1, 2, .. over the first steps, whose error hides an order above 3.
    """
    check_power(order, rho)
    sigmas = levels(sigmas)
    weights = table_of(functools.partial(power_weights, rho=rho), sigmas, order)
    return (yield from walk_slopes(model, x, sigmas, extra_args, callback, disable, weights))
