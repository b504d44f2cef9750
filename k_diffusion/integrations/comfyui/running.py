"""A sampler of k-diffusion as a KSAMPLER of ComfyUI, and the fit of one to a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from k_diffusion.core.random import derive_seed, randn_items
from k_diffusion.sampling import Calibration, Sampler, calibrate

from .model import Frame, HostModel

#: Sources of the noise of the steps: per item, as `K.sample(seeds=seed)` draws it, or as ComfyUI's
#: own samplers draw it.
NOISES = ('per item', 'ComfyUI')


def sampler_of(entry: Sampler, options: Mapping[str, Any], noise: str = 'per item') -> Any:
    """Return a sampler with its options as a SAMPLER of ComfyUI.

    Args:
        entry: The sampler.
        options: Its options.
        noise: A name of NOISES.
    """
    from comfy.samplers import KSAMPLER

    def sample(
        model: Any,
        x: Tensor,
        sigmas: Tensor,
        extra_args: Mapping[str, Any],
        callback: Any = None,
        disable: bool | None = None,
    ) -> Tensor:
        if len(sigmas) < 2:
            return x
        frame = Frame.of(_sampling_of(model))
        levels = [frame.to_sigma(level) for level in sigmas.double().tolist()]
        ends: dict[str, Any] = {
            'sigmas': levels,
            'sigma_max': levels[0],
            'sigma_min': levels[-1] or levels[-2],
            'n': len(levels) - 1,
        }
        given = {name: ends[name] for name in entry.takes}
        given |= _noise_argument(entry, noise, x, sigmas, frame, extra_args.get('seed'))
        if entry.couples_batch:  # the steps of an image must not depend on others
            given['per_item'] = not options.get('eta')
        if frame.flow and 'down' in entry.options:
            given['down'] = 'flow'
        denoiser = HostModel(model, extra_args, frame)
        x = entry.function(
            denoiser,
            frame.to_x(x, levels[0]),
            **{**given, **options},
            disable=disable,
            callback=_convert_callback(callback, frame),
        )
        return frame.from_x(x, levels[-1] if 'sigmas' in entry.takes else ends['sigma_min'])

    return KSAMPLER(sample)


def _sampling_of(model: Any) -> Any:
    """Return the model_sampling of the model passed to a sampler."""
    return model.inner_model.inner_model.model_sampling


def _convert_callback(
    callback: Callable[[dict[str, Any]], Any] | None, frame: Frame
) -> Callable[[dict[str, Any]], Any] | None:
    """Return a callback that receives x in ComfyUI's coordinates."""
    if callback is None or not frame.flow:
        return callback
    return lambda info: callback({**info, 'x': frame.from_x(info['x'], info['sigma'])})


def _noise_argument(
    entry: Sampler, noise: str, x: Tensor, sigmas: Tensor, frame: Frame, seed: int | None
) -> dict[str, Any]:
    """Return the argument of a sampler that sets the source of its noise."""
    if 'noise_sampler' not in entry.parameters or seed is None:
        return {}
    if noise == 'per item':
        return {
            'seed': [derive_seed(derive_seed(seed, 'sample', i), 'steps') for i in range(len(x))]
        }
    from comfy.k_diffusion import sampling as host

    if not entry.path_by_default:
        return {'noise_sampler': host.default_noise_sampler(x, seed=seed)}
    positive = sigmas[sigmas > 0]
    path = host.BrownianTreeNoiseSampler(x, positive.min(), positive.max(), seed=seed, cpu=True)
    return {
        'noise_sampler': lambda sigma, sigma_next: path(
            *frame.to_levels(torch.stack([sigma, sigma_next]))
        )
    }


def fit_sampler(
    guider: Any, latent: Mapping[str, Any], steps: int, noises: int, seed: int, batch_size: int
) -> Calibration:
    """Fit a sampler of so many model calls to a guided model of ComfyUI.

    Args:
        guider: The GUIDER: model, conditions and guidance scale.
        latent: A LATENT with the shape of the images.
        steps: Number of model calls.
        noises: Number of noises for the fit; as many again choose among the fits.
        seed: Seed of the noises.
        batch_size: Number of images in one model call.
    """
    from comfy.samplers import KSAMPLER
    from comfy.utils import ProgressBar

    bar, fitted = ProgressBar(1000), []
    model_sampling = guider.model_patcher.get_model_object('model_sampling')
    frame = Frame.of(model_sampling)
    low, high = frame.range_of(model_sampling)

    def fit(
        model: Any,
        x: Tensor,
        sigmas: Tensor,
        extra_args: Mapping[str, Any],
        callback: Any = None,
        disable: bool | None = None,
    ) -> Tensor:
        seeds = [derive_seed(seed, 'calibrate', i) for i in range(2 * noises)]
        start = randn_items(x.shape[1:], seeds, x.device) * high
        fitted.append(
            calibrate(
                HostModel(model, extra_args, frame),
                start,
                high,
                low,
                steps,
                batch_size=batch_size,
                callback=lambda share, doing: bar.update_absolute(int(1000 * share)),
            )
        )
        return x

    shape = latent['samples']
    ends = frame.to_levels(torch.tensor([high, 0.0], dtype=torch.float64))
    guider.sample(torch.zeros_like(shape), shape, KSAMPLER(fit), ends, disable_pbar=True, seed=seed)
    return fitted[0]
