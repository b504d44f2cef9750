"""Wrappers of the noise level: shifted levels, scaled noise, intervals of steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.arguments import check_number, show_value
from ..core.protocols import DenoiseFn
from ..core.tensors import append_dims
from .streams import BothEstimates, all_outside, check_strength, inside, level_per_item

#: A number, or a function of the noise levels [B] that returns one for each.
PerLevel = float | Callable[[Tensor], Tensor]


def detail(
    denoise: DenoiseFn, amount: PerLevel, interval: tuple[float, float] = (0.0, math.inf)
) -> DenoiseFn:
    """Give the denoiser a lower level: D' = D(x, sigma (1 - a(sigma))).

    With a > 0 the denoiser takes some of the noise for data and leaves it in; the following steps
    turn it into detail. With a < 0 it smooths. Amounts of 0.02 to 0.1 in the middle of the range
    are usual (known as Detail Daemon, and "lying sigma"). With a = 0 the denoiser is called
    unchanged. The result has a `pair` if the denoiser has one. Not published in a paper.

    Args:
        denoise: The denoiser. A guided one is evaluated at the other level as a whole, its interval
            included.
        amount: a: a number below 1, or a function of the levels [B] with values below 1.
        interval: Noise levels (low, high] that are changed.

    Returns:
        The wrapped denoiser.

    Raises:
        ValueError: If amount is 1 or more.
    """
    check_strength(1.0, interval)
    if not callable(amount) and not check_number('amount', amount, hint='0 changes nothing') < 1:
        raise ValueError(f'amount must be < 1, so that the level stays positive; got {amount}')
    return _Detail(denoise, amount, interval)


@dataclass(frozen=True)
class _Detail(BothEstimates):
    denoise: DenoiseFn
    amount: PerLevel
    interval: tuple[float, float]

    def estimates(
        self, ask: Callable[..., tuple[Tensor, ...]], x: Tensor, sigma: Tensor, **cond: Any
    ) -> tuple[Tensor, ...]:
        if self.amount == 0 or all_outside(sigma, self.interval):
            return ask(x, sigma, **cond)
        shifted = sigma * (1 - _at('amount', self.amount, sigma))
        return ask(x, torch.where(inside(sigma, self.interval, sigma.ndim), shifted, sigma), **cond)


def epsilon_scaling(denoise: DenoiseFn, factor: PerLevel) -> DenoiseFn:
    """Scale the noise estimate: D' = x - (x - D) / factor.

    In sampling, a network receives states of its own making and overestimates their noise; a factor
    slightly above 1 compensates. The paper uses 1.001 to 1.03, less for more steps, the same for
    all levels or linear in the index of the step. With factor 1 the denoiser is called unchanged.
    The result has a `pair` if the denoiser has one, with both estimates scaled.

    Args:
        denoise: The denoiser, guided or not.
        factor: A number > 0, or a function of the levels [B] with such values.

    Returns:
        The wrapped denoiser.

    References:
        Ning et al. (2024), arXiv:2308.15321.
    """
    if not callable(factor) and not check_number('factor', factor, hint='1.005 is usual') > 0:
        raise ValueError(f'factor must be > 0 (1.005 is the usual value); got {factor}')
    return _EpsilonScaling(denoise, factor)


@dataclass(frozen=True)
class _EpsilonScaling(BothEstimates):
    denoise: DenoiseFn
    factor: PerLevel

    def estimates(
        self, ask: Callable[..., tuple[Tensor, ...]], x: Tensor, sigma: Tensor, **cond: Any
    ) -> tuple[Tensor, ...]:
        estimates = ask(x, sigma, **cond)
        if self.factor == 1:
            return estimates
        factor = _at('factor', self.factor, level_per_item(sigma, x))
        factor = append_dims(factor.to(x), x.ndim) if isinstance(factor, Tensor) else factor
        return tuple(x - (x - each) / factor for each in estimates)


def _at(name: str, value: PerLevel, sigma: Tensor) -> float | Tensor:
    if not callable(value):
        return value
    result = value(sigma)
    if isinstance(result, Tensor) and result.shape in ((), sigma.shape):
        return result
    if isinstance(result, Tensor):
        raise ValueError(
            f'{name} must be a function that returns a number for each of the {len(sigma)} '
            f'levels; got shape {list(result.shape)}'
        )
    return check_number(f'{name}(sigma)', result)


def interval_of_first_steps(sigmas: Tensor | Sequence[float], share: float) -> tuple[float, float]:
    """Return the interval of noise levels of the first steps of a schedule.

    Guidance is most effective in the first steps. Every step without guidance costs one estimate in
    place of two. The result fits the `interval` of any guidance.

    Args:
        sigmas: The schedule, n + 1 descending levels of n steps.
        share: Share of the steps, in [0, 1]; the number of steps is rounded.

    Returns:
        (sigmas[k], inf) with k = round(share n), the levels at which the first k steps start. A
            second model call of step k, at the level where it ends, is outside.

    References:
        Zhang et al. (2025), arXiv:2506.08351 (Step-AG).
        Castillo et al. (2023), arXiv:2312.12487.
    """
    try:
        levels = torch.as_tensor(sigmas, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        levels = torch.empty(0)
    if levels.ndim != 1 or len(levels) < 2 or not bool((levels.diff() <= 0).all()):
        raise ValueError(
            f'sigmas must be a list of at least two descending levels; got {show_value(sigmas)}'
        )
    if not 0 <= check_number('share', share) <= 1:
        raise ValueError(f'share must be in [0, 1]; got {share}')
    return (levels[round(share * (len(levels) - 1))].item(), math.inf)
