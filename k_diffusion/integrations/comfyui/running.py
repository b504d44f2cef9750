"""A sampler of k-diffusion as a SAMPLER of ComfyUI, and the fit of one to a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from k_diffusion.core.random import derive_seed, randn_items
from k_diffusion.generation import make_seeds
from k_diffusion.sampling import Calibration, Sampler, calibrate

from .model import HostLevels, HostModel

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
        denoiser = HostModel(model, extra_args)
        frame = denoiser.frame
        levels = [frame.to_sigma(level) for level in sigmas.double().tolist()]
        low = levels[-1] or levels[-2]
        ends = {'sigmas': levels, 'sigma_max': levels[0], 'sigma_min': low, 'n': len(levels) - 1}
        arguments: dict[str, Any] = {name: ends[name] for name in entry.takes}
        if 'noise_sampler' in entry.parameters and extra_args.get('seed') is not None:
            arguments |= _noise_argument(entry, noise, x, sigmas, denoiser)
        if entry.couples_batch:  # the steps of an image must not depend on others
            arguments['per_item'] = not options.get('eta')
        if frame.flow and 'down' in entry.options:
            arguments['down'] = 'flow'

        def show(info: dict[str, Any]) -> None:
            callback({**info, 'x': frame.from_x(info['x'], info['sigma'])})

        arguments |= {'disable': disable, 'callback': show if callback else None, **options}
        x = entry.function(denoiser, frame.to_x(x, levels[0]), **arguments)
        return frame.from_x(x, levels[-1] if 'sigmas' in entry.takes else low)

    return KSAMPLER(sample)


def _noise_argument(
    entry: Sampler, noise: str, x: Tensor, sigmas: Tensor, model: HostModel
) -> dict[str, Any]:
    """Return the argument of a sampler that sets the source of its noise."""
    seed = model.extra_args['seed']
    if noise == 'per item':
        return {'seed': [derive_seed(each, 'steps') for each in make_seeds(seed, len(x))]}
    from comfy.k_diffusion import sampling as host

    if not entry.path_by_default:
        return {'noise_sampler': host.default_noise_sampler(x, seed=seed)}
    positive = sigmas[sigmas > 0]
    path = host.BrownianTreeNoiseSampler(x, positive.min(), positive.max(), seed=seed, cpu=True)
    return {'noise_sampler': lambda *ends: path(*model.to_host(torch.stack(ends)))}


def fit_sampler(
    guider: Any,
    latent_image: Mapping[str, Any],
    calls: int,
    noises: int,
    seed: int,
    batch_size: int,
) -> Calibration:
    """Fit a sampler of so many model calls to a guided model of ComfyUI.

    Args:
        guider: The GUIDER: model, conditions and guidance scale.
        latent_image: A LATENT with the shape of the images.
        calls: Number of model calls.
        noises: Number of noises for the fit; as many again choose among the fits.
        seed: Seed of the noises.
        batch_size: Number of images in one model call.
    """
    from comfy.samplers import KSAMPLER
    from comfy.utils import ProgressBar

    results: list[Calibration] = []

    def fit(
        model: Any, x: Tensor, sigmas: Tensor, extra_args: Mapping[str, Any], **_: Any
    ) -> Tensor:
        denoiser = HostModel(model, extra_args)
        low, high, bar = denoiser.sigma_min, denoiser.sigma_max, ProgressBar(1000)
        seeds = [derive_seed(seed, 'calibrate', i) for i in range(2 * noises)]
        start = randn_items(x.shape[1:], seeds, x.device) * high

        def report(share: float, doing: str) -> None:
            bar.update_absolute(int(1000 * share))

        results.append(
            calibrate(denoiser, start, high, low, calls, batch_size=batch_size, callback=report)
        )
        return x

    shape, levels = latent_image['samples'], HostLevels.of(guider.model_patcher)
    ends = levels.to_host(torch.tensor([levels.sigma_max, 0.0]))
    guider.sample(torch.zeros_like(shape), shape, KSAMPLER(fit), ends, disable_pbar=True, seed=seed)
    return results[0]
