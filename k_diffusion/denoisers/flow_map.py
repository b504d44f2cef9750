"""A network of two noise levels as a flow map, which goes from one level to another in one call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..core.tensors import append_dims
from .base import at_least_float32
from .karras import Denoiser


class FlowMap(Denoiser):
    """A flow map M(x, sigma, sigma_next) made of a network F(c_in x, sigma, sigma_next).

    M = q x + (1 - q) G(x, sigma, sigma_next)    with q = sigma_next / sigma
    G = c_skip x + c_out F                       with the scalings of a denoiser at sigma

    so that M(x, s, s) = x whatever F is. G is the mean estimate of the clean data between the two
    levels: the slope (x - G) / sigma leads straight from x to M. G(x, s, s) is the denoiser
    D(x, s), and G(x, s, 0) = M(x, s, 0) is the end of the flow. A network that does not look at
    sigma_next makes M a step of Euler's method.

    Called without sigma_next it gives M(x, sigma, 0), so that samplers for consistency models take
    it as their denoiser. Samplers of other kinds take the `denoiser` method.

    Args:
        inner_model: The network, called as F(x, sigma, sigma_next=sigma_next, **cond).
        sigma_data: The standard deviation of the data.
        weighting: As of `Denoiser`.
        scales: As of `Denoiser`.
        preconditioning: As of `Denoiser`.
        contrast: As of `Denoiser`, and without effect on the loss of this class.

    References:
        Boffi et al. (2024), arXiv:2406.07507 (flow maps); Kim et al. (2023), arXiv:2310.02279
        (the form q x + (1 - q) G).
    """

    flow_map = True

    def forward(
        self, input: Tensor, sigma: Tensor, sigma_next: Tensor | float | None = None, **cond: Any
    ) -> Tensor:
        """Return M(x, sigma, sigma_next), in the shape of x.

        Args:
            input: x, [B, ...].
            sigma: The level of x, [B] or one number, above 0.
            sigma_next: The level of the result, [B] or one number; 0 by default.
            **cond: The conditions of the network.
        """
        x, sigma = at_least_float32(input, sigma)
        _, second = at_least_float32(x, 0.0 if sigma_next is None else sigma_next)
        share = append_dims(second / sigma, x.ndim)
        mean = self.mean_estimate(x, sigma, second, **cond)
        return torch.lerp(mean, x, share).to(input.dtype)

    def mean_estimate(
        self, input: Tensor, sigma: Tensor, sigma_next: Tensor | float, **cond: Any
    ) -> Tensor:
        """Return G(x, sigma, sigma_next), in the shape of x.

        Args:
            input: x, [B, ...].
            sigma: The level of x, [B] or one number, above 0.
            sigma_next: The second level, [B] or one number.
            **cond: The conditions of the network.
        """
        x, sigma = at_least_float32(input, sigma)
        _, second = at_least_float32(x, sigma_next)
        c_skip, c_out, c_in = (append_dims(c, x.ndim) for c in self.scalings(sigma))
        output = self.predict(x * c_in, sigma, sigma_next=second, **cond)
        return (output * c_out + x * c_skip).to(input.dtype)

    def denoiser(self, input: Tensor, sigma: Tensor, **cond: Any) -> Tensor:
        """Return D(x, sigma) = G(x, sigma, sigma), the estimate of an ordinary denoiser.

        Args:
            input: x, [B, ...].
            sigma: The level of x, [B] or one number, above 0.
            **cond: The conditions of the network.
        """
        return self.mean_estimate(input, sigma, sigma, **cond)

    def loss(self, input: Tensor, noise: Tensor, sigma: Tensor, **cond: Any) -> Tensor:
        """Return the weighted squared error of D per item, [B], at x = input + sigma noise.

        Args:
            input: Clean data, [B, ...].
            noise: Standard normal noise of the same shape.
            sigma: The noise levels, [B].
            **cond: The conditions of the network.
        """
        x, sigma, target = self.example(input, noise, sigma)
        error = self.predict(x, sigma, sigma_next=sigma, **cond) - target
        return self._mean_square(error) * self.weight(sigma)
