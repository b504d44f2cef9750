"""The original's noise schedules: n descending levels in float32, then 0."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..core.arguments import check_interval, check_number
from .parts import SCHEDULES, append_zero, bounds, check_count, finish, ramp


@SCHEDULES.register('karras')
def get_sigmas_karras(
    n: int, sigma_min: float, sigma_max: float, rho: float = 7.0, device: Any = 'cpu'
) -> Tensor:
    """Space levels uniformly in sigma^(1 / rho): [n + 1].

    Args:
        n: Number of steps.
        sigma_min: The lowest level above 0.
        sigma_max: The highest level.
        rho: The root; a larger one puts more levels at low noise.
        device: The device of the result.

    Raises:
        ValueError: If an argument is out of its range.

    References:
        Karras et al. (2022), arXiv:2206.00364, eq. 5.
    """
    low, high = bounds(n, sigma_min, sigma_max)
    _rho(rho)
    start, end = high ** (1 / rho), low ** (1 / rho)
    return finish((start + ramp(0, 1, n) * (end - start)) ** rho, low, high, device)


@SCHEDULES.register('exponential')
def get_sigmas_exponential(
    n: int, sigma_min: float, sigma_max: float, device: Any = 'cpu'
) -> Tensor:
    """Space levels uniformly in log sigma: [n + 1].

    Args:
        n: Number of steps.
        sigma_min: The lowest level above 0.
        sigma_max: The highest level.
        device: The device of the result.

    Raises:
        ValueError: If an argument is out of its range.
    """
    return get_sigmas_polyexponential(n, sigma_min, sigma_max, 1.0, device)


@SCHEDULES.register('polyexponential')
def get_sigmas_polyexponential(
    n: int, sigma_min: float, sigma_max: float, rho: float = 1.0, device: Any = 'cpu'
) -> Tensor:
    """Let log sigma fall as a ramp from 1 to 0 to the power rho: [n + 1].

    Args:
        n: Number of steps.
        sigma_min: The lowest level above 0.
        sigma_max: The highest level.
        rho: The power; 1 is `exponential`.
        device: The device of the result.

    Raises:
        ValueError: If an argument is out of its range.
    """
    low, high = bounds(n, sigma_min, sigma_max)
    _rho(rho)
    return finish(
        (ramp(1, 0, n) ** rho * math.log(high / low) + math.log(low)).exp(), low, high, device
    )


@SCHEDULES.register('vp')
def get_sigmas_vp(
    n: int, beta_d: float = 19.9, beta_min: float = 0.1, eps_s: float = 1e-3, device: Any = 'cpu'
) -> Tensor:
    """Take sqrt(exp(beta_d t^2 / 2 + beta_min t) - 1) with t from 1 to eps_s: [n + 1].

    Args:
        n: Number of steps.
        beta_d: Slope of the rate of the VP SDE.
        beta_min: Its rate at t = 0.
        eps_s: The last time, in (0, 1].
        device: The device of the result.

    Raises:
        ValueError: If the levels are not finite and descending.

    References:
        Song et al. (2021), arXiv:2011.13456 (VP SDE).
    """
    check_count(n)
    if not 0 < eps_s <= 1:
        raise ValueError(f'eps_s must be in (0, 1], the last time; got {eps_s}')
    # float32 as in the original: exp - 1 cancels at small t, and its result is expected
    t = torch.linspace(1, eps_s, n)
    sigmas = (torch.exp(beta_d * t**2 / 2 + beta_min * t) - 1).sqrt()
    if not (sigmas.isfinite().all() and (sigmas.diff() <= 0).all() and sigmas[0] > 0):
        raise ValueError(
            'beta_d and beta_min must be >= 0 with beta_d / 2 + beta_min < 88 (19.9 and 0.1 are '
            f'usual), so that levels are finite and fall; got {beta_d} and {beta_min}, with '
            f'levels from {sigmas[0].item():g} to {sigmas[-1].item():g}'
        )
    return append_zero(sigmas).to(device)


def get_sigmas_interval(
    n: int,
    sigma_min: float,
    sigma_max: float,
    interval: tuple[float, float],
    share: float = 0.4,
    rho: float = 7.0,
    device: Any = 'cpu',
) -> Tensor:
    """Take Karras levels with one on each edge of an interval (low, high]: [n + 1].

    The interval is that of guidance for example. The steps outside it are divided by the lengths,
    in sigma^(1 / rho), of the parts above and below. With too few steps for three parts the lower
    edge is dropped first. A level on an edge is below it by two ulp of float32, so that it is
    inside (low, edge]. k-diffusion's own.

    Args:
        n: Number of steps.
        sigma_min: The lowest level above 0.
        sigma_max: The highest level.
        interval: The two edges.
        share: Share of the steps between the edges.
        rho: The root.
        device: The device of the result.

    Raises:
        ValueError: If an argument is out of its range.
    """
    least, most = bounds(n, sigma_min, sigma_max)
    low, high = check_interval('interval', interval)
    _rho(check_number('rho', rho))
    if not 0 < check_number('share', share) < 1:
        raise ValueError(f'share must be in (0, 1); got {share}')
    if n == 1:
        return finish(ramp(most, most, 1), most, most, device)
    edges = [edge * (1 - 2**-22) for edge in (high, low) if least < edge < most][: max(n - 2, 0)]
    knots = [most, *edges, least]
    counts = _divide(
        n - 1, [a ** (1 / rho) - b ** (1 / rho) for a, b in itertools.pairwise(knots)], share
    )
    levels = [most]
    for start, end, count in zip(knots, knots[1:], counts):
        a, b = start ** (1 / rho), end ** (1 / rho)
        levels += [(a + i / count * (b - a)) ** rho for i in range(1, count + 1)]
    return finish(torch.tensor(levels, dtype=torch.float64), least, most, device)


def _divide(steps: int, lengths: Sequence[float], share: float) -> list[int]:
    """Return the number of steps of each of one to three parts, at least one.

    Steps are divided by length; of three parts the middle one first takes its share.
    """
    if len(lengths) == 1:
        return [steps]
    middle = [min(max(1, round(share * steps)), steps - 2)] if len(lengths) == 3 else []
    rest = steps - sum(middle)
    first = min(max(1, round(rest * lengths[0] / (lengths[0] + lengths[-1]))), rest - 1)
    return [first, *middle, rest - first]


def _rho(rho: float) -> None:
    """Raise a ValueError unless rho is positive and finite."""
    if not 0 < rho < math.inf:
        raise ValueError(f'rho must be positive and finite (7 is usual for karras); got {rho}')
