"""OpenAI's guided-diffusion: its networks of the noise or of the clean data, and its classifiers
of noisy pictures.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..core.conditions import expand_single
from ..core.tensors import append_dims
from ..denoisers.base import own_dtype
from ..denoisers.scalings import Scalings, x0
from .discrete import DiscreteEpsDDPMDenoiser, table_of
from .frozen import differentiable
from .schedule import DiscreteSchedule
from .unwrapping import find_class, unwrap_network


class OpenAIDenoiser(DiscreteEpsDDPMDenoiser):
    """The two that create_model_and_diffusion gives: a network, and the diffusion with its
    alphas_cumprod [T].

    The diffusion may be respaced (timestep_respacing), in which case its T levels are those that
    are left, and rescaled (rescale_timesteps); the network is then asked at the times it was
    trained at. predict_xstart is heeded; a network that gives the picture one step less noisy
    (ModelMeanType.PREVIOUS_X) is refused. has_learned_sigmas: the network's second half of channels
    is a variance, which is left away. Conditions are those of the network: y, and low_res [B, 3, h,
    w] in [-1, 1] of an upsampler (what sr_create_model_and_diffusion gives); one entry serves all
    items.
    """

    def __init__(
        self,
        model: Any,
        diffusion: Any,
        quantize: bool = False,
        has_learned_sigmas: bool = True,
        device: Any = 'cpu',
    ) -> None:
        if find_class(unwrap_network(model), ('EncoderUNetModel',)):
            raise ValueError(
                'model must be a network that gives pictures; got EncoderUNetModel, a classifier: '
                'guide with '
                'K.guidance.classifier_guidance(denoiser, K.external.openai_classifier(model, '
                'diffusion))'
            )
        super().__init__(
            model, table_of(diffusion, 'diffusion').to(device, torch.float32), quantize
        )
        self.has_learned_sigmas = has_learned_sigmas
        self.times = ModelTimes(diffusion)
        kind = getattr(getattr(diffusion, 'model_mean_type', None), 'name', 'EPSILON')
        if kind not in ('EPSILON', 'START_X'):
            raise ValueError(
                f'the diffusion says that the network gives {kind}; networks of EPSILON and '
                'START_X can be wrapped'
            )
        self.gives_x0 = kind == 'START_X'

    def scalings(self, sigma: Tensor) -> Scalings:
        return x0(sigma, self.sigma_data) if self.gives_x0 else super().scalings(sigma)

    def get_eps(self, x: Tensor, t: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The network's answer (the noise, or the clean data) at the scaled x and the place t
        [B] in the table.
        """
        output = super().get_eps(
            x, self.times(t), *expand_single(args, len(x)), **expand_single(kwargs, len(x))
        )
        return output.chunk(2, dim=1)[0] if self.has_learned_sigmas else output

    def example(self, input: Tensor, noise: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, sigma, target = super().example(input, noise, sigma)
        return x, sigma, input.to(target.dtype) if self.gives_x0 else target


class ModelTimes:
    """From places in a diffusion's table to the times that its network knows: through
    timestep_map, times 1000 / T if rescaled.
    """

    def __init__(self, diffusion: Any) -> None:
        known = getattr(diffusion, 'timestep_map', None)
        self.map = None if known is None else torch.as_tensor(list(known), dtype=torch.float32)
        if self.map is not None and torch.equal(self.map, torch.arange(len(self.map))):
            self.map = None
        steps = getattr(diffusion, 'original_num_steps', None) or len(diffusion.alphas_cumprod)
        self.factor = 1000.0 / steps if getattr(diffusion, 'rescale_timesteps', False) else 1.0

    def __call__(self, t: Tensor) -> Tensor:
        """t [B], an integer where it was one and stays one; between two places of the map
        linearly.
        """
        if self.map is not None:
            table = self.map.to(t.device)
            low = t.floor().long().clamp(0, len(table) - 1) if t.is_floating_point() else t
            high = (low + 1).clamp(max=len(table) - 1)
            t = (
                torch.lerp(table[low], table[high], (t - low).to(table))
                if t.is_floating_point()
                else table[low].long()
            )
        return t if self.factor == 1 else t * self.factor


def openai_classifier(model: Any, diffusion: Any) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """log p(y | x, sigma) [B] of a guided-diffusion classifier (x_t, t) -> logits, for
    K.guidance.classifier_guidance.

    model: what create_classifier gives, frozen or not, in any dtype. y [B], or one class for all
    items.
    """
    alphas = table_of(diffusion, 'diffusion').float()
    schedule, times = DiscreteSchedule(((1 - alphas) / alphas).sqrt(), False), ModelTimes(diffusion)

    def log_prob(x: Tensor, sigma: Tensor, y: Tensor) -> Tensor:
        t = times(schedule.sigma_to_t(sigma).to(x.device))
        x_t = x / append_dims((1 + sigma**2).sqrt(), x.ndim)
        with differentiable(model, x_t):
            logits = model(x_t.to(own_dtype(model, x.dtype)), t)
        return logits.to(x.dtype).log_softmax(1).gather(1, y.expand(len(x))[:, None])[:, 0]

    return log_prob
