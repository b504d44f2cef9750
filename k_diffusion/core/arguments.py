"""Checks of what public functions are called with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor


def show_value(value: Any) -> str:
    """Return how an error shows what it got: one line, and the shape and dtype of a tensor."""
    if isinstance(value, Tensor) and value.ndim:
        return f'a tensor {list(value.shape)} of {str(value.dtype).removeprefix("torch.")}'
    return f'{" ".join(repr(value).split()):.60}'


def is_whole(value: Any, least: float = 1) -> bool:
    """Whether a value is a whole number (numpy's too) of at least so much."""
    return hasattr(value, '__index__') and value >= least


def check_whole(name: str, value: Any, least: int = 1, hint: str = '') -> None:
    """Raise a ValueError where a value is not a whole number of at least `least`."""
    if not is_whole(value, least):
        raise ValueError(
            f'{name} must be a whole number >= {least}{_bracketed(hint)}; got {value!r}'
        )


def check_number(
    name: str, value: Any, least: float = -math.inf, infinite: bool = False, hint: str = ''
) -> float:
    """Return a real number (0-d tensors and numpy's too) as a float.

    Args:
        name: What the message calls it.
        value: The value.
        least: The lowest value that is allowed.
        infinite: Whether infinity is allowed.
        hint: What the message says about usual values.

    Raises:
        ValueError: It is not a number, NaN, too low or infinite.
    """
    try:
        number = math.nan if isinstance(value, (str, bytes)) else float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        number = math.nan
    if number >= least and (infinite or math.isfinite(number)):
        return number
    rule = 'a number' if infinite else 'a finite number'
    bound = '' if least == -math.inf else f' >= {least:g}'
    raise ValueError(f'{name} must be {rule}{bound}{_bracketed(hint)}; got {show_value(value)}')


def check_interval(name: str, interval: Any) -> tuple[float, float]:
    """Return two noise levels (low, high) with 0 <= low < high as floats; high may be infinite."""
    try:
        low, high = (check_number(name, level, 0.0, infinite=True) for level in interval)
    except (TypeError, ValueError):
        low = high = 0.0
    if not low < high:
        raise ValueError(
            f'{name} must hold two noise levels, the lower one first; got {show_value(interval)}'
        )
    return low, high


def _bracketed(hint: str) -> str:
    return f' ({hint})' if hint else ''


def expands(shape: Sequence[int], to: Sequence[int]) -> bool:
    """Return True if a tensor of a shape broadcasts to another shape."""
    return len(shape) <= len(to) and all(n in (1, m) for n, m in zip(reversed(shape), reversed(to)))


def check_denoiser(name: str, denoiser: Any) -> None:
    """Raise a TypeError where something cannot be asked as a denoiser: it is called, or it has
    `pair`.
    """
    if isinstance(denoiser, type) or not (callable(denoiser) or hasattr(denoiser, 'pair')):
        raise TypeError(
            f'{name} must be a denoiser, a function (x, sigma, **cond) -> D; got '
            f'{show_value(denoiser)}'
        )


def check_function(name: str, function: Any, call: str) -> None:
    """Raise a TypeError where something is not a function; `call` shows how it is called."""
    if not callable(function):
        raise TypeError(f'{name} must be a function, {call}; got {show_value(function)}')


def check_broadcast(name: str, value: Any, like: Sequence[int], of: str) -> None:
    """Raise an error where a value is not a tensor that broadcasts to the shape `like`, which is
    that of `of`.
    """
    if not isinstance(value, Tensor):
        raise TypeError(
            f'{name} must be a tensor that broadcasts to {of}, {list(like)}; got '
            f'{show_value(value)}'
        )
    if not expands(value.shape, like):
        raise ValueError(
            f'{name} must broadcast to {of}, {list(like)}; got shape {list(value.shape)}'
        )
