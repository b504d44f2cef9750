"""Checks of the options of samplers."""

from __future__ import annotations

import math
from collections.abc import Mapping, MutableMapping
from inspect import Parameter
from typing import Any

from ..core.arguments import check_number, show_value

#: The rule of a numeric option: the least value, True if infinity is allowed, and a hint. Options
#: without a rule are numbers of any size.
RULES: Mapping[str, tuple[float, bool, str]] = {
    'eta': (0.0, False, '0 disables noise, 1 is the usual value'),
    'tau': (0.0, False, '0 disables noise, 1 is the usual value'),
    's_noise': (0.0, False, '1 is the usual value'),
    's_churn': (0.0, True, '0 disables churn'),
    's_tmin': (0.0, True, 'the lowest noise level with churn'),
    's_tmax': (0.0, True, 'the highest noise level with churn'),
    'euler_below': (0.0, False, 'a noise level'),
    'ge_gamma': (-math.inf, False, '2 is the usual value'),
    'ud': (-math.inf, False, '0.1 is the usual value'),
    'ab': (-math.inf, False, '0.25 is the usual value'),
    'pcoeff': (-math.inf, False, '0 is the usual value'),
    'icoeff': (-math.inf, False, '1 is the usual value'),
    'dcoeff': (-math.inf, False, '0 is the usual value'),
    'accept_safety': (-math.inf, False, '0.81 is the usual value'),
}


def check_options(parameters: Mapping[str, Parameter], arguments: MutableMapping[str, Any]) -> None:
    """Check the options of a sampler, and convert the numbers among them to floats.

    An option is a number if its default is a float; tau may also be a function.

    Args:
        parameters: The parameters of the sampler.
        arguments: The arguments by name; changed in place.

    Raises:
        TypeError: If an option has the wrong type.
        ValueError: If a number is outside its range.
    """
    for name, value in arguments.items():
        if isinstance(parameters[name].default, float) and not (name == 'tau' and callable(value)):
            least, infinite, hint = RULES.get(name, (-math.inf, True, ''))
            arguments[name] = check_number(name, value, least, infinite, hint)
    for name in ('callback', 'noise_sampler', 'noise_scaler'):
        if arguments.get(name) is not None and not callable(arguments[name]):
            raise TypeError(f'{name} must be a function or None; got {show_value(arguments[name])}')
    extra_args = arguments.get('extra_args')
    if extra_args is not None and not isinstance(extra_args, Mapping):
        raise TypeError(
            'extra_args must be a dict of keyword arguments for the model; got '
            f'{type(extra_args).__name__}'
        )
