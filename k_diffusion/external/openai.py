"""OpenAI's guided-diffusion: networks for the noise or the clean data, and classifiers."""

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
    """A network and its diffusion, as create_model_and_diffusion returns them.

    The diffusion may be respaced (timestep_respacing), so that its T levels are the remaining ones,
    and rescaled (rescale_timesteps); the network is evaluated at the times of its training.
    predict_xstart is respected. A network that predicts the image one step less noisy
    (ModelMeanType.PREVIOUS_X) raises a ValueError. Conditions are those of the network: y, and
    low_res [B, 3, h, w] in [-1, 1] for an upsampler (from sr_create_model_and_diffusion). One entry
    serves all items.

    Args:
        model: The network.
        diffusion: The diffusion, with alphas_cumprod [T].
        quantize: Round levels to the nearest of the T levels.
        has_learned_sigmas: The second half of the output channels is a variance, which is dropped.
        device: Accepted for old callers, and ignored.

    Raises:
        ValueError: If the network is a classifier, or its prediction is not supported.
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
                'model must be a network that predicts images; got EncoderUNetModel, a classifier. '
                'Guide with '
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
                f'the prediction of the diffusion must be EPSILON or START_X; got {kind}'
            )
        self.gives_x0 = kind == 'START_X'

    def scalings(self, sigma: Tensor) -> Scalings:
        """Return (c_skip, c_out, c_in), each shaped like sigma.

        Args:
            sigma: Noise levels.
        """
        return x0(sigma, self.sigma_data) if self.gives_x0 else super().scalings(sigma)

    def get_eps(self, x: Tensor, t: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the prediction (noise or clean data) at the scaled x and the table indices t.

        Args:
            x: The scaled batch, [B, ...].
            t: Indices into the table, [B].
            *args: Further positional arguments of the network.
            **kwargs: Conditions.
        """
        output = super().get_eps(
            x, self.times(t), *expand_single(args, len(x)), **expand_single(kwargs, len(x))
        )
        return output.chunk(2, dim=1)[0] if self.has_learned_sigmas else output

    def example(self, input: Tensor, noise: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return a training example with the target of the network.

        Args:
            input: Clean data, [B, ...].
            noise: Unit noise, [B, ...].
            sigma: Noise levels, [B].
        """
        x, sigma, target = super().example(input, noise, sigma)
        return x, sigma, input.to(target.dtype) if self.gives_x0 else target


class ModelTimes:
    """Convert indices into a diffusion's table to the times of its network.

    Indices go through timestep_map, and times are multiplied by 1000 / T if rescaled.

    Args:
        diffusion: The diffusion.
    """

    def __init__(self, diffusion: Any) -> None:
        timestep_map = getattr(diffusion, 'timestep_map', None)
        self.map = None
        if timestep_map is not None:
            self.map = torch.as_tensor(list(timestep_map), dtype=torch.float32)
        if self.map is not None and torch.equal(self.map, torch.arange(len(self.map))):
            self.map = None
        steps = getattr(diffusion, 'original_num_steps', None) or len(diffusion.alphas_cumprod)
        self.factor = 1000.0 / steps if getattr(diffusion, 'rescale_timesteps', False) else 1.0

    def __call__(self, t: Tensor) -> Tensor:
        """Return the times of t [B]; integers stay integers, values in between are linear."""
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
    """Return log p(y | x, sigma) [B] of a guided-diffusion classifier.

    The result is a function of (x, sigma, y) for K.guidance.classifier_guidance; y is [B], or one
    class for all items.

    Args:
        model: The result of create_classifier, (x_t, t) -> logits, frozen or not, in any dtype.
        diffusion: Its diffusion.
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
