"""Preconditionings: (sigma, sigma_data) -> (c_skip, c_out, c_in) of D = c_skip x + c_out F(c_in x).

Each determines what the network F predicts, because its target is (clean - c_skip x) / c_out. They
are scale-invariant: data of standard deviation sigma_data are treated like data of standard
deviation 1 at the noise level s = sigma / sigma_data. c_skip depends on s only, c_out is sigma_data
times, and c_in 1 / sigma_data times a function of s.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..core.registry import Registry

Scalings = tuple[Tensor, Tensor, Tensor]

SCALINGS: Registry[Callable[[Tensor, float], Scalings]] = Registry('preconditioning')


@SCALINGS.register('karras')
def karras(sigma: Tensor, sigma_data: float = 1.0) -> Scalings:
    """Predict noise at small sigma and data at large sigma, with unit variance.

    Args:
        sigma: The noise levels.
        sigma_data: The standard deviation of the data.

    References:
        Karras et al. (2022), arXiv:2206.00364, table 1.
    """
    total = sigma**2 + sigma_data**2
    return sigma_data**2 / total, sigma * sigma_data / total.sqrt(), total.rsqrt()


@SCALINGS.register('v')
def v(sigma: Tensor, sigma_data: float = 1.0) -> Scalings:
    """Predict v = cos(phi) noise - sin(phi) clean with tan(phi) = sigma.

    Args:
        sigma: The noise levels.
        sigma_data: The standard deviation of the data.

    References:
        Salimans & Ho (2022), arXiv:2202.00512, appendix D.
    """
    c_skip, c_out, c_in = karras(sigma, sigma_data)
    return c_skip, -c_out, c_in


@SCALINGS.register('eps')
def eps(sigma: Tensor, sigma_data: float = 1.0) -> Scalings:
    """Predict the noise.

    Args:
        sigma: The noise levels.
        sigma_data: The standard deviation of the data.

    References:
        Ho et al. (2020), arXiv:2006.11239.
    """
    return torch.ones_like(sigma), -sigma, (sigma**2 + sigma_data**2).rsqrt()


@SCALINGS.register('x0')
def x0(sigma: Tensor, sigma_data: float = 1.0) -> Scalings:
    """Predict the clean data.

    Args:
        sigma: The noise levels.
        sigma_data: The standard deviation of the data.
    """
    return (
        torch.zeros_like(sigma),
        torch.full_like(sigma, sigma_data),
        (sigma**2 + sigma_data**2).rsqrt(),
    )


@SCALINGS.register('flow')
def flow(sigma: Tensor, sigma_data: float = 1.0) -> Scalings:
    """Predict noise - clean, with x on the line between them at t = sigma / (1 + sigma).

    Args:
        sigma: The noise levels.
        sigma_data: The standard deviation of the data.

    References:
        Liu et al. (2022), arXiv:2209.03003.
    """
    total = sigma + sigma_data
    return sigma_data / total, -sigma * sigma_data / total, 1 / total
