"""ComfyUI's model, levels and x in the coordinates x = clean + sigma noise, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from k_diffusion.core.tensors import append_dims
from k_diffusion.schedules import sigma_to_flow_time

#: The level in place of time 1 of a flow, as in `K.external.FlowDenoiser`.
SIGMA_MAX = 1e4


class Frame:
    """The coordinates in which ComfyUI keeps x.

    Flow models have x_t = (1 - t) clean + t noise at the time t, which ComfyUI calls sigma; then x
    = x_t / (1 - t) and sigma = t / (1 - t), at most SIGMA_MAX. All other models have x already.

    Args:
        flow: True for a flow model.
    """

    def __init__(self, flow: bool) -> None:
        self.flow = flow

    @classmethod
    def of(cls, model_sampling: Any) -> Frame:
        """Return the frame of a model.

        Args:
            model_sampling: The `model_sampling` of the model.
        """
        from comfy.model_sampling import CONST

        return cls(isinstance(model_sampling, CONST))

    def range_of(self, model_sampling: Any) -> tuple[float, float]:
        """Return the lowest and the highest sigma of a model.

        Args:
            model_sampling: The `model_sampling` of the model.
        """
        return self.to_sigma(float(model_sampling.sigma_min)), self.to_sigma(
            float(model_sampling.sigma_max)
        )

    def to_sigma(self, level: float) -> float:
        """Convert a level of ComfyUI to sigma.

        Args:
            level: The level.
        """
        if not self.flow:
            return level
        # in float32 the time of SIGMA_MAX is off by some 1e-3 of its distance to 1
        return SIGMA_MAX if (1 - level) * SIGMA_MAX < 1.001 else level / (1 - level)

    def to_levels(self, sigmas: Tensor) -> Tensor:
        """Convert sigmas to levels of ComfyUI, float32.

        Args:
            sigmas: The noise levels.
        """
        return (sigma_to_flow_time(sigmas.double()) if self.flow else sigmas).float()

    def to_x(self, x: Tensor, sigma: float) -> Tensor:
        """Convert ComfyUI's x at sigma; at SIGMA_MAX it is treated as noise only.

        Args:
            x: ComfyUI's x, [B, ...].
            sigma: The noise level.
        """
        return x * (sigma if sigma == SIGMA_MAX else 1 + sigma) if self.flow else x

    def from_x(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """Convert x at sigma to ComfyUI's x.

        Args:
            x: The noisy batch, [B, ...].
            sigma: The noise level, a number or [B].
        """
        if not self.flow:
            return x
        return x / (1 + (append_dims(sigma, x.ndim) if isinstance(sigma, Tensor) else sigma))


class HostModel:
    """A model of ComfyUI as a denoiser D(x, sigma) with guided and unconditional estimate.

    Args:
        model: The model passed to a sampler of ComfyUI: model(x, sigma, **extra_args) returns the
            clean image.
        extra_args: Its arguments: model_options, seed, denoise_mask.
        frame: The coordinates in which it is called.
    """

    def __init__(self, model: Any, extra_args: Mapping[str, Any], frame: Frame) -> None:
        self.model, self.extra_args, self.frame = model, dict(extra_args), frame

    def __call__(self, x: Tensor, sigma: Tensor, **cond: Any) -> Tensor:
        return self._ask(x, sigma, {**self.extra_args, **cond})

    def pair(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Return the guided and the unconditional estimate of one call; equal without guidance.

        Args:
            x: The noisy batch, [B, ...].
            sigma: Its noise levels, [B].
        """
        from comfy.model_patcher import set_model_options_post_cfg_function

        seen: list[Tensor] = []

        def keep(info: Mapping[str, Any]) -> Tensor:
            seen.append(info['uncond_denoised'])
            return info['denoised']

        options = dict(self.extra_args.get('model_options', {}))
        options = set_model_options_post_cfg_function(options, keep, disable_cfg1_optimization=True)
        guided = self._ask(x, sigma, {**self.extra_args, 'model_options': options})
        return guided, seen[-1] if seen else guided

    def _ask(self, x: Tensor, sigma: Tensor, extra_args: Mapping[str, Any]) -> Tensor:
        level = sigma_to_flow_time(sigma) if self.frame.flow else sigma
        return self.model(self.frame.from_x(x, sigma), level, **extra_args)
