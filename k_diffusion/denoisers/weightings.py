"""How much a noise level counts: (sigma, sigma_data) -> weights on the squared error of the
network's own prediction.

The network is the one preconditioned after Karras et al. (2022): the weight on the squared error of
D is this divided by their c_out^2, whatever the preconditioning, so that 'karras' is their
lambda(sigma).
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
    """1: at the start of training all levels count the same.

    Karras et al. (2022), arXiv 2206.00364, eq. 8.
    """
    return torch.ones_like(sigma)


@WEIGHTINGS.register('soft-min-snr')
def soft_min_snr(sigma: Tensor, sigma_data: float) -> Tensor:
    """(sigma sigma_data)^2 / (sigma^2 + sigma_data^2)^2: on the error of D, a smooth minimum of SNR
    and 1.

    Crowson et al. (2024), arXiv 2401.11605, section 4.3; after Hang et al. (2023), arXiv
    2303.09556.
    """
    return (sigma * sigma_data) ** 2 / (sigma**2 + sigma_data**2) ** 2


@WEIGHTINGS.register('flow')
def flow(sigma: Tensor, sigma_data: float) -> Tensor:
    """(sigma + sigma_data)^2 / (sigma^2 + sigma_data^2): the squared error of the velocity noise -
    clean.

    With the density 'lognormal' of mean m and std s it is the loss of flow matching at times t =
    sigma / (1 + sigma) whose logit is N(m, s^2): Lipman et al. (2022), arXiv 2210.02747; Esser et
    al. (2024), arXiv 2403.03206.
    """
    return (sigma + sigma_data) ** 2 / (sigma**2 + sigma_data**2)


@WEIGHTINGS.register('snr')
def snr(sigma: Tensor, sigma_data: float) -> Tensor:
    """sigma_data^2 / (sigma^2 + sigma_data^2): on the error of D, 1 / sigma^2; that is the
    squared error of the noise.
    """
    return sigma_data**2 / (sigma**2 + sigma_data**2)
