"""OpenAI's guided-diffusion."""
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .discrete import DiscreteEpsDDPMDenoiser


class OpenAIDenoiser(DiscreteEpsDDPMDenoiser):
    """The two that create_model_and_diffusion gives: a network of the noise, and the diffusion with its alphas_cumprod [T].

    has_learned_sigmas: the network's second half of channels is a variance, which is left away.
    """

    def __init__(self, model: Any, diffusion: Any, quantize: bool = False, has_learned_sigmas: bool = True,
                 device: Any = 'cpu') -> None:
        super().__init__(model, torch.as_tensor(diffusion.alphas_cumprod, device=device, dtype=torch.float32), quantize)
        self.has_learned_sigmas = has_learned_sigmas

    def get_eps(self, *args: Any, **kwargs: Any) -> Tensor:
        output = super().get_eps(*args, **kwargs)
        return output.chunk(2, dim=1)[0] if self.has_learned_sigmas else output
