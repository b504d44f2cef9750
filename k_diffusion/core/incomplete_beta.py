"""The Beta distribution without scipy: its CDF and its quantiles."""

from __future__ import annotations

import math

TINY = 1e-300


def beta_cdf(x: float, a: float, b: float) -> float:
    """Return I_x(a, b), the share of Beta(a, b) below x.

    Args:
        x: A number.
        a: Parameter of the distribution.
        b: Parameter of the distribution.
    """
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - beta_cdf(1 - x, b, a)
    return math.exp(a * math.log(x) + b * math.log1p(-x) - _log_beta(a, b)) / (
        a * _fraction(x, a, b)
    )


def beta_quantile(p: float, a: float, b: float) -> float:
    """Return the x with I_x(a, b) = p, near 0 to relative precision.

    Args:
        p: In [0, 1].
        a: Parameter of the distribution, > 0.
        b: Parameter of the distribution, > 0.

    Raises:
        ValueError: If an argument is out of its range.
    """
    if not (0 <= p <= 1 and 0 < a < math.inf and 0 < b < math.inf):
        raise ValueError(
            f'p must be in [0, 1] and a, b positive and finite; got p={p}, a={a}, b={b}'
        )
    if p in (0, 1):
        return float(p)
    return _solve(p, a, b) if p <= beta_cdf(0.5, a, b) else 1 - _solve(1 - p, b, a)


def _solve(p: float, a: float, b: float) -> float:
    """Return a quantile of at most 1/2 by Newton's method on log I over log x.

    It is kept in a bracket that every step narrows.
    """
    y = min(
        (math.log(p * a) + _log_beta(a, b)) / a, math.log(0.5)
    )  # I ~ x^a / (a B(a, b)) at small x
    low, high = min(y, -1.0) * 2 - 1, math.log(0.5) + 1e-9
    for _ in range(200):
        x = math.exp(y)
        cdf = max(beta_cdf(x, a, b), TINY)
        error = math.log(cdf / p)
        low, high = (y, high) if error < 0 else (low, y)
        slope = math.exp(a * y + (b - 1) * math.log1p(-x) - _log_beta(a, b)) / cdf
        step = y - error / slope if slope > 0 else low
        step = step if low < step < high else (low + high) / 2
        if abs(step - y) <= 1e-15 * max(1.0, abs(y)):
            break
        y = step
    return math.exp(y)


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def _fraction(x: float, a: float, b: float) -> float:
    """Return 1 / the continued fraction of the incomplete beta function, by Lentz's method.

    References:
        Abramowitz & Stegun (1964), 26.5.8.
    """
    value, numerator, denominator = 1.0, 1.0, 0.0
    for i in range(1, 10000):
        m = i // 2
        if i % 2:
            term = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            term = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        denominator = 1 / (1 + term * denominator or TINY)
        numerator = 1 + term / numerator or TINY
        value *= numerator * denominator
        if abs(numerator * denominator - 1) < 1e-16:
            break
    return value


def student_quantile(p: float, freedom: float) -> float:
    """Return the p-quantile of Student's t: t^2 / (t^2 + f) is Beta(1/2, f/2).

    Args:
        p: In [1/2, 1).
        freedom: Degrees of freedom, > 0.
    """
    share = beta_quantile(2 * p - 1, 0.5, min(freedom, 1e6) / 2)
    return math.sqrt(min(freedom, 1e6) * share / (1 - share))
