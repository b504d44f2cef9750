"""Schedulers of diffusers: the meaning of a network's prediction, and the noise levels."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..denoisers.base import PreconditionedDenoiser
from ..schedules import flux_shift
from .discrete import (
    DiscreteEpsDDPMDenoiser,
    DiscreteVDDPMDenoiser,
    DiscreteX0DDPMDenoiser,
    ddpm_sigmas,
)
from .edm import KarrasTimeDenoiser
from .flow import FlowDenoiser
from .unwrapping import describe, find_class

_DISCRETE: Mapping[str, Any] = {
    'epsilon': DiscreteEpsDDPMDenoiser,
    'v_prediction': DiscreteVDDPMDenoiser,
    'sample': DiscreteX0DDPMDenoiser,
}
#: Predictions with a flow's noise schedule, and their names in FlowDenoiser.
_FLOW = {'flow_prediction': 'flow', 'epsilon': 'eps', 'v_prediction': 'v', 'sample': 'x0'}
#: Schedulers whose `sigmas` are flow times.
_FLOW_TIMES = (
    'FlowMatchEulerDiscreteScheduler',
    'FlowMatchHeunDiscreteScheduler',
    'FlowMatchLCMScheduler',
    'LTXEulerAncestralRFScheduler',
)
#: Schedulers whose `sigmas` are noise levels, or flow times with use_flow_sigmas.
_SIGMAS = (
    'EulerDiscreteScheduler',
    'EulerAncestralDiscreteScheduler',
    'HeunDiscreteScheduler',
    'KDPM2DiscreteScheduler',
    'KDPM2AncestralDiscreteScheduler',
    'LMSDiscreteScheduler',
    'DPMSolverSDEScheduler',
    'CosineDPMSolverMultistepScheduler',
    'EDMEulerScheduler',
    'EDMDPMSolverMultistepScheduler',
    'CMStochasticIterativeScheduler',
    'DPMSolverMultistepScheduler',
    'DPMSolverSinglestepScheduler',
    'UniPCMultistepScheduler',
    'DEISMultistepScheduler',
    'SASolverScheduler',
)
#: Schedulers that call the network twice at a level and list the level twice.
_TWO_CALLS = (
    'HeunDiscreteScheduler',
    'KDPM2DiscreteScheduler',
    'KDPM2AncestralDiscreteScheduler',
    'DPMSolverSDEScheduler',
    'FlowMatchHeunDiscreteScheduler',
)
#: Schedulers that use indices into a table of levels.
_PLACES = (
    'DDIMScheduler',
    'DDIMParallelScheduler',
    'DDPMScheduler',
    'DDPMParallelScheduler',
    'LCMScheduler',
    'TCDScheduler',
    'PNDMScheduler',
    'CogVideoXDDIMScheduler',
    'CogVideoXDPMScheduler',
    'UnCLIPScheduler',
)
#: Schedulers with a table of levels whose predictions have another meaning.
_OTHER_MEANING = ('CosineDPMSolverMultistepScheduler', 'DDPMWuerstchenScheduler')

#: Settings that identify schedulers with other levels or networks.
_REFUSED = {
    'snr_shift_scale': 'CogVideoX',
    'scale_factors': 'scale-wise flows',
    'stages': 'Helios',
    'scaler': 'Wuerstchen',
    's_noise sigma_max': 'consistency models',
    'n_grid': 'pi-Flow',
    'sigma_schedule solver_order': 'CosineDPMSolverMultistep',
}
#: Settings of which each known scheduler has one, except flows with these.
_DECISIVE = ('beta_start', 'trained_betas', 'sigma_data', 'prediction_type')
_OF_FLOWS = ('shift num_train_timesteps', 'eta s_noise')


def scheduler_sigmas(scheduler: Any, sigma_max: float = 1e4) -> Tensor:
    """Read the noise levels of a diffusers scheduler after its set_timesteps.

    Flow times t become sigma = t / (1 - t). Levels at which a scheduler calls the network twice are
    listed once.

    Args:
        scheduler: A diffusers scheduler, or one of a derived class.
        sigma_max: The level in place of the infinite one of flow time 1, and of zero terminal SNR
            in schedulers that have no levels of their own (DDIM, CogVideoX).

    Returns:
        The levels [n + 1] for samplers, descending, float64, on the CPU.

    Raises:
        TypeError: If it is not a diffusers scheduler.
        ValueError: If its steps do not follow descending levels, it is unknown, or set_timesteps
            was not called.
    """
    config, name = read_config(scheduler), type(scheduler).__name__
    if not sigma_max > 0:
        raise ValueError(f'sigma_max must be > 0; got {sigma_max}')
    if find_class(scheduler, (*_FLOW_TIMES, *_SIGMAS, *_PLACES)) is None:
        raise ValueError(
            f'scheduler must be of a known class; got {name}. Known are '
            f'{", ".join((*_SIGMAS, *_FLOW_TIMES, *_PLACES))}'
        )
    if getattr(scheduler, 'num_inference_steps', None) is None and not getattr(
        scheduler, 'custom_timesteps', False
    ):
        raise ValueError(
            f'scheduler must have its timesteps; got {name} without them. Call its '
            'set_timesteps(n) first'
        )
    if find_class(scheduler, _PLACES):
        return _check_descent(_levels_of_places(scheduler, config, sigma_max), name)
    sigmas = torch.as_tensor(scheduler.sigmas).detach().cpu().double()
    if find_class(scheduler, _TWO_CALLS):
        sigmas = torch.unique_consecutive(sigmas)
    else:
        sigmas = sigmas[: len(scheduler.timesteps) + 1]  # log_linear spacing has one more
    if is_flow(scheduler, config):
        sigmas = _levels_of_times(sigmas, name, sigma_max)
    return _check_descent(sigmas, name)


def make_denoiser(network: Any, scheduler: Any, quantize: bool = False) -> PreconditionedDenoiser:
    """Wrap a network as a denoiser of the kind that the settings of its scheduler describe.

    Args:
        network: Called as network(x, t, **cond); its `flow_time_scale` multiplies a flow's time.
        scheduler: A diffusers scheduler; set_timesteps need not have been called.
        quantize: Round levels to the nearest of the T levels at which the network was trained.

    Raises:
        TypeError: If it is not a diffusers scheduler.
        ValueError: If the scheduler or its prediction_type is unknown.
    """
    scheduler = getattr(scheduler, 'original', scheduler)  # of a KDiffusionScheduler
    config = read_config(scheduler)
    prediction = str(config.get('prediction_type', 'epsilon'))
    table = getattr(scheduler, 'alphas_cumprod', None)
    if is_flow(scheduler, config):
        denoiser: PreconditionedDenoiser = _make_flow(network, scheduler, config, prediction)
    elif find_class(scheduler, ('EDMEulerScheduler', 'EDMDPMSolverMultistepScheduler')):
        denoiser = KarrasTimeDenoiser(
            network, config['sigma_data'], prediction, config['sigma_min'], config['sigma_max']
        )
    elif table is None or prediction not in _DISCRETE or find_class(scheduler, _OTHER_MEANING):
        raise ValueError(
            f'scheduler must have alphas_cumprod and a prediction_type of '
            f'{", ".join(_DISCRETE)}, or use_flow_sigmas, or be a FlowMatch* or EDM* scheduler; '
            f'got {type(scheduler).__name__} with prediction_type {prediction!r}'
        )
    elif config.get('timestep_type') == 'continuous' and prediction == 'v_prediction':
        # Stable Video Diffusion: v for data of deviation 1, in EDM's time ln(sigma) / 4.
        levels = ddpm_sigmas(table)
        low, high = (
            config.get(key) or float(levels[place])
            for key, place in (('sigma_min', 0), ('sigma_max', -1))
        )
        denoiser = KarrasTimeDenoiser(network, 1.0, prediction, low, high)
    else:
        return _DISCRETE[prediction](network, table, quantize)
    if quantize:
        raise ValueError(
            f'quantize must be False with {type(scheduler).__name__} and these settings, '
            'because its network has no table of levels'
        )
    return denoiser


def read_config(scheduler: Any) -> Mapping[str, Any]:
    """Return the settings of a scheduler; raise a TypeError if it is none.

    Args:
        scheduler: The scheduler.
    """
    config = getattr(scheduler, 'config', None)
    if (
        isinstance(scheduler, type)
        or not isinstance(config, Mapping)
        or not hasattr(scheduler, 'set_timesteps')
    ):
        raise TypeError(
            f'scheduler must be a diffusers scheduler, such as pipeline.scheduler; got '
            f'{describe(scheduler)}'
        )
    return config


def complete_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a scheduler, with the prediction_type that flows omit.

    Args:
        config: The settings.

    Raises:
        ValueError: If they are not those of a known scheduler.
    """

    def has(keys: str) -> bool:
        return all(config.get(key) is not None for key in keys.split())

    for keys, kind in _REFUSED.items():
        if has(keys) and 'algorithm_type' not in config:
            raise ValueError(
                f'config must be that of a known scheduler; got one for {kind}, recognised by its '
                f'setting {keys!r}'
            )
    if any(map(has, _DECISIVE)):
        return dict(config)
    if not any(map(has, _OF_FLOWS)):
        raise ValueError(
            f'config must have one of {", ".join(_DECISIVE)}, or shift of a flow; got '
            f'{", ".join(config)}'
        )
    return {**config, 'prediction_type': 'flow_prediction'}


