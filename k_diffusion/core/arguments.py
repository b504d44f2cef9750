"""Checks of the arguments of public functions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor


def show_value(value: Any) -> str:
    """Return the text of a value in messages: one line, and shape and dtype for a tensor.

    Args:
        value: The value.
    """
    if isinstance(value, Tensor) and value.ndim:
        return f'a tensor {list(value.shape)} of {str(value.dtype).removeprefix("torch.")}'
    return f'{" ".join(repr(value).split()):.60}'


def is_whole(value: Any, least: float = 1) -> bool:
    """Return True for an integer (numpy's too, but no bool) >= least.

    Args:
        value: The value.
        least: The lower bound.
    """
    return hasattr(value, '__index__') and not isinstance(value, bool) and value >= least


def check_whole(name: str, value: Any, least: int = 1, hint: str = '') -> None:
    """Raise a ValueError unless a value is an integer >= least.

    Args:
        name: The name of the argument.
        value: The value.
        least: The lower bound.
        hint: A usual value, for the message.
    """
    if not is_whole(value, least):
        raise ValueError(f'{name} must be an integer >= {least}{_bracket(hint)}; got {value!r}')


def check_number(
    name: str, value: Any, least: float = -math.inf, infinite: bool = False, hint: str = ''
) -> float:
    """Return a real number (0-d tensors and numpy's too) as a float.

    Args:
        name: The name of the argument.
        value: The value.
        least: The lower bound.
        infinite: Allow infinity.
        hint: A usual value, for the message.

    Raises:
        ValueError: If it is not a number, NaN, too low or infinite.
    """
    try:
        number = math.nan if isinstance(value, (str, bytes, bool)) else float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        number = math.nan
    if number >= least and (infinite or math.isfinite(number)):
        return number
    rule = 'a number' if infinite else 'a finite number'
    bound = '' if least == -math.inf else f' >= {least:g}'
    raise ValueError(f'{name} must be {rule}{bound}{_bracket(hint)}; got {show_value(value)}')


def check_interval(name: str, interval: Any) -> tuple[float, float]:
    """Return two noise levels (low, high) with 0 <= low < high as floats; high may be infinite.

    Args:
        name: The name of the argument.
        interval: The levels.

    Raises:
        ValueError: If they are not such levels.
    """
    try:
        low, high = (check_number(name, level, 0.0, infinite=True) for level in interval)
    except (TypeError, ValueError):
        low = high = 0.0
    if not low < high:
        raise ValueError(
            f'{name} must hold two noise levels, the lower one first; got {show_value(interval)}'
        )
    return low, high


def _bracket(hint: str) -> str:
    return f' ({hint})' if hint else ''


def expands(shape: Sequence[int], to: Sequence[int]) -> bool:
    """Return True if a tensor of a shape broadcasts to another shape.

    Args:
        shape: The shape.
        to: The other shape.
    """
    return len(shape) <= len(to) and all(n in (1, m) for n, m in zip(reversed(shape), reversed(to)))


def check_denoiser(name: str, denoiser: Any) -> None:
    """Raise a TypeError unless a value is callable or has `pair`, as a denoiser does.

    Args:
        name: The name of the argument.
        denoiser: The value.
    """
    if isinstance(denoiser, type) or not (callable(denoiser) or hasattr(denoiser, 'pair')):
        raise TypeError(
            f'{name} must be a denoiser, a function (x, sigma, **cond) -> D; got '
            f'{show_value(denoiser)}'
        )


def check_function(name: str, function: Any, call: str) -> None:
    """Raise a TypeError unless a value is callable.

    Args:
        name: The name of the argument.
        function: The value.
        call: Its signature, for the message.
    """
    if not callable(function):
        raise TypeError(f'{name} must be a function, {call}; got {show_value(function)}')


def check_broadcast(name: str, value: Any, like: Sequence[int], of: str) -> None:
    """Raise an error unless a value is a tensor that broadcasts to a shape.

    Args:
        name: The name of the argument.
        value: The value.
        like: The shape.
        of: The owner of the shape, for the message.

    Raises:
        TypeError: If it is not a tensor.
        ValueError: If it does not broadcast.
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


def saved_calls(options: Mapping[str, Any]) -> int:
    """Return the number of steps that ask the model nothing: 1 for a start without a call, else 0.

    Args:
        options: The options of the sampler.
    """
    return int(bool(options.get('afs') or options.get('backward_start')))
