"""Networks trained at the T discrete noise levels of a DDPM, as denoisers.

To wrap a network with another calling convention, derive a class and override get_eps or get_v.

References:
    Ho et al. (2020), arXiv:2006.11239.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..core.arguments import show_value
from ..denoisers.base import PreconditionedDenoiser
from ..denoisers.scalings import Scalings, eps, v, x0
from .frozen import differentiable
from .schedule import DiscreteSchedule
from .unwrapping import describe


class DiscreteDenoiser(DiscreteSchedule, PreconditionedDenoiser):
    """A denoiser with a table of levels sigma = sqrt((1 - a) / a), from alphas_cumprod a [T].

    a is descending.
    """

    inner_model: Any

    def __init__(self, model: Any, alphas_cumprod: Tensor, quantize: bool) -> None:
        PreconditionedDenoiser.__init__(self, model)
        self.quantize = quantize
        self.set_sigmas(ddpm_sigmas(alphas_cumprod))

    def predict(self, x: Tensor, sigma: Tensor, **cond: Any) -> Any:
        """Return D, with gradients through networks that recompute their activations.

        Args:
            x: The noisy batch, [B, ...].
            sigma: Its noise levels, [B].
            **cond: Its conditions.
        """
        with differentiable(self.inner_model, x):
            return super().predict(x, sigma, **cond)


class DiscreteEpsDDPMDenoiser(DiscreteDenoiser):
    """D = x - sigma F(x / sqrt(sigma^2 + 1), t(sigma)), for a network F that predicts the noise."""

    def get_scalings(self, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Return (c_out, c_in), each shaped like sigma; c_skip is 1.

        Args:
            sigma: Noise levels.
        """
        _, c_out, c_in = eps(sigma, self.sigma_data)
        return c_out, c_in

    def scalings(self, sigma: Tensor) -> Scalings:
        """Return (c_skip, c_out, c_in), each shaped like sigma.

        Args:
            sigma: Noise levels.
        """
        return torch.ones_like(sigma), *self.get_scalings(sigma)

    def get_eps(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the noise that the network predicts at (c_in x, t, **cond).

        Args:
            *args: c_in x and t.
            **kwargs: Conditions.
        """
        return self.inner_model(*args, **kwargs)

    def network(self, x: Tensor, sigma: Tensor, **cond: Any) -> Tensor:
        """Return the prediction of the network at the levels sigma.

        Args:
            x: The scaled batch, [B, ...].
            sigma: The noise levels, [B].
            **cond: Conditions.
        """
        return self.get_eps(x, self.sigma_to_t(sigma).to(x.device), **cond)

    def example(self, input: Tensor, noise: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return a training example whose target is the noise itself.

        (input - x) / -sigma, the target of other denoisers, would only round it.

        Args:
            input: Clean data, [B, ...].
            noise: Unit noise, [B, ...].
            sigma: Noise levels, [B].
        """
        x, sigma, _ = super().example(input, noise, sigma)
        return x, sigma, noise.to(x.dtype)


class DiscreteVDDPMDenoiser(DiscreteDenoiser):
    """A denoiser made of a network F that predicts v.

    D = x / (sigma^2 + 1) - sigma / sqrt(sigma^2 + 1) F(x / sqrt(sigma^2 + 1), t(sigma)).
    """

    def get_scalings(self, sigma: Tensor) -> Scalings:
        """Return (c_skip, c_out, c_in), each shaped like sigma.

        Args:
            sigma: Noise levels.
        """
        return v(sigma, self.sigma_data)

    def scalings(self, sigma: Tensor) -> Scalings:
        """Return (c_skip, c_out, c_in), each shaped like sigma.

        Args:
            sigma: Noise levels.
        """
        return self.get_scalings(sigma)

    def get_v(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the v that the network predicts at (c_in x, t, **cond).

        Args:
            *args: c_in x and t.
            **kwargs: Conditions.
        """
        return self.inner_model(*args, **kwargs)

    def network(self, x: Tensor, sigma: Tensor, **cond: Any) -> Tensor:
        """Return the prediction of the network at the levels sigma.

        Args:
            x: The scaled batch, [B, ...].
            sigma: The noise levels, [B].
            **cond: Conditions.
        """
        return self.get_v(x, self.sigma_to_t(sigma).to(x.device), **cond)


class DiscreteX0DDPMDenoiser(DiscreteDenoiser):
    """D = F(x / sqrt(sigma^2 + 1), t(sigma)), for a network F that predicts the clean data."""

    def scalings(self, sigma: Tensor) -> Scalings:
        """Return (c_skip, c_out, c_in), each shaped like sigma.

        Args:
            sigma: Noise levels.
        """
        return x0(sigma, self.sigma_data)

    def get_x0(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the clean data that the network predicts at (c_in x, t, **cond).

        Args:
            *args: c_in x and t.
            **kwargs: Conditions.
        """
        return self.inner_model(*args, **kwargs)

    def network(self, x: Tensor, sigma: Tensor, **cond: Any) -> Tensor:
        """Return the prediction of the network at the levels sigma.

        Args:
            x: The scaled batch, [B, ...].
            sigma: The noise levels, [B].
            **cond: Conditions.
        """
        return self.get_x0(x, self.sigma_to_t(sigma).to(x.device), **cond)


def ddpm_sigmas(alphas_cumprod: Tensor) -> Tensor:
    """Return sqrt((1 - a) / a) [T], at least float32, finite and > 0 also where a is 0 or 1.

    A last a of 0 (zero terminal SNR) becomes 2^-24, sigma 4096, which the network cannot
    distinguish from infinity; or half the a before it, if that is less. An a of 1, from rounding to
    low precision, becomes the number below 1.

    Args:
        alphas_cumprod: a, descending, [T].

    Raises:
        TypeError: If it is not a tensor or an array of numbers.
        ValueError: If it is not at least two numbers in [0, 1] that do not rise.

    References:
        Lin et al. (2023), arXiv:2305.08891 (zero terminal SNR).
    """
    alphas_cumprod = _as_table(alphas_cumprod)
    a = alphas_cumprod.to(torch.promote_types(alphas_cumprod.dtype, torch.float32))
    nearly_0 = (torch.where(a > 0, a, 1).min() / 2).clamp(max=2**-24)
    nearly_1 = 1 - torch.finfo(a.dtype).eps / 2
    a = torch.where(a == 0, nearly_0, a).where(a != 1, nearly_1)
    return ((1 - a) / a).sqrt()


def table_of(diffusion: Any, name: str) -> Tensor:
    """Return the alphas_cumprod [T] of a model or its diffusion.

    Args:
        diffusion: The object that has them.
        name: The name of the argument in messages.

    Raises:
        TypeError: If it has none.
    """
    table = getattr(diffusion, 'alphas_cumprod', None)
    if table is None:
        raise TypeError(
            f'{name} must have alphas_cumprod, the table of noise levels; got {describe(diffusion)}'
        )
    return _as_table(table)


def _as_table(alphas_cumprod: Any) -> Tensor:
    """Return cumulative products of alphas as a tensor; raise an error for anything else."""
    try:
        table = torch.as_tensor(alphas_cumprod)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(
            'alphas_cumprod must be a tensor or an array of numbers; got '
            f'{show_value(alphas_cumprod)}'
        ) from None
    if (
        table.ndim != 1
        or len(table) < 2
        or not ((table >= 0) & (table <= 1)).all()
        or (table.diff() > 0).any()
    ):
        raise ValueError(
            'alphas_cumprod must be one row of at least two numbers in [0, 1] that do not rise; '
            f'got {show_value(table)}, starting with {table.flatten()[:3].tolist()}'
        )
    return table
