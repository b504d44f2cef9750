"""The continuous networks of v-diffusion."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..denoisers.base import PreconditionedDenoiser
from ..denoisers.scalings import Scalings, v


class VDenoiser(PreconditionedDenoiser):
    """D = x / (sigma^2 + 1) - sigma / sqrt(sigma^2 + 1) F(x / sqrt(sigma^2 + 1), t), with F giving
    v at sigma = tan(t pi / 2).

    Salimans & Ho (2022), arXiv 2202.00512, appendix D.
    """

    def __init__(self, inner_model: Any) -> None:
        super().__init__(inner_model)

    def get_scalings(self, sigma: Tensor) -> Scalings:
        """(c_skip, c_out, c_in), each shaped like sigma."""
        return v(sigma, self.sigma_data)

    def scalings(self, sigma: Tensor) -> Scalings:
        return self.get_scalings(sigma)

    def sigma_to_t(self, sigma: Tensor) -> Tensor:
        """t in [0, 1)."""
        return sigma.atan() * (2 / math.pi)

    def t_to_sigma(self, t: Tensor) -> Tensor:
        """sigma, in float32 at least; at t = 1, where it is infinite, as large as the dtype
        tells it from that.
        """
        t = t.to(torch.promote_types(t.dtype, torch.float32))
        return (t.clamp(max=1 - torch.finfo(t.dtype).eps) * (math.pi / 2)).tan()

    def network(self, x: Tensor, sigma: Tensor, **cond: Any) -> Tensor:
        return self.inner_model(x, self.sigma_to_t(sigma).to(x.dtype), **cond)
