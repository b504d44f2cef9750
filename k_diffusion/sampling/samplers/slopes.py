"""The walk of linear multistep methods along slopes, and the tables of their weights."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..coefficients import gauss_legendre, lagrange
from ..loop import Step, Steps
from ..registry import Run
from .exponential_multistep import Past, combine, past_levels


def walk_slopes(
    steps: Steps, x: Tensor, weights: Sequence[Sequence[float]], backward_start: bool = False
) -> Run[Tensor]:
    """Run the steps of a table of weights.

    Guidance with an interval is integrated over the part of each step inside it (`GuidanceShare`).

    Args:
        steps: The run.
        x: Noise at the first level, [B, ...].
        weights: The weights of each step, that of the newest slope first.
        backward_start: Make the first step a backward Euler step, see `sample_zeab`.
    """
    order = max(map(len, weights), default=1)
    history: deque[Tensor] = deque(maxlen=order)
    share = None if steps.interval is None else GuidanceShare(*steps.interval, min(order, 2))
    first: Step | None = None
    for step in steps:
        if backward_start and step.i == 0 and step.sigma_next > 0:
            first = step
            step.show(x, step.sigma, torch.zeros_like(x))
            x = yield x * (step.sigma_next / step.sigma)
            continue
        guided = share is not None and (share.covers(step) or share.covers(first))
        if guided:
            slope, guidance_slope = yield from step.ask_slopes(x)
        else:
            slope = yield from step.ask_slope(x)
        if first is not None:  # x' = x + (sigma' - sigma) (x' - D) / sigma', D of the draft of x'
            ratio = step.sigma / first.sigma
            shift = (1 - ratio) * (x - step.sigma * slope)
            if share is not None and share.covers(first):
                inside = min(first.sigma, share.high) - step.sigma
                shift = shift - ratio * inside * guidance_slope
            x, slope = x + shift, slope + shift / step.sigma
            history.appendleft(slope)
            first = None
        history.appendleft(slope)
        x = combine(x, 1.0, weights[step.i], history)
        if share is not None and share.covers(step):
            x = share.add(x, step, guidance_slope)
        x = yield x
    return x


class GuidanceShare:
    """The contribution of guidance in an interval of noise levels to linear multistep steps.

    The output of the model jumps at the edges of the interval, so its slope is split into two
    streams: eps without guidance, which is smooth at all levels, and the slope eps_g = -(D_guided -
    D) / sigma that guidance adds. The second stream has its own history of `order` values,
    interpolated in sigma^(1/7). It is integrated over the part of a step inside the interval,
    wherever the levels of the schedule lie.

    k-diffusion's own.

    Args:
        low: The interval is (low, high].
        high: Its upper end.
        order: Number of values.
    """

    def __init__(self, low: float, high: float, order: int) -> None:
        self.low, self.high = low, high
        self.levels: deque[float] = deque(maxlen=order)
        self.slopes: deque[Tensor] = deque(maxlen=order)

    def covers(self, step: Step | None) -> bool:
        """Return True if a part of the step is inside the interval; False for None."""
        return step is not None and step.sigma > self.low and step.sigma_next < self.high

    def add(self, x: Tensor, step: Step, slope: Tensor) -> Tensor:
        """Return x plus the integral of eps_g over the part of the step inside the interval.

        Args:
            x: The end of the step without guidance, [B, ...].
            step: The step.
            slope: eps_g at the level of the step.
        """
        self.levels.appendleft(step.sigma)
        self.slopes.appendleft(slope)
        past = tuple(self.levels)
        weights = power_weights(past, max(step.sigma_next, self.low), 7.0)
        if step.sigma > self.high:
            weights = [w - above for w, above in zip(weights, power_weights(past, self.high, 7.0))]
        return combine(x, 1.0, weights, self.slopes)


def weight_table(
    rule: Callable[[Past, float], Sequence[float]],
    sigmas: Sequence[float],
    order: int,
    euler_to_zero: bool = False,
) -> list[Sequence[float]]:
    """Return the weights of every step by a rule; empty weights between equal levels.

    Args:
        rule: (past levels, sigma_next) -> weights.
        sigmas: The noise levels, descending.
        order: Number of past levels.
        euler_to_zero: Make the step to 0 an Euler step, whose end is D.
    """
    table: list[Sequence[float]] = []
    for past, sigma_next in zip(past_levels(sigmas, order), sigmas[1:]):
        if past[0] == sigma_next:
            table.append(())
        elif euler_to_zero and sigma_next == 0:
            table.append((-past[0],))
        else:
            table.append(rule(past, sigma_next))
    return table


def power_weights(past: Sequence[float], sigma_next: float, rho: float) -> list[float]:
    """Return the weights w_j of x' = x + sum w_j eps_j for slopes interpolated in sigma^(1/rho).

    w_j is the integral of l_j(u) rho u^(rho - 1) from past[0]^(1/rho) to sigma_next^(1/rho), with
    l_j the Lagrange polynomials of the past levels in u = sigma^(1/rho). For an integer rho the
    integrand is a polynomial of degree len(past) + rho - 2, and the quadrature is exact.

    Args:
        past: The levels of the slopes, newest first.
        sigma_next: The level at the end of the step; 0 is allowed.
        rho: The root.
    """
    start, end = past[0] ** (1 / rho), sigma_next ** (1 / rho)
    h = end - start
    rows = lagrange([(sigma ** (1 / rho) - start) / h for sigma in past])
    weights = [0.0] * len(past)
    for node, weight in gauss_legendre(12):
        s = (1 + node) / 2
        density = weight / 2 * h * rho * (start + s * h) ** (rho - 1)
        for j, row in enumerate(rows):
            weights[j] += density * math.fsum(c * s**k for k, c in enumerate(row))
    return weights
