"""The nodes: one for each sampler, and nodes for schedules, recipes and calibrations."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from k_diffusion import sampling, schedules
from k_diffusion.core.files import whole_file
from k_diffusion.generation import SamplingConfig, choose_plan, plan
from k_diffusion.sampling import Calibration, Sampler, menus
from k_diffusion.sampling.calibration.files import from_json, to_json

from .model import HostLevels
from .running import NOISES, fit_sampler, sampler_of

NODE_CLASS_MAPPINGS: dict[str, Any] = {}
NODE_DISPLAY_NAME_MAPPINGS: dict[str, str] = {}

Widget = tuple[Any, dict[str, Any]]


def add_node(
    key: str,
    title: str,
    give: Callable[..., tuple[Any, ...]],
    inputs: Callable[[], dict[str, Any]],
    outputs: tuple[str, ...] = ('SAMPLER', 'SIGMAS'),
    group: str = '',
    text: str = '',
) -> None:
    """Add a node to the mappings that ComfyUI reads.

    Args:
        key: Its name in workflows, after KDiffusion.
        title: Its name in menus, after k-diffusion.
        give: Returns the outputs for the values of the inputs.
        inputs: Returns the inputs by name.
        outputs: The types of the outputs.
        group: Its group in menus.
        text: Its description; by default the docstring of `give`, without its arguments.
    """
    name, category = f'KDiffusion{key}', f'k-diffusion/{group}' if group else 'k-diffusion'
    description = text or inspect.cleandoc(give.__doc__ or '').partition('\n\nArgs')[0]
    members = {
        'INPUT_TYPES': classmethod(lambda cls: {'required': inputs()}),
        'RETURN_TYPES': outputs,
        'FUNCTION': 'give',
        'CATEGORY': category,
        'DESCRIPTION': description,
        'give': staticmethod(give),
    }
    NODE_CLASS_MAPPINGS[name] = type(name, (), members)
    NODE_DISPLAY_NAME_MAPPINGS[name] = f'k-diffusion {title}'


def number(default: float, least: float = 1, most: float = 10_000, **settings: Any) -> Widget:
    """Return the widget of a number.

    Args:
        default: The initial value; its type is that of the widget.
        least: The lowest value.
        most: The highest value.
        **settings: Further settings.
    """
    kind = 'INT' if isinstance(default, int) else 'FLOAT'
    return kind, {'default': default, 'min': least, 'max': most, **settings}


def make_widget(option: menus.MenuOption) -> Widget:
    """Return the widget of an option of a sampler.

    Args:
        option: The option.
    """
    if option.kind is tuple:
        return [*option.choices], {'default': option.default}
    if option.kind is bool:
        return 'BOOLEAN', {'default': option.default}
    if option.kind is int:
        return number(option.default, 0, 100_000)
    if option.kind is float:
        return number(option.default, -menus.INFINITE, menus.INFINITE, step=0.01, round=False)
    return 'STRING', {'default': option.default, 'tooltip': 'in Python syntax; empty: the default'}


def sampler_inputs(entry: Sampler) -> dict[str, Widget]:
    """Return the widgets of a sampler: its options at ComfyUI's values, the noise and the time.

    Args:
        entry: The sampler.
    """
    options = menus.list_options(entry, menus.AS_COMFYUI.get(entry.name))
    # the model decides `down`
    widgets = {name: make_widget(option) for name, option in options.items() if name != 'down'}
    if entry.noise:
        widgets['noise'] = [*NOISES], {'default': NOISES[0]}
    if time := menus.COMFYUI_TIME.get(entry.name):
        widgets['time'] = ['sigma', 'model'], {'default': time}
    return widgets


def give_sampler(entry: Sampler, noise: str = NOISES[0], time: str = '', **values: Any) -> Any:
    """Return the sampler with the options of the widgets.

    Args:
        entry: The sampler.
        noise: A name of NOISES.
        time: 'sigma' or 'model'; by default that of the widget.
        **values: The values of the widgets.
    """
    options = menus.read_options(entry, {**menus.AS_COMFYUI.get(entry.name, {}), **values})
    return (sampler_of(entry, options, noise, time or menus.COMFYUI_TIME.get(entry.name, 'sigma')),)


def give_schedule(model: Any, schedule: str, steps: int, denoise: float) -> tuple[Tensor]:
    """Return noise levels in the range of a model, for a flow model its times t.

    Schedules that ComfyUI has too are laid over t, as it does, others over sigma = t / (1 - t). A
    denoise below 1 keeps the last steps of a longer schedule, for image to image.

    Args:
        model: The model.
        schedule: The name of the schedule.
        steps: Number of steps.
        denoise: Share of a longer schedule that is kept.
    """
    if not denoise > 0:
        return (torch.empty(0),)
    host: Any = HostLevels.of(model, schedule not in menus.COMFYUI_SCHEDULES)
    sigmas = plan(host, int(steps / denoise), None, schedule, None, None, {}).sigmas
    return (host.to_host(sigmas)[-(steps + 1) :],)


def give_recommended(model: Any, calls: int, guided: bool) -> tuple[Any, Tensor]:
    """Return the sampler and levels that come closest to the converged image with so many calls.

    Args:
        model: The model.
        calls: Number of model calls.
        guided: True for a model with guidance.
    """
    host: Any = HostLevels.of(model)
    sigmas, sampler, options = choose_plan(host, SamplingConfig(steps=calls), guided)
    return sampler_of(sampling.find_sampler(sampler), options), host.to_host(sigmas)


def give_calibrated(model: Any, name: str) -> tuple[Any, Tensor]:
    """Return a sampler that the node k-diffusion calibrate fitted for this model and guidance.

    Args:
        model: The model.
        name: The name of the file.
    """
    return _as_outputs(from_json(read_stored(model, name), f'{name}.json'), model)


def read_stored(model: Any, name: str) -> str:
    """Return the text of a stored sampler; ComfyUI runs the node again once it differs.

    Args:
        model: The model; not used.
        name: The name of the file.
    """
    return (_folder() / Path(f'{name}.json').name).read_text()


def give_fitted(guider: Any, name: str, **settings: Any) -> tuple[Any, Tensor]:
    """Fit a sampler to a model and its guidance, so that few calls give the result of many.

    The fit costs some 1,000 times the number of calls, for each noise. The sampler is stored under
    its name.

    Args:
        guider: The GUIDER.
        name: The name of the file.
        **settings: The arguments of `fit_sampler` besides the guider.

    Raises:
        ValueError: If the name is not that of a file.
    """
    path = _folder() / f'{name}.json'
    if path.parent != _folder() or not name or name.startswith('.'):
        raise ValueError(f'name must be the name of a file without a folder; got {name!r}')
    calibration = fit_sampler(guider, **settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        file.write_text(to_json(calibration))
    return _as_outputs(calibration, guider.model_patcher)


def _as_outputs(calibration: Calibration, model: Any) -> tuple[Any, Tensor]:
    levels = HostLevels.of(model).to_host(calibration.levels)
    return sampler_of(calibration.sampler().entry, {}), levels


def _folder() -> Path:
    """Return the folder of fitted samplers."""
    import folder_paths

    return Path(folder_paths.get_output_directory()) / 'k-diffusion'


def _schedule_inputs() -> dict[str, Widget]:
    names = sorted({entry.name for entry in schedules.catalogue()})
    return {
        'model': ('MODEL', {}),
        'schedule': (names, {'default': 'karras'}),
        'steps': number(20),
        'denoise': number(1.0, 0.0, 1.0, step=0.01),
    }


def _recommended_inputs() -> dict[str, Widget]:
    return {'model': ('MODEL', {}), 'calls': number(20), 'guided': ('BOOLEAN', {'default': True})}


def _fitted_inputs() -> dict[str, Widget]:
    return {
        'guider': ('GUIDER', {}),
        'latent_image': ('LATENT', {}),
        'calls': number(8),
        'noises': number(16, 8),
        'seed': ('INT', {'default': 0}),
        'batch_size': number(4),
        'name': ('STRING', {'default': 'calibrated'}),
    }


def _calibrated_inputs() -> dict[str, Widget]:
    names = sorted(path.stem for path in _folder().glob('*.json'))
    return {'model': ('MODEL', {}), 'name': (names, {})}


add_node('Schedule', 'schedule', give_schedule, _schedule_inputs, ('SIGMAS',))
add_node('Recommended', 'recommended sampler', give_recommended, _recommended_inputs)
add_node('Calibrate', 'calibrate', give_fitted, _fitted_inputs)
add_node('Calibrated', 'calibrated sampler', give_calibrated, _calibrated_inputs)
NODE_CLASS_MAPPINGS['KDiffusionCalibrated'].IS_CHANGED = read_stored
for entry in sampling.catalogue():
    give = functools.partial(give_sampler, entry)
    inputs = functools.partial(sampler_inputs, entry)
    add_node(f'_{entry.name}', entry.name, give, inputs, ('SAMPLER',), entry.family, entry.summary)
