"""Networks trained at the T discrete noise levels of a DDPM, as denoisers.

Ho et al. (2020), arXiv 2006.11239.

To wrap a network that is called in another way, subclass and override get_eps or get_v.
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
    """What the two kinds share: a table of levels sigma = sqrt((1 - a) / a), from alphas_cumprod
    a [T], descending.
    """

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
        """As of every denoiser; but the target is the noise itself, which (input - x) / -sigma
        would only round.
        """
        x, sigma, _ = super().example(input, noise, sigma)
        return x, sigma, noise.to(x.dtype)


class DiscreteVDDPMDenoiser(DiscreteDenoiser):
    """D = x / (sigma^2 + 1) - sigma / sqrt(sigma^2 + 1) F(x / sqrt(sigma^2 + 1), t(sigma)): the
    network gives v.
    """

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

    A last a of 0 (zero terminal SNR, Lin et al. 2023, arXiv 2305.08891) becomes 2^-24, sigma 4096,
    which the network cannot tell from infinity; or half the a before it, if that is less. An a of
    1, as low precision rounds it, becomes the number below 1.

    Raises:
        TypeError: It is not a tensor or an array of numbers.
        ValueError: It is not a table [T] of at least two numbers from 0 to 1 that do not rise.
    """
    alphas_cumprod = _as_table(alphas_cumprod)
    a = alphas_cumprod.to(torch.promote_types(alphas_cumprod.dtype, torch.float32))
    nearly_0 = (torch.where(a > 0, a, 1).min() / 2).clamp(max=2**-24)
    nearly_1 = 1 - torch.finfo(a.dtype).eps / 2
    a = torch.where(a == 0, nearly_0, a).where(a != 1, nearly_1)
    return ((1 - a) / a).sqrt()


def table_of(diffusion: Any, name: str) -> Tensor:
    """Return the alphas_cumprod [T] that a model or its diffusion holds.

    Args:
        diffusion: What holds them.
        name: The argument that it is, for the message.

    Raises:
        TypeError: It holds none.
    """
    table = getattr(diffusion, 'alphas_cumprod', None)
    if table is None:
        raise TypeError(
            f'{name} must have alphas_cumprod, the table of noise levels; got {describe(diffusion)}'
        )
    return _as_table(table)


def _as_table(alphas_cumprod: Any) -> Tensor:
    """Return cumulative products of alphas as a tensor; refuse what is not a table of them."""
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
            'alphas_cumprod must be one row of at least two numbers from 0 to 1 that do not rise; '
            f'got {show_value(table)} that begins {table.flatten()[:3].tolist()}'
        )
    return table