def make_scheduler(config: Mapping[str, Any]) -> Any:
    """Make the diffusers scheduler that defines predictions, times and levels for some settings.

    Args:
        config: The settings of any scheduler, as `complete_config` returns them.
    """
    import diffusers  # an extra

    kinds = {
        'UniPCMultistep': config.get('use_flow_sigmas'),
        'FlowMatchEulerDiscrete': config['prediction_type'] == 'flow_prediction',
        'EDMEuler': 'sigma_data' in config,
        'LCM': config.get('original_inference_steps'),
        'EulerDiscrete': True,
    }
    kind = getattr(diffusers, f'{next(name for name, fits in kinds.items() if fits)}Scheduler')
    parameters = inspect.signature(kind.__init__).parameters
    return kind(**{key: value for key, value in config.items() if key in parameters})


def is_flow(scheduler: Any, config: Mapping[str, Any]) -> bool:
    """Return True if the `sigmas` of the scheduler are flow times.

    Args:
        scheduler: The scheduler.
        config: Its settings.

    Raises:
        ValueError: If it is a flow of another convention.
    """
    name = type(scheduler).__name__
    flow = find_class(scheduler, _FLOW_TIMES) is not None
    flow = flow or (
        bool(config.get('use_flow_sigmas')) and find_class(scheduler, _SIGMAS) is not None
    )
    if flow and config.get('invert_sigmas'):
        raise ValueError(f'{name} must not have invert_sigmas, with which its time is reversed')
    if flow and config.get('scale_factors'):
        raise ValueError(f'{name} must not have scale_factors, with which x changes its size')
    return flow


