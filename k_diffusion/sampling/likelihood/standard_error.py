"""Standard errors and 95 % intervals of a likelihood, from P estimates with different probes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...core.incomplete_beta import student_quantile


def error_of_blocks(shares: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the error of an integral whose parts have independent probes.

    Let s_k be the estimated variance of the mean share of part k, with P - 1 degrees of freedom.
    Then sum s_k has (sum s_k)^2 / q - 2 degrees for q = sum s_k^2 / (P + 1): the formula of
    Satterthwaite minus the bias of s_k^2. One more degree is subtracted, because few parts carry
    the error and they are not Gaussian; without it the interval covered 91 % of the points of a
    mixture.

    Args:
        shares: [K, B, P], the share of each of K parts in each of P integrals.

    Returns:
        The standard error [B] of the mean integral, and the ends [B] of its interval relative to
            it.

    References:
        Satterthwaite (1946), "An approximate distribution of estimates of variance components".
    """
    least = shares.shape[2] - 1
    variances = shares.double().var(2) / shares.shape[2]
    total, q = variances.sum(0), variances.square().sum(0) / (shares.shape[2] + 1)
    freedom = (total.square() / q.clamp_min(1e-300) - 3).clamp_min(least)
    stderr = total.sqrt()
    half = stderr * _quantiles(torch.where(q > 0, freedom, 1e6))
    return stderr, -half, half


def error_of_integrals(integrals: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the error of the mean of P independent integrals, which may be skewed.

    A probe of +-1 that stays the same leaves a quadratic form of it, which is often skewed like
    chi^2. Each end is the farther one of two: by Student's t, and by the transformation of t that
    removes the skewness, T + g T^2 / (3 sqrt P) + g^2 T^3 / (27 P) + g / (6 sqrt P) with g the
    skewness of the sample.

    Args:
        integrals: [B, P] with P >= 2.

    Returns:
        The standard error [B] of the mean, and the ends [B] of its interval relative to it.

    References:
        Hall (1992), "On the removal of skewness by transformation", J. R. Statist. Soc. B 54,
            221-228.
    """
    n = integrals.shape[1]
    deviations = integrals.double() - integrals.double().mean(1, keepdim=True)
    spread = deviations.square().mean(1).sqrt()
    stderr, t = spread / math.sqrt(n - 1), student_quantile(0.975, n - 1)
    skewness = deviations.pow(3).mean(1) / spread.pow(3).clamp_min(1e-300)
    a = skewness / math.sqrt(n)
    above = -_undo_transformation(torch.full_like(a, -t), a)
    below = -_undo_transformation(torch.full_like(a, t), a)
    return stderr, stderr * below.clamp_max(-t), stderr * above.clamp_min(t)


def _undo_transformation(value: Tensor, a: Tensor) -> Tensor:
    """Return the T whose transformation is the value; a is the skewness over the root of P."""
    a = torch.where(a.abs() < 1e-6, 1e-6, a)
    cube = 1 + a * (value - a / 6)
    return 3 / a * (cube.sign() * cube.abs().pow(1 / 3) - 1)


def _quantiles(freedom: Tensor) -> Tensor:
    """Return the 97.5 % quantiles of Student's t."""
    return torch.tensor(
        [student_quantile(0.975, f) for f in freedom.tolist()],
        dtype=torch.float64,
        device=freedom.device,
    )
