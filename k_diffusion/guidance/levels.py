"""Wrappers of the noise level: an estimate for another level, an estimate with less noise, the
levels of the first steps.
"""

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

#: A number, or a function of the noise levels [B] that gives one for each.
PerLevel = float | Callable[[Tensor], Tensor]


def detail(
    denoise: DenoiseFn, amount: PerLevel, interval: tuple[float, float] = (0.0, math.inf)
) -> DenoiseFn:
    """D' = D(x, sigma (1 - a(sigma))) where sigma lies in (interval[0], interval[1]], else D(x,
    sigma).

    The denoiser is given another level than the sampler has. With a > 0 it takes some of the noise
    for data and leaves it in, which the steps that follow turn into more detail; with a < 0 it
    smooths. Amounts of 0.02 to 0.1 in the middle of the range are usual (known as Detail Daemon,
    and "lying sigma"). At a = 0 it is the denoiser itself. It has a `pair` where the denoiser has
    one.

    Args:
        denoise: the denoiser; a guided one is asked at the other level as a whole, its interval
            too.
        amount: a, a number below 1, or a function of the levels [B] with values below 1.
        interval: noise levels (low, high] that are changed.
    """
    check_strength(1.0, interval)
    if not callable(amount) and not check_number('amount', amount, hint='0 changes nothing') < 1:
        raise ValueError(f'amount must be below 1, so that the level stays above 0; got {amount}')
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
    """D' = x - (x - D) / factor: the noise estimate divided by a number a little above 1.

    While sampling a network sees states that it has made itself, whose noise it takes for too
    large; the factor makes up for that. The paper uses 1.001 to 1.03, the less the more steps there
    are, one for all levels or one that is linear in the step's number. With factor 1 it is the
    denoiser itself. It has a `pair` where the denoiser has one, both estimates scaled.

    Args:
        denoise: the denoiser, guided or not.
        factor: a number above 0, or a function of the levels [B] with such values.

    References:
        Ning et al. 2024, "Elucidating the exposure bias in diffusion models", arXiv:2308.15321.
    """
    if not callable(factor) and not check_number('factor', factor, hint='1.005 is usual') > 0:
        raise ValueError(f'factor must be above 0 (1.005 is usual); got {factor}')
    return _EpsilonScaling(denoise, factor)


@dataclass(frozen=True)
class _EpsilonScaling(BothEstimates):
    denoise: DenoiseFn
    factor: PerLevel

    def estimates(
        self, ask: Callable[..., tuple[Tensor, ...]], x: Tensor, sigma: Tensor, **cond: Any
    ) -> tuple[Tensor, ...]:
        found = ask(x, sigma, **cond)
        if self.factor == 1:
            return found
        factor = _at('factor', self.factor, level_per_item(sigma, x))
        factor = append_dims(factor.to(x), x.ndim) if isinstance(factor, Tensor) else factor
        return tuple(x - (x - each) / factor for each in found)


def _at(name: str, value: PerLevel, sigma: Tensor) -> float | Tensor:
    if not callable(value):
        return value
    found = value(sigma)
    if isinstance(found, Tensor) and found.shape in ((), sigma.shape):
        return found
    if isinstance(found, Tensor):
        raise ValueError(
            f'{name} must be a function that gives a number for each of the {len(sigma)} levels; '
            f'got shape {list(found.shape)}'
        )
    return check_number(f'{name}(sigma)', found)


def interval_of_first_steps(sigmas: Tensor | Sequence[float], share: float) -> tuple[float, float]:
    """The interval of noise levels that holds the first share of a schedule's steps.

    Guidance does most in the first steps: without the rest of it every unguided step costs one
    estimate in place of two. Any guidance of an `interval` takes the result.

    Args:
        sigmas: the schedule, n + 1 levels of n steps, descending.
        share: from 0 (no step) to 1 (all); the number of steps is rounded.

    Returns:
        (sigmas[k], inf) with k = round(share n): the levels that the first k steps begin at. A
            second call of the k-th step, at the level it ends at, is outside.

    References:
        Zhang et al. 2025, arXiv:2506.08351 (Step-AG); Castillo et al. 2023, arXiv:2312.12487.
    """
    try:
        levels = torch.as_tensor(sigmas, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        levels = torch.empty(0)
    if levels.ndim != 1 or len(levels) < 2 or not bool((levels.diff() <= 0).all()):
        raise ValueError(
            f'sigmas must be a list of at least two levels, descending; got {show_value(sigmas)}'
        )
    if not 0 <= check_number('share', share) <= 1:
        raise ValueError(f'share must be from 0 (no step) to 1 (every step); got {share}')
    return (levels[round(share * (len(levels) - 1))].item(), math.inf)
