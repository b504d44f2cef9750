"""Loss weightings: (sigma, sigma_data) -> weights on the squared error of the network's prediction.

The weights are relative to the preconditioning of Karras et al. (2022): the weight on the squared
error of D is the weight here divided by their c_out^2, for any preconditioning. So 'karras' is
their lambda(sigma).
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ..core.registry import Registry


class Weighting(Protocol):
    """(sigma [B], sigma_data) -> weights [B]."""

    def __call__(self, sigma: Tensor, sigma_data: float) -> Tensor: ...


WEIGHTINGS: Registry[Weighting] = Registry('loss weighting')


@WEIGHTINGS.register('karras')
def karras(sigma: Tensor, sigma_data: float) -> Tensor:
    """Return 1: at the start of training all noise levels contribute equally.

    Args:
        sigma: The noise levels.
        sigma_data: The standard deviation of the data.

    References:
        Karras et al. (2022), arXiv:2206.00364, eq. 8.
    """
    return torch.ones_like(sigma)


@WEIGHTINGS.register('soft-min-snr')
def soft_min_snr(sigma: Tensor, sigma_data: float) -> Tensor:
    """Return (sigma sigma_data)^2 / (sigma^2 + sigma_data^2)^2.

    On the error of D it is a smooth minimum of SNR and 1.

    Args:
        sigma: The noise levels.
        sigma_data: The standard deviation of the data.

    References:
        Crowson et al. (2024), arXiv:2401.11605, section 4.3; after Hang et al. (2023),
        arXiv:2303.09556.
    """
    return (sigma * sigma_data) ** 2 / (sigma**2 + sigma_data**2) ** 2


@WEIGHTINGS.register('flow')
def flow(sigma: Tensor, sigma_data: float) -> Tensor:
    """Return (sigma + sigma_data)^2 / (sigma^2 + sigma_data^2): the error of noise - clean.

    With the density 'lognormal' of mean m and std s it is the loss of flow matching at times
    t = sigma / (1 + sigma) whose logit is N(m, s^2).

    Args:
        sigma: The noise levels.
        sigma_data: The standard deviation of the data.

    References:
        Lipman et al. (2022), arXiv:2210.02747; Esser et al. (2024), arXiv:2403.03206.
    """
    return (sigma + sigma_data) ** 2 / (sigma**2 + sigma_data**2)


@WEIGHTINGS.register('snr')
def snr(sigma: Tensor, sigma_data: float) -> Tensor:
    """Return sigma_data^2 / (sigma^2 + sigma_data^2): the squared error of the noise.

    On the error of D it is 1 / sigma^2.

    Args:
        sigma: The noise levels.
        sigma_data: The standard deviation of the data.
    """
    return sigma_data**2 / (sigma**2 + sigma_data**2)
