"""Building blocks of schedules: checked arguments, ramps in float64, exact ends, the final zero."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..core.registry import Registry

#: Schedules by name. Those with the parameters sigma_min and sigma_max run between two levels; the
#: others have levels of their own.
SCHEDULES: Registry[Callable[..., Tensor]] = Registry('schedule')


def append_zero(x: Tensor) -> Tensor:
    """Return x [n] with a zero appended.

    Args:
        x: A tensor [n].
    """
    return torch.cat([x, x.new_zeros([1])])


def check_count(n: int) -> None:
    """Raise a ValueError unless n is a positive integer.

    Args:
        n: Number of levels.
    """
    if not hasattr(n, '__index__') or n < 1:
        raise ValueError(f'n must be a positive integer; got {n}')


def check_positive(hint: str, **values: float) -> None:
    """Raise a ValueError unless all values are positive and finite.

    Args:
        hint: A usual value, for the message.
        **values: Numbers by name.
    """
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise ValueError(f'{name} must be positive and finite ({hint}); got {value}')


def bounds(n: int, sigma_min: Any, sigma_max: Any) -> tuple[float, float]:
    """Return the two bounds as Python floats.

    Args:
        n: Number of levels, checked too.
        sigma_min: The lowest level, a number or a 0-d tensor.
        sigma_max: The highest level.

    Raises:
        ValueError: If n or the bounds are out of range.
    """
    check_count(n)
    low, high = float(sigma_min), float(sigma_max)
    if not 0 < low <= high < math.inf:
        raise ValueError(
            'sigma_min and sigma_max must satisfy 0 < sigma_min <= sigma_max < inf; got '
            f'{low} and {high}'
        )
    return low, high


def ramp(start: float, end: float, n: int) -> Tensor:
    """Return n numbers in float64, evenly spaced from start to end.

    Args:
        start: The first number.
        end: The last number.
        n: How many.
    """
    return torch.linspace(start, end, n, dtype=torch.float64)


def finish(sigmas: Tensor, sigma_min: float, sigma_max: float, device: Any) -> Tensor:
    """Return levels in float32 with exact ends and the final zero.

    Powers and logarithms round the ends, which are therefore set.

    Args:
        sigmas: Descending levels [n].
        sigma_min: The last one.
        sigma_max: The first one.
        device: The device of the result.
    """
    sigmas[-1] = sigma_min
    sigmas[0] = sigma_max
    return append_zero(sigmas.float()).to(device)


def distinct(sigmas: Tensor) -> Tensor:
    """Drop levels equal to the one before: such a step does nothing, at the cost of a whole one.

    Args:
        sigmas: Levels [n].
    """
    return torch.cat([sigmas[:1], sigmas[1:][sigmas.diff() != 0]])


def within(sigmas: Tensor, sigma_min: float, sigma_max: float, device: Any) -> Tensor:
    """Clamp levels to the bounds, drop equal neighbours, and append 0: at most [n + 1], float32.

    Args:
        sigmas: Levels [n].
        sigma_min: The lower bound.
        sigma_max: The upper bound.
        device: The device of the result.
    """
    return append_zero(distinct(sigmas.clamp(sigma_min, sigma_max).float())).to(device)


def between_places(levels: Tensor, place: Tensor) -> Tensor:
    """Interpolate levels [T] at positions in [0, T - 1], log-linearly; exact at integers.

    Args:
        levels: The levels.
        place: The positions.
    """
    low, high = levels[place.floor().long()], levels[place.ceil().long()]
    return low * (high / low) ** (place - place.floor())


def read_levels(n: int, levels: Sequence[float]) -> Tensor:
    """Interpolate a published list log-linearly at n equal distances, float64 [n].

    Args:
        n: Number of levels.
        levels: The list.
    """
    return between_places(torch.tensor(levels, dtype=torch.float64), ramp(0, len(levels) - 1, n))


def steps_between(n: int, levels: Sequence[float], device: Any) -> Tensor:
    """Return the levels of n steps from a list whose last entry stands for 0, float32 [n + 1].

    Args:
        n: Number of steps.
        levels: The list.
        device: The device of the result.
    """
    check_count(n)
    return append_zero(read_levels(n + 1, levels)[:-1].float()).to(device)