def _make_flow(
    network: Any, scheduler: Any, config: Mapping[str, Any], prediction: str
) -> FlowDenoiser:
    if find_class(scheduler, _FLOW_TIMES):
        prediction = 'flow_prediction'  # these have no such setting
    if prediction not in _FLOW:
        raise ValueError(
            f'prediction_type must be one of {", ".join(_FLOW)}; got {prediction!r} in '
            f'{type(scheduler).__name__}'
        )
    scale = network.flow_time_scale * config.get('num_train_timesteps', 1000) / 1000
    return FlowDenoiser(network, _shift(config), scale, prediction=_FLOW[prediction])


def _shift(config: Mapping[str, Any]) -> float | Callable[[int], float]:
    """Return the shift of a flow, or the function of the number of tokens that gives it."""
    if config.get('use_dynamic_shifting'):
        points = [
            (config.get(f'{end}_image_seq_len', tokens), config.get(f'{end}_shift', mu))
            for end, tokens, mu in (('base', 256, 0.5), ('max', 4096, 1.15))
        ]
        return functools.partial(
            flux_shift,
            low=points[0],
            high=points[1],
            kind=config.get('time_shift_type', 'exponential'),
        )
    return float(config.get('shift', config.get('flow_shift', 1.0)) or 1.0)


def _levels_of_times(times: Tensor, name: str, sigma_max: float) -> Tensor:
    if (times > 1).any() or (times < 0).any():
        raise ValueError(
            f'scheduler must have flow times between 0 and 1; this {name} goes from '
            f'{times[0]:g} to {times[-1]:g}. A spacing such as use_karras_sigmas, '
            'use_exponential_sigmas, use_beta_sigmas or use_lu_lambdas beside '
            'use_flow_sigmas gives levels of a diffusion'
        )
    return (times / (1 - times)).clamp(max=sigma_max)


def _levels_of_places(scheduler: Any, config: Mapping[str, Any], sigma_max: float) -> Tensor:
    if config.get('skip_prk_steps') is False:
        raise ValueError(
            f'{type(scheduler).__name__} must have skip_prk_steps=True, because its '
            'Runge-Kutta steps call the network between the levels'
        )
    alphas = scheduler.alphas_cumprod.detach().cpu().double()
    table = ddpm_sigmas(alphas)
    # the level of pure noise is infinite, and t of the highest level serves all above it
    table = torch.where(alphas > 0, table, table.clamp(min=sigma_max))
    final = float(getattr(scheduler, 'final_alpha_cumprod', 1.0))
    last = torch.tensor([math.sqrt((1 - final) / final)], dtype=torch.float64)
    places = torch.unique_consecutive(torch.as_tensor(scheduler.timesteps).long().cpu())
    return torch.cat([table[places], last])


def _check_descent(sigmas: Tensor, name: str) -> Tensor:
    """Return the levels without rises from rounding; raise a ValueError for other rises."""
    lowered = sigmas.cummin(0).values
    if len(sigmas) < 2 or (sigmas > lowered * (1 + 1e-5)).any():
        raise ValueError(
            f'scheduler must go from noise to data; the levels of this {name} go from '
            f'{sigmas[0]:g} to {sigmas[-1]:g} and do not descend throughout'
        )
    return lowered
