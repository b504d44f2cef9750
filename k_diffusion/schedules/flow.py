"""Schedules in the time t of flow models, as levels sigma = t / (1 - t).

Flow models use x_t = (1 - t) x_0 + t noise. Every sampler here takes such levels. The shift t' = s
t / (1 + (s - 1) t) is sigma' = s sigma. Time 1 is an infinite level, which becomes sigma_max.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..core.arguments import check_number, show_value
from ..core.registry import unknown
from .parts import SCHEDULES, bounds, check_count, check_positive, ramp, within


@SCHEDULES.register('flow')
def get_sigmas_flow(
    n: int,
    sigma_min: float = 1e-4,
    sigma_max: float = 4096.0,
    shift: float = 1.0,
    device: Any = 'cpu',
) -> Tensor:
    """Take sigma = shift t / (1 - t) with t = 1 - i / n for i from 0 to n - 1: at most [n + 1].

    Levels outside the bounds are clamped to them, and equal neighbours dropped.

    Args:
        n: Number of steps.
        sigma_min: The lowest level.
        sigma_max: The highest level.
        shift: The shift: 3 for Stable Diffusion 3, flux_shift(tokens) for Flux.
        device: The device of the result.

    References:
        Esser et al. (2024), arXiv:2403.03206, section 5.3.2.
    """
    low, high = bounds(n, sigma_min, sigma_max)
    check_positive('1 for no shift, 3 is usual', shift=shift)
    return within(shift * flow_time_to_sigma(ramp(1, 0, n + 1)[:-1]), low, high, device)


@SCHEDULES.register('linear_quadratic')
def get_sigmas_linear_quadratic(
    n: int,
    sigma_min: float,
    sigma_max: float,
    threshold_noise: float = 0.025,
    linear_steps: int | None = None,
    device: Any = 'cpu',
) -> Tensor:
    """Let flow time fall linearly by threshold_noise, then quadratically to 0: at most [n + 1].

    1 - t_i = threshold i / L up to i = L = linear_steps, then threshold + threshold (i - L) / L + c
    (i - L)^2 with t_n = 0; the slope is continuous. Levels outside the bounds are clamped to them,
    and equal neighbours dropped. From the video model Mochi; not published in a paper.

    Args:
        n: Number of steps.
        sigma_min: The lowest level.
        sigma_max: The highest level.
        threshold_noise: Flow time covered by the linear part.
        linear_steps: Number of its steps; n // 2 by default.
        device: The device of the result.
    """
    low, high = bounds(n, sigma_min, sigma_max)
    i = ramp(0, n, n + 1)[:-1]
    if n == 1:
        return within(flow_time_to_sigma(1 - i), low, high, device)
    linear = n // 2 if linear_steps is None else linear_steps
    _check_linear(n, linear, threshold_noise)
    slope, rest = threshold_noise / linear, n - linear
    curve = (1 - threshold_noise - slope * rest) / rest**2
    progress = slope * i + curve * (i - linear).clamp(min=0) ** 2
    return within(flow_time_to_sigma(1 - progress), low, high, device)


@SCHEDULES.register('bong_tangent')
def get_sigmas_bong_tangent(
    n: int, sigma_min: float, sigma_max: float, device: Any = 'cpu'
) -> Tensor:
    """Let flow time fall from 1 to 1/2 and on to 0 along two arc tangents: at most [n + 1].

    With N = n + 2 and m = floor(0.6 N), the first curve has the indices 0 to m - 1 and is steepest
    at m; the second has the indices 0 to N - m - 1 and is steepest at 0. The slope is 8 / N per
    index, and each curve is scaled to its two ends. Levels outside the bounds are clamped to them,
    and equal neighbours dropped. A schedule of image programs, not published in a paper.

    Args:
        n: Number of steps.
        sigma_min: The lowest level.
        sigma_max: The highest level.
        device: The device of the result.
    """
    low, high = bounds(n, sigma_min, sigma_max)
    places = n + 2
    first = max(int(0.6 * places), 2)
    t = torch.cat(
        [
            _tangent(1.0, 0.5, first, first, 8 / places)[:-1],
            _tangent(0.5, 0.0, places - first, 0, 8 / places),
        ]
    )
    return within(flow_time_to_sigma(t[:-1]), low, high, device)


def _tangent(start: float, end: float, n: int, pivot: int, slope: float) -> Tensor:
    """Return an arc tangent from start to end in n values, steepest at the pivot."""
    curve = -(slope * (ramp(0, n - 1, n) - pivot)).atan()
    return end + (start - end) * (curve - curve[-1]) / (curve[0] - curve[-1])


def flow_time_to_sigma(t: Tensor) -> Tensor:
    """Return t / (1 - t), which is infinite at 1.

    Args:
        t: Flow times in [0, 1].
    """
    return t / (1 - t)


def sigma_to_flow_time(sigma: Tensor) -> Tensor:
    """Return sigma / (1 + sigma), which is 1 at infinity.

    Args:
        sigma: Noise levels.
    """
    return 1 / (1 + 1 / sigma)


def flow_table(shift: float = 1.0, n: int = 1000, sigma_max: float = 4096.0) -> Tensor:
    """Return the ascending levels [n] of a flow model trained at t = 1/n, 2/n, ..., 1.

    It is a table for the schedules of discrete models.

    Args:
        shift: The shift of the flow time.
        n: Number of levels.
        sigma_max: The level in place of the infinite one.
    """
    check_count(n)
    check_positive('the defaults are usual', shift=shift, sigma_max=sigma_max)
    return (shift * flow_time_to_sigma(ramp(1, n, n) / n)).clamp(max=sigma_max).float()


def flux_shift(
    tokens: int,
    low: tuple[int, float] = (256, 0.5),
    high: tuple[int, float] = (4096, 1.15),
    kind: str = 'exponential',
) -> float:
    """Return the shift for an image of so many tokens, by default that of Flux.

    mu is on the line through two points (tokens, mu).

    Args:
        tokens: Number of tokens that the transformer sees. Flux has one per 16 x 16 pixels: 1024 x
            1024 pixels are 4096 tokens with a shift of 3.16.
        low: One of the points.
        high: The other point; (1024, 0.95) and (4096, 2.05) for LTX-Video.
        kind: 'exponential' for the shift e^mu, 'linear' for mu itself.

    Returns:
        s of t' = s t / (1 + (s - 1) t).

    Raises:
        ValueError: If tokens is below 1, the points do not define a line, the kind is unknown, or a
            linear mu is not positive.
    """
    _check_tokens(tokens)
    (x, start), (x_end, end) = _check_point('low', low), _check_point('high', high)
    if x == x_end:
        raise ValueError(
            f'low and high must have different numbers of tokens; got {low} and {high}'
        )
    mu = start + (end - start) * (tokens - x) / (x_end - x)
    if kind == 'exponential':
        return math.exp(mu)
    if kind != 'linear':
        raise ValueError(unknown('kind', kind, ('exponential', 'linear')))
    if mu <= 0:
        raise ValueError(
            f'mu must be > 0 for a linear shift; got {mu:g} for tokens={tokens}. Choose other '
            'points'
        )
    return mu


def flux2_shift(tokens: int, steps: int) -> float:
    """Return the shift e^mu of FLUX.2 for an image of so many tokens in so many steps.

    Up to 4,300 tokens mu is linear in the steps between two lines in the tokens, those of 10 and of
    200 steps; above, it is that of 200 steps.

    Args:
        tokens: Number of tokens that the transformer sees.
        steps: Number of steps.
    """
    _check_tokens(tokens)
    check_count(steps)
    at_10, at_200 = 8.73809524e-5 * tokens + 1.89833333, 1.6927e-4 * tokens + 0.45666666
    return math.exp(at_200 if tokens > 4300 else at_200 + (at_10 - at_200) * (200 - steps) / 190)


def _check_tokens(tokens: int) -> None:
    check_number('tokens', tokens, 1.0, hint='the number that the transformer sees')


def _check_point(name: str, point: Any) -> tuple[float, float]:
    """Return a point as two floats; raise a ValueError if it is none."""
    try:
        tokens, mu = (check_number(name, number) for number in point)
    except (TypeError, ValueError):
        raise ValueError(
            f'{name} must be a point (tokens, mu), such as (256, 0.5); got {show_value(point)}'
        ) from None
    return tokens, mu


def _check_linear(n: int, linear: int, threshold: float) -> None:
    """Raise a ValueError unless the linear part leaves room for a parabola that falls to 0."""
    if not 1 <= linear < n:
        raise ValueError(
            f'linear_steps must be from 1 to {n - 1} for n={n}, or None for half; got {linear}'
        )
    most = 2 * linear / (n + linear)  # above it the parabola would rise again before t = 0
    if not 0 < threshold <= most:
        raise ValueError(
            f'threshold_noise must be > 0 and at most {most:g} for {linear} linear steps of {n}; '
            f'got {threshold}'
        )
