"""What every schedule is built from: checked arguments, ramps in float64, exact ends, the final
zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..core.registry import Registry

#: Schedules by name. Those with the parameters sigma_min and sigma_max go between two levels; the
#: others have levels of their own.
SCHEDULES: Registry[Callable[..., Tensor]] = Registry('schedule')


def append_zero(x: Tensor) -> Tensor:
    """x [n] with a zero at its end."""
    return torch.cat([x, x.new_zeros([1])])


def check_count(n: int) -> None:
    if not hasattr(n, '__index__') or n < 1:
        raise ValueError(f'n={n} levels make no schedule; n must be a whole number and at least 1')


def check_positive(hint: str, **values: float) -> None:
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise ValueError(
                f'{name}={value} makes no schedule; {name} must be positive and finite ({hint})'
            )


def bounds(n: int, sigma_min: Any, sigma_max: Any) -> tuple[float, float]:
    """The two bounds as Python floats; 0-d tensors serve too."""
    check_count(n)
    low, high = float(sigma_min), float(sigma_max)
    if not 0 < low <= high < math.inf:
        raise ValueError(
            f'sigma_min={low} and sigma_max={high} are no range of noise levels; '
            f'give 0 < sigma_min <= sigma_max, both finite'
        )
    return low, high


def ramp(start: float, end: float, n: int) -> Tensor:
    return torch.linspace(start, end, n, dtype=torch.float64)


def finish(sigmas: Tensor, sigma_min: float, sigma_max: float, device: Any) -> Tensor:
    """Float32 with exact ends, whatever the powers and logarithms rounded, and the zero."""
    sigmas[-1] = sigma_min
    sigmas[0] = sigma_max
    return append_zero(sigmas.float()).to(device)


def distinct(sigmas: Tensor) -> Tensor:
    """Without the levels that equal the one before: a step between equal levels would do
    nothing, at the price of a whole one.
    """
    return torch.cat([sigmas[:1], sigmas[1:][sigmas.diff() != 0]])


def within(sigmas: Tensor, sigma_min: float, sigma_max: float, device: Any) -> Tensor:
    """Float32, what lies outside the bounds brought to them, equal neighbours dropped, and the
    zero: at most [n + 1].
    """
    return append_zero(distinct(sigmas.clamp(sigma_min, sigma_max).float())).to(device)


def between_places(levels: Tensor, place: Tensor) -> Tensor:
    """levels [T] at places in [0, T - 1], log-linear between two neighbours and exact at whole
    places.
    """
    low, high = levels[place.floor().long()], levels[place.ceil().long()]
    return low * (high / low) ** (place - place.floor())


def read_levels(n: int, levels: Sequence[float]) -> Tensor:
    """A published list read at n equal distances, log-linearly, float64 [n]."""
    return between_places(torch.tensor(levels, dtype=torch.float64), ramp(0, len(levels) - 1, n))


def steps_between(n: int, levels: Sequence[float], device: Any) -> Tensor:
    """The levels of n steps from a published list whose last entry stands for 0, float32 [n +
    1].
    """
    check_count(n)
    return append_zero(read_levels(n + 1, levels)[:-1].float()).to(device)
