"""The options of a sampler as widgets of a node, and the values of widgets as options."""

from __future__ import annotations

import ast
import math
import typing
from collections.abc import Mapping
from typing import Any

from k_diffusion.sampling import Sampler

#: The value of a number's widget that stands for infinity.
INFINITE = 1e9
#: Options without a widget: functions, objects, and `down`, which the model decides.
_NO_WIDGET = ('noise_sampler', 'noise_scaler', 'clock', 'spectrum', 'return_info', 'down')
#: The options with which a sampler gives the numbers of ComfyUI's sampler of its name, where they
#: differ from its defaults.
AS_COMFYUI: Mapping[str, Mapping[str, Any]] = {
    'deis': {'euler_to_zero': True, 'clock_range': (0.002, 80.0)},
    'dpmpp_2s_ancestral_cfg_pp': {'uncond_from': 'middle'},
    'er_sde': {'points': 200},
    'gradient_estimation': {'euler_to_zero': True},
    'ipndm': {'euler_to_zero': True},
    'ipndm_v': {'euler_to_zero': True, 'order': 4},
    'lms': {'euler_to_zero': True},
    'sa_solver': {'lower_order_final': True},
    'sa_solver_pece': {'lower_order_final': True},
    'seeds_2': {'solver_type': 'phi_1'},
}


def widgets_of(entry: Sampler) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Return the widgets of a sampler's options by name, as ComfyUI declares them.

    A widget is (type or choices, settings). The options that give ComfyUI's numbers are the initial
    values, where ComfyUI has a sampler of this name.

    Args:
        entry: The sampler.
    """
    hints, usual = typing.get_type_hints(entry.function), AS_COMFYUI.get(entry.name, {})
    return {
        name: _widget(hints.get(name, str), usual.get(name, parameter.default))
        for name, parameter in entry.options.items()
        if name not in _NO_WIDGET
    }


def _widget(kind: Any, default: Any) -> tuple[Any, dict[str, Any]]:
    if typing.get_origin(kind) is typing.Literal:
        return [*typing.get_args(kind)], {'default': default}
    if isinstance(default, bool):
        return 'BOOLEAN', {'default': default}
    if isinstance(default, int):
        return 'INT', {'default': default, 'min': 0, 'max': 100_000}
    if isinstance(default, float):
        return 'FLOAT', {
            'default': min(default, INFINITE),
            'min': -INFINITE,
            'max': INFINITE,
            'step': 0.01,
            'round': False,
        }
    shown = default if isinstance(default, str) else '' if default is None else repr(default)
    return 'STRING', {
        'default': shown,
        'tooltip': 'Python numbers and tuples; empty for the default',
    }


def read_widgets(entry: Sampler, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a sampler's options from the values of its widgets, without those at the default.

    Args:
        entry: The sampler.
        values: The values by name.

    Raises:
        ValueError: If a text is not a number, a tuple or a list.
    """
    options = {}
    for name, value in values.items():
        default = entry.options[name].default
        if isinstance(value, str) and not isinstance(default, str):
            value = _read_text(name, value, default)
        elif isinstance(value, float) and value >= INFINITE:
            value = math.inf
        if value != default:
            options[name] = value
    return options


def _read_text(name: str, text: str, default: Any) -> Any:
    try:
        return ast.literal_eval(text) if text.strip() else default
    except (ValueError, SyntaxError):
        raise ValueError(
            f'{name} must be a number, a tuple or a list in Python syntax; got {text!r}'
        ) from None
