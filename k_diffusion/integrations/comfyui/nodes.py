"""The nodes: one for each sampler, and nodes for schedules, recipes and calibrations."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from k_diffusion import sampling, schedules
from k_diffusion.core.files import whole_file
from k_diffusion.generation import SamplingConfig, choose_plan
from k_diffusion.sampling import Calibration, Sampler
from k_diffusion.sampling.calibration.files import from_json, to_json

from .model import Frame
from .running import NOISES, fit_sampler, sampler_of
from .widgets import AS_COMFYUI, read_widgets, widgets_of

CATEGORY = 'k-diffusion'
_STEPS = ('INT', {'default': 20, 'min': 1, 'max': 10_000})


class SamplerNode:
    """A node that returns a sampler; `make_sampler_node` makes one for each sampler."""

    entry: Sampler
    RETURN_TYPES = ('SAMPLER',)
    FUNCTION = 'give'

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Return the widgets of the node."""
        noise = {'noise': ([*NOISES], {'default': NOISES[0]})} if cls.entry.noise else {}
        return {'required': {**widgets_of(cls.entry), **noise}}

    def give(self, noise: str = NOISES[0], **values: Any) -> tuple[Any]:
        """Return the sampler with the options of the widgets.

        Args:
            noise: A name of NOISES.
            **values: The values of the widgets.
        """
        values = {**AS_COMFYUI.get(self.entry.name, {}), **values}
        return (sampler_of(self.entry, read_widgets(self.entry, values), noise),)


def make_sampler_node(entry: Sampler) -> type[SamplerNode]:
    """Return the node of a sampler.

    Args:
        entry: The sampler.
    """
    return type(
        f'KDiffusion_{entry.name}',
        (SamplerNode,),
        {'entry': entry, 'CATEGORY': f'{CATEGORY}/{entry.family}', 'DESCRIPTION': entry.summary},
    )


