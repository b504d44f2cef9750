"""The continuous networks of v-diffusion."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..denoisers.base import PreconditionedDenoiser
from ..denoisers.scalings import Scalings, v


class VDenoiser(PreconditionedDenoiser):
    """A denoiser made of a network F that predicts v at sigma = tan(t pi / 2).

    D = x / (sigma^2 + 1) - sigma / sqrt(sigma^2 + 1) F(x / sqrt(sigma^2 + 1), t).

    Args:
        inner_model: F.

    References:
        Salimans & Ho (2022), arXiv:2202.00512, appendix D.
    """

    def __init__(self, inner_model: Any) -> None:
        super().__init__(inner_model)

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

    def sigma_to_t(self, sigma: Tensor) -> Tensor:
        """Return t in [0, 1).

        Args:
            sigma: Noise levels.
        """
        return sigma.atan() * (2 / math.pi)

    def t_to_sigma(self, t: Tensor) -> Tensor:
        """Return sigma, at least float32; at t = 1 it is the largest that the dtype allows.

        Args:
            t: Times in [0, 1].
        """
        t = t.to(torch.promote_types(t.dtype, torch.float32))
        return (t.clamp(max=1 - torch.finfo(t.dtype).eps) * (math.pi / 2)).tan()

    def network(self, x: Tensor, sigma: Tensor, **cond: Any) -> Tensor:
        """Return the prediction of the network at the levels sigma.

        Args:
            x: The scaled batch, [B, ...].
            sigma: The noise levels, [B].
            **cond: Conditions.
        """
        return self.inner_model(x, self.sigma_to_t(sigma).to(x.dtype), **cond)
