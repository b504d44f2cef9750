"""A sampler of k-diffusion as a SAMPLER of ComfyUI, and the fit of one to a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from k_diffusion.core.random import derive_seed, randn_items
from k_diffusion.external.frames import Frame
from k_diffusion.generation import make_seeds
from k_diffusion.sampling import Calibration, Sampler, calibrate, tau_between
from k_diffusion.sampling.menus import COMFYUI_DRAWS_TWICE

from .model import HostLevels, HostModel

#: Sources of the noise of the steps: per item, as `K.sample(seeds=seed)` draws it, or as ComfyUI's
#: own samplers draw it.
NOISES = ('per item', 'ComfyUI')


def sampler_of(
    entry: Sampler, options: Mapping[str, Any], noise: str = NOISES[0], time: str = 'sigma'
) -> Any:
    """Return a sampler with its options as a SAMPLER of ComfyUI.

    Args:
        entry: The sampler.
        options: Its options.
        noise: A name of NOISES.
        time: 'sigma', or 'model', as ComfyUI runs the samplers of COMFYUI_TIME: they take the time
            t of a flow model for sigma; the interval of SA-Solver is a share of the model's time.
    """
    from comfy.samplers import KSAMPLER

    def sample(
        model: Any, x: Tensor, sigmas: Tensor, extra_args: Any, callback: Any = None, **bar: Any
    ) -> Tensor:
        if len(sigmas) < 2:
            return x
        denoiser = HostModel(model, extra_args)
        if time == 'model' and 'interval' not in entry.options:
            denoiser.frame = Frame(flow=False)
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

        arguments |= {**bar, 'callback': show if callback else None, **options}
        if 's_noise' in entry.options:
            arguments['s_noise'] = denoiser.noise_scale * arguments.get('s_noise', 1.0)
        if time == 'model' and 'interval' in entry.options:
            level_at = denoiser.model_sampling.percent_to_sigma
            shares = arguments.pop('interval', entry.options['interval'].default)
            first, last = (frame.to_sigma(float(level_at(share))) for share in shares)
            arguments['tau'] = tau_between(levels, first, last, arguments.get('tau', 1.0))
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
        draw = host.default_noise_sampler(x, seed=seed)
        draws = range(2 if entry.name in COMFYUI_DRAWS_TWICE else 1)  # all but the first unused
        return {'noise_sampler': lambda *ends: [draw(*ends) for _ in draws][0]}  # noqa: RUF015
    positive = sigmas[sigmas > 0]
    path = host.BrownianTreeNoiseSampler(x, positive.min(), positive.max(), seed=seed, cpu=True)
    return {'noise_sampler': lambda *ends: path(*model.to_host(torch.stack(ends)))}


def fit_sampler(
    guider: Any, latent_image: Any, calls: int, noises: int, seed: int, batch_size: int
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
        start = randn_items(x.shape[1:], seeds, x.device) * high * denoiser.noise_scale

        def report(share: float, doing: str) -> None:
            bar.update_absolute(int(1000 * share))

        sizes: dict[str, Any] = {'steps': calls, 'batch_size': batch_size}
        results.append(calibrate(denoiser, start, high, low, **sizes, callback=report))
        return x

    shape, levels = latent_image['samples'], HostLevels.of(guider.model_patcher)
    ends = levels.to_host(torch.tensor([levels.sigma_max, 0.0]))
    guider.sample(torch.zeros_like(shape), shape, KSAMPLER(fit), ends, disable_pbar=True, seed=seed)
    return results[0]