class ScheduleNode:
    """A node that returns the levels of a schedule in the range of a model."""

    CATEGORY, RETURN_TYPES, FUNCTION = CATEGORY, ('SIGMAS',), 'give'
    DESCRIPTION = (
        'Noise levels for a model. denoise below 1 keeps the last steps of a longer '
        'schedule, for image to image.'
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Return the widgets of the node."""
        names = sorted({entry.name for entry in schedules.catalogue()})
        return {
            'required': {
                'model': ('MODEL',),
                'schedule': (names, {'default': 'karras'}),
                'steps': _STEPS,
                'denoise': ('FLOAT', {'default': 1.0, 'min': 0.0, 'max': 1.0, 'step': 0.01}),
            }
        }

    def give(self, model: Any, schedule: str, steps: int, denoise: float) -> tuple[Tensor]:
        """Return the levels.

        Args:
            model: The model.
            schedule: The name of the schedule.
            steps: Number of steps.
            denoise: Share of a longer schedule that is kept.
        """
        if not denoise > 0:
            return (torch.empty(0),)
        model_sampling = model.get_model_object('model_sampling')
        frame, n = Frame.of(model_sampling), int(steps / denoise)
        known = {entry.takes: entry for entry in schedules.catalogue() if entry.name == schedule}
        if 'table' in known:
            table = [frame.to_sigma(level) for level in model_sampling.sigmas.double().tolist()]
            sigmas = known['table'].function(n, torch.tensor(table, dtype=torch.float64))
        elif 'range' in known:
            sigmas = known['range'].function(n, *frame.range_of(model_sampling))
        else:
            sigmas = known['nothing'].function(n)
        return (frame.to_levels(sigmas)[-(steps + 1) :],)


class RecommendedNode:
    """A node that returns the sampler and the levels that `K.sample` takes by default."""

    CATEGORY, RETURN_TYPES, FUNCTION = CATEGORY, ('SAMPLER', 'SIGMAS'), 'give'
    DESCRIPTION = (
        'The sampler and the levels that come closest to the converged image with this number '
        'of model calls.'
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Return the widgets of the node."""
        return {
            'required': {
                'model': ('MODEL',),
                'calls': _STEPS,
                'guided': ('BOOLEAN', {'default': True}),
            }
        }

    def give(self, model: Any, calls: int, guided: bool) -> tuple[Any, Tensor]:
        """Return the sampler and the levels.

        Args:
            model: The model.
            calls: Number of model calls.
            guided: True for a model with guidance.
        """
        model_sampling = model.get_model_object('model_sampling')
        frame = Frame.of(model_sampling)
        low, high = frame.range_of(model_sampling)
        denoiser: Any = SimpleNamespace(sigma_min=low, sigma_max=high)
        sigmas, sampler, options = choose_plan(denoiser, SamplingConfig(steps=calls), guided)
        return sampler_of(sampling.find_sampler(sampler), options), frame.to_levels(sigmas)


class CalibrateNode:
    """A node that fits a sampler to a guided model and stores it."""

    CATEGORY, RETURN_TYPES, FUNCTION = CATEGORY, ('SAMPLER', 'SIGMAS'), 'give'
    DESCRIPTION = (
        'Fits a sampler to this model, these conditions and this guidance, so that few calls give '
        'the result of many. The fit costs some 1,000 times the number of calls, for each noise. '
        'The sampler is stored under its name.'
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Return the widgets of the node."""
        count = {'min': 1, 'max': 10_000}
        return {
            'required': {
                'guider': ('GUIDER',),
                'latent_image': ('LATENT',),
                'calls': ('INT', {'default': 8, **count}),
                'noises': ('INT', {**count, 'default': 16, 'min': 8}),
                'seed': ('INT', {'default': 0}),
                'batch_size': ('INT', {'default': 4, **count}),
                'name': ('STRING', {'default': 'calibrated'}),
            }
        }

    def give(
        self,
        guider: Any,
        latent_image: Any,
        calls: int,
        noises: int,
        seed: int,
        batch_size: int,
        name: str,
    ) -> tuple[Any, Tensor]:
        """Fit a sampler, store it, and return it with its levels.

        Args:
            guider: The GUIDER.
            latent_image: A LATENT with the shape of the images.
            calls: Number of model calls.
            noises: Number of noises.
            seed: Seed of the noises.
            batch_size: Number of images in one model call.
            name: The name of the file.

        Raises:
            ValueError: If the name is not that of a file.
        """
        path = _folder() / f'{name}.json'
        if path.parent != _folder() or not name or name.startswith('.'):
            raise ValueError(f'name must be the name of a file without a folder; got {name!r}')
        calibration = fit_sampler(guider, latent_image, calls, noises, seed, batch_size)
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as file:
            file.write_text(to_json(calibration))
        frame = Frame.of(guider.model_patcher.get_model_object('model_sampling'))
        return _as_outputs(calibration, frame)


class CalibratedNode:
    """A node that returns a stored sampler."""

    CATEGORY, RETURN_TYPES, FUNCTION = CATEGORY, ('SAMPLER', 'SIGMAS'), 'give'
    DESCRIPTION = (
        'A sampler that the node k-diffusion calibrate has fitted for the same model, '
        'conditions and guidance.'
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Return the widgets of the node."""
        return {
            'required': {
                'model': ('MODEL',),
                'name': (sorted(path.stem for path in _folder().glob('*.json')),),
            }
        }

    def give(self, model: Any, name: str) -> tuple[Any, Tensor]:
        """Return the sampler and its levels.

        Args:
            model: The model.
            name: The name of the file.
        """
        path = _folder() / Path(f'{name}.json').name
        return _as_outputs(
            from_json(path.read_text(), str(path)),
            Frame.of(model.get_model_object('model_sampling')),
        )


def _as_outputs(calibration: Calibration, frame: Frame) -> tuple[Any, Tensor]:
    return sampler_of(calibration.sampler().entry, {}), frame.to_levels(calibration.levels)


def _folder() -> Path:
    """Return the folder of fitted samplers."""
    import folder_paths

    return Path(folder_paths.get_output_directory()) / 'k-diffusion'


_SAMPLERS = {f'KDiffusion_{entry.name}': entry for entry in sampling.catalogue()}
NODE_CLASS_MAPPINGS: dict[str, type] = {
    'KDiffusionSchedule': ScheduleNode,
    'KDiffusionRecommended': RecommendedNode,
    'KDiffusionCalibrate': CalibrateNode,
    'KDiffusionCalibrated': CalibratedNode,
    **{name: make_sampler_node(entry) for name, entry in _SAMPLERS.items()},
}
NODE_DISPLAY_NAME_MAPPINGS: dict[str, str] = {
    'KDiffusionSchedule': 'k-diffusion schedule',
    'KDiffusionRecommended': 'k-diffusion recommended sampler',
    'KDiffusionCalibrate': 'k-diffusion calibrate',
    'KDiffusionCalibrated': 'k-diffusion calibrated sampler',
    **{name: f'k-diffusion {entry.name}' for name, entry in _SAMPLERS.items()},
}
