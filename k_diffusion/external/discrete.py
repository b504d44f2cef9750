"""Networks trained at the T discrete noise levels of a DDPM, as denoisers. Ho et al. (2020), arXiv 2006.11239.

To wrap a network that is called in another way, subclass and override get_eps or get_v.
"""
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..denoisers.base import PreconditionedDenoiser
from ..denoisers.scalings import Scalings, eps, v, x0
from .frozen import differentiable
from .schedule import DiscreteSchedule


class DiscreteDenoiser(DiscreteSchedule, PreconditionedDenoiser):
    """What the two kinds share: a table of levels sigma = sqrt((1 - a) / a), from alphas_cumprod a [T], descending."""

    inner_model: Any

    def __init__(self, model: Any, alphas_cumprod: Tensor, quantize: bool) -> None:
        PreconditionedDenoiser.__init__(self, model)
        self.quantize = quantize
        self.set_sigmas(ddpm_sigmas(alphas_cumprod))

    def predict(self, x: Tensor, sigma: Tensor, **cond: Any) -> Any:
        with differentiable(self.inner_model, x):
            return super().predict(x, sigma, **cond)


class DiscreteEpsDDPMDenoiser(DiscreteDenoiser):
    """D = x - sigma F(x / sqrt(sigma^2 + 1), t(sigma)): the network gives the noise."""

    def get_scalings(self, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """(c_out, c_in), each shaped like sigma; c_skip is 1."""
        _, c_out, c_in = eps(sigma, self.sigma_data)
        return c_out, c_in

    def scalings(self, sigma: Tensor) -> Scalings:
        return torch.ones_like(sigma), *self.get_scalings(sigma)

    def get_eps(self, *args: Any, **kwargs: Any) -> Tensor:
        """The network's noise at (c_in x, t, **cond)."""
        return self.inner_model(*args, **kwargs)

    def network(self, x: Tensor, sigma: Tensor, **cond: Any) -> Tensor:
        return self.get_eps(x, self.sigma_to_t(sigma).to(x.device), **cond)

    def example(self, input: Tensor, noise: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As of every denoiser; but the target is the noise itself, which (input - x) / -sigma would only round."""
        x, sigma, _ = super().example(input, noise, sigma)
        return x, sigma, noise.to(x.dtype)


class DiscreteVDDPMDenoiser(DiscreteDenoiser):
    """D = x / (sigma^2 + 1) - sigma / sqrt(sigma^2 + 1) F(x / sqrt(sigma^2 + 1), t(sigma)): the network gives v."""

    def get_scalings(self, sigma: Tensor) -> Scalings:
        """(c_skip, c_out, c_in), each shaped like sigma."""
        return v(sigma, self.sigma_data)

    def scalings(self, sigma: Tensor) -> Scalings:
        return self.get_scalings(sigma)

    def get_v(self, *args: Any, **kwargs: Any) -> Tensor:
        """The network's v at (c_in x, t, **cond)."""
        return self.inner_model(*args, **kwargs)

    def network(self, x: Tensor, sigma: Tensor, **cond: Any) -> Tensor:
        return self.get_v(x, self.sigma_to_t(sigma).to(x.device), **cond)


class DiscreteX0DDPMDenoiser(DiscreteDenoiser):
    """D = F(x / sqrt(sigma^2 + 1), t(sigma)): the network gives the clean data."""

    def scalings(self, sigma: Tensor) -> Scalings:
        return x0(sigma, self.sigma_data)

    def get_x0(self, *args: Any, **kwargs: Any) -> Tensor:
        """The network's estimate of the clean data at (c_in x, t, **cond)."""
        return self.inner_model(*args, **kwargs)

    def network(self, x: Tensor, sigma: Tensor, **cond: Any) -> Tensor:
        return self.get_x0(x, self.sigma_to_t(sigma).to(x.device), **cond)


def ddpm_sigmas(alphas_cumprod: Tensor) -> Tensor:
    """sqrt((1 - a) / a), [T] in float32 at least; finite and above 0 also where a is 0 or 1.

    A last a of 0 (zero terminal SNR, Lin et al. 2023, arXiv 2305.08891) becomes 2^-24, sigma 4096, which the network cannot tell from
    infinity; or half the a before it, if that is less. An a of 1, as low precision rounds it, becomes the number below 1.
    """
    a = alphas_cumprod.to(torch.promote_types(alphas_cumprod.dtype, torch.float32))
    nearly_0 = (torch.where(a > 0, a, 1).min() / 2).clamp(max=2**-24)
    nearly_1 = 1 - torch.finfo(a.dtype).eps / 2
    a = torch.where(a == 0, nearly_0, a).where(a != 1, nearly_1)
    return ((1 - a) / a).sqrt()
