"""Gauss-Legendre quadrature, for weights whose integrals have no closed form."""
from __future__ import annotations

import functools
import math
from collections.abc import Callable


@functools.cache
def gauss_legendre(n: int) -> tuple[tuple[float, float], ...]:
    """The n pairs (node, weight) on [-1, 1], exact for polynomials of degree 2 n - 1; the nodes by Newton's method."""
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
    """The Legendre polynomial P_n and its derivative at x in (-1, 1)."""
    before, value = 1., x
    for k in range(2, n + 1):
        before, value = value, ((2 * k - 1) * x * value - (k - 1) * before) / k
    return value, n * (x * value - before) / (x * x - 1)


def integral(f: Callable[[float], float], start: float, end: float, n: int = 16) -> float:
    """The integral of a smooth function from start to end, by n points."""
    middle, half = (start + end) / 2, (end - start) / 2
    return half * math.fsum(weight * f(middle + half * node) for node, weight in gauss_legendre(n))
