"""The interfaces of ComfyUI that the nodes meet, under their names in `sys.modules`.

`integrations/test_comfyui_itself.py` checks that the classes of ComfyUI behave like these.
"""

from __future__ import annotations

import math
import sys
import types
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor


class CONST:
    """Marks the model_sampling of flow models: x_t = (1 - t) clean + t noise."""

    def noise_scaling(
        self, sigma: Tensor, noise: Tensor, latent: Tensor, max_denoise: bool = False
    ) -> Tensor:
        return sigma * noise + (1 - sigma) * latent

    def inverse_noise_scaling(self, sigma: Tensor, latent: Tensor) -> Tensor:
        return latent / (1 - sigma)


class EPS:
    """Marks the model_sampling of models whose input is clean + sigma noise, scaled."""

    def noise_scaling(
        self, sigma: Tensor, noise: Tensor, latent: Tensor, max_denoise: bool = False
    ) -> Tensor:
        return noise * ((1 + sigma**2).sqrt() if max_denoise else sigma) + latent

    def inverse_noise_scaling(self, sigma: Tensor, latent: Tensor) -> Tensor:
        return latent


class KSAMPLER:
    """A sampler, from a function of the form of k-diffusion's samplers."""

    def __init__(self, sampler_function: Any) -> None:
        self.sampler_function = sampler_function

    def sample(
        self,
        model_wrap: Any,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        callback: Any,
        noise: Tensor,
        latent_image: Tensor,
        denoise_mask: Tensor | None,
        disable_pbar: bool,
    ) -> Tensor:
        scaling = model_wrap.inner_model.model_sampling

        def model(
            x: Tensor, sigma: Tensor, denoise_mask: Any, model_options: Any, seed: Any
        ) -> Tensor:
            if denoise_mask is None:
                return model_wrap(x, sigma, model_options, seed)
            level = sigma.reshape(-1, *[1] * (x.ndim - 1))
            x = x * denoise_mask + scaling.noise_scaling(level, noise, latent_image) * (
                1 - denoise_mask
            )
            return model_wrap(x, sigma, model_options, seed) * denoise_mask + latent_image * (
                1 - denoise_mask
            )

        model.inner_model = model_wrap  # type: ignore[attr-defined]
        highest, first = float(scaling.sigma_max), float(sigmas[0])
        from_noise = math.isclose(highest, first, rel_tol=1e-5) or first > highest
        x = scaling.noise_scaling(sigmas[0], noise, latent_image, from_noise)
        show = (
            None
            if callback is None
            else lambda info: callback(info['i'], info['denoised'], info['x'], len(sigmas) - 1)
        )
        x = self.sampler_function(
            model,
            x,
            sigmas,
            extra_args={**extra_args, 'denoise_mask': denoise_mask},
            callback=show,
            disable=disable_pbar,
        )
        return scaling.inverse_noise_scaling(sigmas[-1], x)


def set_model_options_post_cfg_function(
    options: dict[str, Any], function: Any, disable_cfg1_optimization: bool = False
) -> Any:
    options['sampler_post_cfg_function'] = [*options.get('sampler_post_cfg_function', []), function]
    if disable_cfg1_optimization:
        options['disable_cfg1_optimization'] = True
    return options


class Model:
    """A model with its patcher in one: `denoise(x, sigma, positive)` in x = clean + sigma noise."""

    def __init__(self, denoise: Any, model_sampling: Any) -> None:
        self.denoise, self.model_sampling = denoise, model_sampling

    def get_model_object(self, name: str) -> Any:
        return getattr(self, name)


class Guider:
    """Classifier-free guidance between the positive and the negative condition of a model.

    Without a negative condition its estimate is 0, and the scale is 1.
    """

    def __init__(self, model: Model, scale: float, negative: bool = True) -> None:
        self.inner_model = self.model_patcher = model
        self.scale, self.call_count = scale if negative else 1.0, 0
        self.negative = negative

    def __call__(
        self, x: Tensor, sigma: Tensor, model_options: dict[str, Any], seed: Any
    ) -> Tensor:
        self.call_count += 1
        level = sigma.reshape(-1, *[1] * (x.ndim - 1))
        if isinstance(self.model_patcher.model_sampling, CONST):
            x, sigma = x / (1 - level), sigma / (1 - sigma)
        guided = self.model_patcher.denoise(x, sigma, True)
        if self.scale == 1 and not model_options.get('disable_cfg1_optimization'):
            return guided
        unconditional = self.model_patcher.denoise(x, sigma, False) * self.negative
        guided = unconditional + self.scale * (guided - unconditional)
        condition = [{}] if self.negative else None
        for function in model_options.get('sampler_post_cfg_function', []):
            info = {'denoised': guided, 'uncond_denoised': unconditional, 'uncond': condition}
            guided = function(info)
        return guided

    def sample(
        self,
        noise: Tensor,
        latent: Tensor,
        sampler: KSAMPLER,
        sigmas: Tensor,
        callback: Any = None,
        disable_pbar: bool = True,
        seed: int = 0,
        denoise_mask: Tensor | None = None,
    ) -> Tensor:
        return sampler.sample(
            self,
            sigmas,
            {'model_options': {}, 'seed': seed},
            callback,
            noise,
            latent,
            denoise_mask,
            disable_pbar,
        )


class ProgressBar:
    """The bar of a node; it notes where it stood."""

    reports: ClassVar[list[int]] = []

    def __init__(self, total: int) -> None:
        self.total = total

    def update_absolute(self, value: int) -> None:
        self.reports.append(value)


def install(monkeypatch: Any, output: Path) -> None:
    """Enter the stand-ins where ComfyUI's modules would be, until the end of the test."""

    def noise(x: Tensor, seed: int | None = None) -> Any:
        generator = torch.Generator().manual_seed(seed or 0)
        return lambda sigma, sigma_next: torch.randn(x.shape, generator=generator)

    modules = {
        'comfy': {},
        'comfy.samplers': {'KSAMPLER': KSAMPLER},
        'comfy.model_sampling': {'CONST': CONST},
        'comfy.model_patcher': {
            'set_model_options_post_cfg_function': set_model_options_post_cfg_function
        },
        'comfy.utils': {'ProgressBar': ProgressBar},
        'comfy.k_diffusion': {},
        'comfy.k_diffusion.sampling': {'default_noise_sampler': noise},
        'folder_paths': {'get_output_directory': lambda: str(output)},
    }
    for name, contents in modules.items():
        module = types.ModuleType(name)
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(
        sys.modules['comfy.k_diffusion'],
        'sampling',
        sys.modules['comfy.k_diffusion.sampling'],
        raising=False,
    )
