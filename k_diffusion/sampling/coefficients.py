"""Coefficients of a step: derivatives, the ancestral split, phi functions, multistep weights.

All are Python floats in float64.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ..core.arguments import check_number, check_whole, show_value
from ..core.registry import unknown
from ..core.tensors import append_dims

INVERSE_FACTORIALS = [1 / math.factorial(n) for n in range(40)]


def to_d(x: Tensor, sigma: Any, denoised: Tensor) -> Tensor:
    """Return dx/dsigma = (x - D) / sigma, the slope of the probability flow.

    Args:
        x: The noisy batch, [B, ...].
        sigma: The noise level: a number or a tensor [B].
        denoised: D, [B, ...].

    Raises:
        ValueError: If sigma is the number 0.
    """
    if isinstance(sigma, Tensor):
        return (x - denoised) / append_dims(sigma, x.ndim)
    if not sigma:
        raise ValueError(
            f'sigma must be > 0, because x has no slope at level 0; got {show_value(sigma)}'
        )
    return (x - denoised).mul_(1 / sigma)


def get_ancestral_step(sigma_from: Any, sigma_to: Any, eta: float = 1.0) -> tuple[Any, Any]:
    """Return how far to denoise in an ancestral step, and how much noise to add.

    sigma_up = eta sigma_to sqrt(1 - sigma_to^2 / sigma_from^2), at most sigma_to. sigma_down^2 +
    sigma_up^2 = sigma_to^2.

    Args:
        sigma_from: The level at the start, > 0: a number or a 0-d tensor.
        sigma_to: The level at the end.
        eta: Noise strength; 0 disables noise, 1 is that of DDPM.

    Returns:
        (sigma_down, sigma_up); 0-d tensors if one of the levels is one.

    Raises:
        ValueError: If the levels rise, or eta is negative or infinite.
    """
    if not eta:
        return sigma_to, 0.0
    if isinstance(sigma_to, Tensor) or isinstance(sigma_from, Tensor):
        start, end = check_number('sigma_from', sigma_from), check_number('sigma_to', sigma_to)
        down, up = get_ancestral_step(start, end, eta)
        like = sigma_to if isinstance(sigma_to, Tensor) else sigma_from
        return like.new_tensor(down), like.new_tensor(up)
    if not 0 <= eta < math.inf or not 0 <= sigma_to <= sigma_from < math.inf or not sigma_from:
        raise ValueError(
            'sigma_from, sigma_to and eta must satisfy sigma_from > 0, 0 <= sigma_to <= sigma_from '
            f'and 0 <= eta < inf; got {show_value(sigma_from)}, {show_value(sigma_to)} and '
            f'{show_value(eta)}'
        )
    sigma_up = min(
        sigma_to, eta * (sigma_to**2 * (sigma_from**2 - sigma_to**2) / sigma_from**2) ** 0.5
    )
    return (sigma_to**2 - sigma_up**2) ** 0.5, sigma_up


def split_step(
    sigma: float, sigma_next: float, eta: float, down: str = 'ddpm'
) -> tuple[float, float]:
    """Split a step of an ancestral sampler by one of two rules.

    Args:
        sigma: The level at its start, > 0.
        sigma_next: The level at its end.
        eta: Noise strength; 0 disables noise.
        down: 'ddpm': sigma_up is eta times that of DDPM (`get_ancestral_step`). 'flow': sigma_down
            is linear in flow time t = sigma / (1 + sigma), with t_down = t' (1 - eta (1 - t' / t)),
            as image programs do for flow models.

    Returns:
        (sigma_down, sigma_up) with sigma_down^2 + sigma_up^2 = sigma_next^2.

    Raises:
        ValueError: If the rule is unknown, the levels rise, or eta is negative or infinite.
    """
    if down not in ('ddpm', 'flow'):
        raise ValueError(unknown('down', down, ('ddpm', 'flow')))
    sigma_down, sigma_up = get_ancestral_step(sigma, sigma_next, eta)
    if down == 'ddpm' or not eta:
        return sigma_down, sigma_up
    # t_down = t' (1 - drop)
    drop = min(1.0, eta * (sigma - sigma_next) / (sigma * (1 + sigma_next)))
    sigma_down = sigma_next * (1 - drop) / (1 + sigma_next * drop)
    return sigma_down, math.sqrt(sigma_next**2 - sigma_down**2)


def phi(k: int, z: float) -> float:
    """Return phi_k(z), a function of exponential integrators.

    phi_0 = e^z, phi_k(z) = (phi_{k-1}(z) - 1 / (k-1)!) / z and phi_k(0) = 1 / k!.

    Args:
        k: An integer >= 0.
        z: A number.
    """
    check_whole('k', k, 0)
    return math.exp(z) if k == 0 else phis(k, z)[k]


def phis(most: int, z: float) -> list[float]:
    """Return phi_0(z) to phi_most(z).

    Near 0, where the recurrence upwards cancels, the last one is summed as a series and the
    recurrence runs downwards.

    Args:
        most: The largest index.
        z: A number.
    """
    if abs(z) >= 1:
        values = [math.exp(z), math.expm1(z) / z]
        for k in range(1, most):
            values.append((values[k] - INVERSE_FACTORIALS[k]) / z)
        return values[: most + 1]
    last, power = 0.0, 1.0
    for n in range(18):
        last += power * INVERSE_FACTORIALS[n + most]
        power *= z
    values = [last]
    for k in range(most - 1, -1, -1):
        values.append(z * values[-1] + INVERSE_FACTORIALS[k])
    return values[::-1]


def lagrange(nodes: Sequence[float]) -> list[list[float]]:
    """Return the Lagrange polynomials of the nodes as rows of coefficients.

    Polynomial i is 1 at node i and 0 at the others. The constant comes first.

    Args:
        nodes: Distinct numbers.

    Raises:
        ValueError: If two nodes are equal.
    """
    if len(set(nodes)) < len(nodes):
        raise ValueError(f'nodes must be distinct numbers; got {[*nodes]}')
    rows = []
    for own in nodes:
        row = [1.0]
        for other in nodes:
            if other != own:
                row = [
                    (low - other * high) / (own - other)
                    for low, high in zip([0.0, *row], [*row, 0.0])
                ]
        rows.append(row)
    return rows


def adams_weights(nodes: Sequence[float], start: float, end: float) -> list[float]:
    """Return the integrals of the Lagrange polynomials of the nodes from start to end.

    Args:
        nodes: Distinct numbers.
        start: Lower limit.
        end: Upper limit, different from start.
    """
    h = end - start
    if not h:
        raise ValueError(f'start and end must differ; got {start} and {end}')
    rows = lagrange([(node - start) / h for node in nodes])
    return [h * math.fsum(c / (k + 1) for k, c in enumerate(row)) for row in rows]


def exponential_weights(nodes: Sequence[float], h: float) -> list[float]:
    """Return the weights b_j of x' = e^-h x + sum b_j D_j for interpolated D.

    b_j is h times the integral of e^{-h (1 - s)} l_j(s) over s in [0, 1], which is sum_k c_jk k! h
    phi_{k+1}(-h).

    Args:
        nodes: Positions of the D_j, from the start of the step in units of the step: 0, -r1, ...; 1
            for a corrector.
        h: The step in log sigma, times 1 + eta for an SDE.

    References:
        Hochbruck & Ostermann (2010), doi:10.1017/S0962492910000048.
    """
    moments = [math.factorial(k) * h * value for k, value in enumerate(phis(len(nodes), -h)[1:])]
    return [math.fsum(c * m for c, m in zip(row, moments)) for row in lagrange(nodes)]


def linear_multistep_coeff(order: int, t: Any, i: int, j: int) -> float:
    """Return the Adams-Bashforth weight over [t[i], t[i + 1]] of the derivative at t[i - j].

    Args:
        order: Number of nodes t[i], ..., t[i - order + 1].
        t: The times.
        i: The step.
        j: The node, counted backwards from t[i].

    Raises:
        ValueError: If the step or the node does not exist.
    """
    check_whole('order', order)
    if not 0 <= j < order or not 0 <= i < len(t) - 1:
        raise ValueError(
            f'i must be one of the {len(t) - 1} steps of t and j in range(order); got i={i}, '
            f'j={j} and order={order}'
        )
    if order - 1 > i:
        raise ValueError(
            f'order must be at most {i + 1} in step {i}, which has {i} past levels; got {order}'
        )
    return adams_weights([float(t[i - k]) for k in range(order)], float(t[i]), float(t[i + 1]))[j]


@functools.cache
def gauss_legendre(n: int) -> tuple[tuple[float, float], ...]:
    """Return n pairs (node, weight) of Gauss-Legendre quadrature on [-1, 1].

    It is exact for polynomials of degree 2 n - 1. The nodes are found by Newton's method.

    Args:
        n: Number of points.
    """
    pairs = []
    for i in range(n):
        x = math.cos(math.pi * (i + 0.75) / (n + 0.5))
        for _ in range(100):
            value, slope = _legendre(n, x)
            x -= value / slope
            if abs(value / slope) < 1e-15:
                break
        pairs.append((x, 2 / ((1 - x * x) * _legendre(n, x)[1] ** 2)))
    return tuple(pairs)


def _legendre(n: int, x: float) -> tuple[float, float]:
    """Return the Legendre polynomial P_n and its derivative at x in (-1, 1)."""
    before, value = 1.0, x
    for k in range(2, n + 1):
        before, value = value, ((2 * k - 1) * x * value - (k - 1) * before) / k
    return value, n * (x * value - before) / (x * x - 1)


def integral(f: Callable[[float], float], start: float, end: float, n: int = 16) -> float:
    """Return the integral of a smooth function from start to end by Gauss-Legendre quadrature.

    Args:
        f: The function.
        start: Lower limit.
        end: Upper limit.
        n: Number of points.
    """
    middle, half = (start + end) / 2, (end - start) / 2
    return half * math.fsum(weight * f(middle + half * node) for node, weight in gauss_legendre(n))
