"""A model of ComfyUI as a denoiser, with its range of noise levels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from k_diffusion.external.frames import Frame


class HostLevels:
    """The noise levels of a model of ComfyUI, as sigma.

    Args:
        model_sampling: The `model_sampling` of the model.
        convert: Take sigma for the time t of a flow model; otherwise its t.
    """

    def __init__(self, model_sampling: Any, convert: bool = True) -> None:
        from comfy.model_sampling import CONST

        self.model_sampling = model_sampling
        self.frame = Frame(convert and isinstance(model_sampling, CONST))
        self.noise_scale = float(getattr(model_sampling, 'noise_scale', 1.0))
        self.sigma_min = self.frame.to_sigma(float(model_sampling.sigma_min))
        self.sigma_max = self.frame.to_sigma(float(model_sampling.sigma_max))

    @classmethod
    def of(cls, patcher: Any, convert: bool = True) -> HostLevels:
        """Return the levels of a MODEL.

        Args:
            patcher: The MODEL.
            convert: Take sigma for the time t of a flow model; otherwise its t.
        """
        return cls(patcher.get_model_object('model_sampling'), convert)

    @property
    def sigmas(self) -> Tensor:
        """Return the levels of training, among which some schedules choose."""
        levels = self.model_sampling.sigmas.double().tolist()
        return torch.tensor([self.frame.to_sigma(level) for level in levels], dtype=torch.float64)

    def to_host(self, sigmas: Tensor) -> Tensor:
        """Convert noise levels to SIGMAS of the model.

        Args:
            sigmas: The noise levels.
        """
        return self.frame.to_level(sigmas.double()).float()


class HostModel(HostLevels):
    """A model of ComfyUI as a denoiser D(x, sigma) with guided and unconditional estimate.

    Args:
        model: The model passed to a sampler of ComfyUI: model(x, sigma, **extra_args) returns the
            clean image.
        extra_args: Its arguments: model_options, seed, denoise_mask.
    """

    def __init__(self, model: Any, extra_args: Mapping[str, Any]) -> None:
        super().__init__(model.inner_model.inner_model.model_sampling)
        self.model, self.extra_args = model, dict(extra_args)

    def __call__(self, x: Tensor, sigma: Tensor, **cond: Any) -> Tensor:
        x, level = self.frame.from_x(x, sigma), self.frame.to_level(sigma)
        return self.model(x, level, **{**self.extra_args, **cond})

    def pair(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Return the guided and the unconditional estimate of one call; equal without guidance.

        Args:
            x: The noisy batch, [B, ...].
            sigma: Its noise levels, [B].
        """
        from comfy.model_patcher import set_model_options_post_cfg_function

        estimates: list[Tensor] = []

        def keep(info: Mapping[str, Any]) -> Tensor:
            # without a negative condition, its estimate is 0
            estimates.append(info['denoised' if info['uncond'] is None else 'uncond_denoised'])
            return info['denoised']

        options = dict(self.extra_args.get('model_options', {}))
        options = set_model_options_post_cfg_function(options, keep, disable_cfg1_optimization=True)
        guided = self(x, sigma, model_options=options)
        return guided, estimates[-1] if estimates else guided
