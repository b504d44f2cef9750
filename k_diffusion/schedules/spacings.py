"""Further schedules between two noise levels: n descending levels in float32, then 0."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..core.incomplete_beta import beta_quantile
from .parts import SCHEDULES, append_zero, bounds, check_positive, distinct, finish, ramp


@SCHEDULES.register('beta')
def get_sigmas_beta(
    n: int,
    sigma_min: float,
    sigma_max: float,
    alpha: float = 0.6,
    beta: float = 0.6,
    device: Any = 'cpu',
) -> Tensor:
    """Take sigma_min + q (sigma_max - sigma_min), q quantiles of Beta(alpha, beta): [n + 1].

    The quantiles are those at 1, ..., 0. Linear in sigma, which is coarse at small levels for a
    large sigma_max. For a model with a table of levels use get_sigmas_beta_table, whose quantiles
    are in the index of the table.

    Args:
        n: Number of steps.
        sigma_min: The lowest level above 0.
        sigma_max: The highest level.
        alpha: Parameter of the distribution, > 0.
        beta: Parameter of the distribution, > 0.
        device: The device of the result.

    References:
        Lee et al. (2024), arXiv:2407.12173.
    """
    low, high = bounds(n, sigma_min, sigma_max)
    check_positive('0.6 is usual', alpha=alpha, beta=beta)
    q = torch.tensor(
        [beta_quantile(p, alpha, beta) for p in ramp(1, 0, n).tolist()], dtype=torch.float64
    )
    return finish(low + q * (high - low), low, high, device)


@SCHEDULES.register('beta57')
def get_sigmas_beta57(n: int, sigma_min: float, sigma_max: float, device: Any = 'cpu') -> Tensor:
    """Take get_sigmas_beta with alpha 0.5 and beta 0.7, denser at small levels: [n + 1].

    Args:
        n: Number of steps.
        sigma_min: The lowest level above 0.
        sigma_max: The highest level.
        device: The device of the result.

    References:
        Lee et al. (2024), arXiv:2407.12173.
    """
    return get_sigmas_beta(n, sigma_min, sigma_max, 0.5, 0.7, device)


@SCHEDULES.register('kl_optimal')
def get_sigmas_kl_optimal(
    n: int, sigma_min: float, sigma_max: float, sigma_data: float = 1.0, device: Any = 'cpu'
) -> Tensor:
    """Space levels uniformly in atan(sigma / sigma_data): [n + 1].

    Euler's method has the least error at them on Gaussian data of that standard deviation: each
    step keeps the cosine of its angle of the spread, and equal angles give the largest product.

    Args:
        n: Number of steps.
        sigma_min: The lowest level above 0.
        sigma_max: The highest level.
        sigma_data: Standard deviation of the data.
        device: The device of the result.

    References:
        Sabour et al. (2024), arXiv:2404.14507, section 3.1.
    """
    low, high = bounds(n, sigma_min, sigma_max)
    check_positive('the standard deviation of the data', sigma_data=sigma_data)
    angles = ramp(math.atan(high / sigma_data), math.atan(low / sigma_data), n)
    return finish(sigma_data * angles.tan(), low, high, device)


@SCHEDULES.register('laplace')
def get_sigmas_laplace(
    n: int,
    sigma_min: float,
    sigma_max: float,
    mu: float = 0.0,
    beta: float = 0.5,
    device: Any = 'cpu',
) -> Tensor:
    """Take log sigma at uniform quantiles of Laplace(mu, beta), dense around e^mu: at most [n + 1].

    log sigma = mu - beta sign(1/2 - p) log(1 - |1 - 2p| + 1e-5) with p from 0 to 1, clamped to the
    two bounds. Equal neighbours that this makes are dropped.

    Args:
        n: Number of steps.
        sigma_min: The lowest level above 0.
        sigma_max: The highest level.
        mu: log sigma of the densest levels.
        beta: Scale, > 0.
        device: The device of the result.

    Raises:
        ValueError: If an argument is out of its range.

    References:
        Hang et al. (2024), arXiv:2407.03297.
    """
    low, high = bounds(n, sigma_min, sigma_max)
    check_positive('0.5 is usual', beta=beta)
    if not math.isfinite(mu):
        raise ValueError(f'mu must be finite, the log sigma of the densest levels; got {mu}')
    p = ramp(0, 1, n)
    sigmas = (
        (mu - beta * (0.5 - p).sign() * (1 - (1 - 2 * p).abs() + 1e-5).log()).exp().clamp(low, high)
    )
    return append_zero(distinct(finish(sigmas, low, high, device)[:-1]))
