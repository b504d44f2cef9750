"""The options of samplers as entries of a menu, and typed values as options."""

from __future__ import annotations

import ast
import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .registry import Sampler

#: The number of a menu that stands for infinity, and numbers above it.
INFINITE = 1e9
#: Options that cannot be typed: functions and objects.
_OBJECTS = ('noise_sampler', 'noise_scaler', 'clock', 'spectrum', 'return_info')
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
    'uni_pc': {'end': 0.001},
    'uni_pc_bh2': {'end': 0.001},
}
#: Samplers that ComfyUI runs on the time t of a flow model as if it were sigma ('sigma': by default
#: the node does not), and those whose options are shares of a model's time ('model').
COMFYUI_TIME: Mapping[str, str] = {
    'ddpm': 'sigma',
    'deis': 'sigma',
    'dpm_2': 'sigma',
    'dpm_adaptive': 'sigma',
    'dpm_fast': 'sigma',
    'dpmpp_2m': 'sigma',
    'dpmpp_2m_cfg_pp': 'sigma',
    'dpmpp_2s_ancestral_cfg_pp': 'sigma',
    'gradient_estimation': 'sigma',
    'gradient_estimation_cfg_pp': 'sigma',
    'heun': 'sigma',
    'heunpp2': 'sigma',
    'ipndm': 'sigma',
    'ipndm_v': 'sigma',
    'lms': 'sigma',
    'res_multistep': 'sigma',
    'res_multistep_ancestral': 'sigma',
    'res_multistep_ancestral_cfg_pp': 'sigma',
    'res_multistep_cfg_pp': 'sigma',
    'uni_pc': 'sigma',
    'uni_pc_bh2': 'sigma',
    'sa_solver': 'model',
    'sa_solver_pece': 'model',
}

#: Schedules that ComfyUI spreads over the time t of a flow model.
COMFYUI_SCHEDULES = frozenset(
    {
        'beta',
        'ddim_uniform',
        'exponential',
        'karras',
        'kl_optimal',
        'normal',
        'sgm_uniform',
        'simple',
    }
)
#: Samplers for which ComfyUI draws noise twice in a step and gives the second draw no weight.
COMFYUI_DRAWS_TWICE = ('exp_heun_2_x0_sde',)


@dataclass(frozen=True)
class MenuOption:
    """An option of a sampler for a menu.

    Attributes:
        kind: How it is entered: bool, int and float, str for a text, and tuple for one of the
            choices.
        default: Its default; a text if it is entered as a text, and INFINITE for infinity.
        choices: The choices.
    """

    kind: type
    default: Any
    choices: tuple[Any, ...] = ()


def list_options(entry: Sampler, usual: Mapping[str, Any] | None = None) -> dict[str, MenuOption]:
    """List the options of a sampler that can be typed, by name.

    Options that are neither numbers nor choices are texts in Python syntax; an empty text is the
    default.

    Args:
        entry: The sampler.
        usual: Other defaults of some options.
    """
    hints = typing.get_type_hints(entry.function)
    defaults = {name: p.default for name, p in entry.options.items() if name not in _OBJECTS}
    return {
        name: _menu_option(hints.get(name, str), (usual or {}).get(name, default))
        for name, default in defaults.items()
    }


def _menu_option(hint: Any, default: Any) -> MenuOption:
    if typing.get_origin(hint) is typing.Literal:
        return MenuOption(tuple, default, typing.get_args(hint))
    if isinstance(default, (bool, int, float)):
        finite = min(default, INFINITE) if isinstance(default, float) else default
        return MenuOption(type(default), finite)
    text = default if isinstance(default, str) else '' if default is None else repr(default)
    return MenuOption(str, text)


def read_options(entry: Sampler, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a sampler from typed values, without those at the default.

    Args:
        entry: The sampler.
        values: The values by name, as `list_options` describes them.

    Raises:
        ValueError: If a text is not a number, a tuple or a list.
    """
    defaults = {name: parameter.default for name, parameter in entry.options.items()}
    options = {name: _read(name, value, defaults[name]) for name, value in values.items()}
    return {name: value for name, value in options.items() if value != defaults[name]}


def _read(name: str, value: Any, default: Any) -> Any:
    if isinstance(value, float) and value >= INFINITE:
        return math.inf
    if not isinstance(value, str) or isinstance(default, str):
        return value
    try:
        return ast.literal_eval(value) if value.strip() else default
    except (ValueError, SyntaxError):
        raise ValueError(
            f'{name} must be a number, a tuple or a list in Python syntax; got {value!r}'
        ) from None
