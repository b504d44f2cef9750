"""Exact denoisers of Gaussians and Gaussian mixtures, as references for samplers and estimates."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.tensors import append_dims


@dataclass(frozen=True)
class Gaussian:
    """The denoiser of N(mean, std^2), with a diagonal covariance.

    D = mean + std^2 / (std^2 + sigma^2) (x - mean)

    Attributes:
        mean: Broadcasts against an item [...].
        std: Likewise.
    """

    mean: Tensor
    std: Tensor

    def __call__(self, x: Tensor, sigma: Tensor, **cond: Any) -> Tensor:
        variance = self.std**2
        return self.mean + variance / (variance + append_dims(sigma, x.ndim) ** 2) * (x - self.mean)

    def flow(self, x: Tensor, sigma: float, sigma_next: float) -> Tensor:
        """Return the exact solution of the probability flow at sigma_next.

        Args:
            x: The state at sigma, [B, ...].
            sigma: The first noise level.
            sigma_next: The last noise level.
        """
        variance = self.std**2
        return self.mean + ((variance + sigma_next**2) / (variance + sigma**2)).sqrt() * (
            x - self.mean
        )

    def log_prob(self, x: Tensor, sigma: float = 0.0) -> Tensor:
        """Return the log density [B] of the noisy data, in nats.

        Args:
            x: [B, ...].
            sigma: The noise level.
        """
        return _log_normal(x - self.mean, self.std**2 + sigma**2)


@dataclass(frozen=True)
class Mixture:
    """The denoiser of a mixture of K diagonal Gaussians.

    D = sum of the components' denoisers, weighted by the posterior probability of each component
    given x.

    Attributes:
        means: [K, ...].
        stds: [K] or [K, ...].
        weights: [K]; equal by default.
    """

    means: Tensor
    stds: Tensor
    weights: Tensor | None = None

    def __call__(self, x: Tensor, sigma: Tensor, **cond: Any) -> Tensor:
        offsets, variances = self._components(x)
        total = variances + append_dims(sigma, x.ndim).unsqueeze(1) ** 2
        posterior = self._log_joint(offsets, total).softmax(1)
        return (
            append_dims(posterior, offsets.ndim) * (self.means + variances / total * offsets)
        ).sum(1)

    def log_prob(self, x: Tensor, sigma: float = 0.0) -> Tensor:
        """Return the log density [B] of the noisy data, in nats.

        Args:
            x: [B, ...].
            sigma: The noise level.
        """
        offsets, variances = self._components(x)
        return self._log_joint(offsets, variances + sigma**2).logsumexp(1)

    def _components(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return x - mean [B, K, ...] and the variances [1, K, ...] of the components."""
        return x.unsqueeze(1) - self.means, append_dims(self.stds, self.means.ndim)[None] ** 2

    def _log_joint(self, offsets: Tensor, variances: Tensor) -> Tensor:
        """Return the log of weight times density, [B, K]."""
        density = _log_normal(
            offsets.flatten(0, 1), variances.expand_as(offsets).flatten(0, 1)
        ).unflatten(0, offsets.shape[:2])
        weights = torch.ones_like(density[0]) if self.weights is None else self.weights
        return density + (weights / weights.sum()).log()


def _log_normal(offset: Tensor, variance: Tensor) -> Tensor:
    """Return the log density [B] of a centred diagonal Gaussian.

    The variance broadcasts against [B, ...].
    """
    return -0.5 * (offset**2 / variance + torch.log(2 * math.pi * variance)).flatten(1).sum(1)
