"""Checks of what samplers and their helpers are called with."""
from __future__ import annotations

import math
from collections.abc import Mapping, MutableMapping, Sequence
from inspect import Parameter
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
        raise ValueError(f'{name} must be a whole number >= {least}{_bracketed(hint)}; got {value!r}')


def check_number(name: str, value: Any, least: float = -math.inf, infinite: bool = False, hint: str = '') -> float:
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


def _bracketed(hint: str) -> str:
    return f' ({hint})' if hint else ''


#: The rule of a numeric option: the least value, whether infinity is allowed, and a hint. Other options are numbers of any size.
RULES: Mapping[str, tuple[float, bool, str]] = {
    'eta': (0., False, '0 disables noise, 1 is the usual value'),
    'tau': (0., False, '0 disables noise, 1 is the usual value'),
    's_noise': (0., False, '1 is the usual value'),
    's_churn': (0., True, '0 disables churn'),
    's_tmin': (0., True, 'the lowest noise level with churn'),
    's_tmax': (0., True, 'the highest noise level with churn'),
    'euler_below': (0., False, 'a noise level'),
    'ge_gamma': (-math.inf, False, '2 is the usual value'),
    'pcoeff': (-math.inf, False, '0 is the usual value'),
    'icoeff': (-math.inf, False, '1 is the usual value'),
    'dcoeff': (-math.inf, False, '0 is the usual value'),
    'accept_safety': (-math.inf, False, '0.81 is the usual value'),
}


def check_options(parameters: Mapping[str, Parameter], given: MutableMapping[str, Any]) -> None:
    """Check the options of a sampler, and turn the numbers among them into floats.

    An option is a number where its default is a float. tau may be a function too.
    """
    for name, value in given.items():
        if isinstance(parameters[name].default, float) and not (name == 'tau' and callable(value)):
            least, infinite, hint = RULES.get(name, (-math.inf, True, ''))
            given[name] = check_number(name, value, least, infinite, hint)
    for name in ('callback', 'noise_sampler', 'noise_scaler'):
        if given.get(name) is not None and not callable(given[name]):
            raise TypeError(f'{name} must be a function or None; got {show_value(given[name])}')
    extra_args = given.get('extra_args')
    if extra_args is not None and not isinstance(extra_args, Mapping):
        raise TypeError(f'extra_args must be a dict of keyword arguments for the model; got a {type(extra_args).__name__}')


def expands(shape: Sequence[int], to: Sequence[int]) -> bool:
    """Whether a tensor of a shape broadcasts to another shape."""
    return len(shape) <= len(to) and all(n in (1, m) for n, m in zip(reversed(shape), reversed(to)))
