"""DDIM with noise of strength eta, and DDPM."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import Tensor

from ..coefficients import get_ancestral_step
from ..loop import Steps
from ..registry import Run, sampler
from .exponential_multistep import STAY, Row, Table, walk_table


@sampler(
    order=1,
    noise='path',
    family='DDIM',
    reference='Song et al. 2021, arXiv:2010.02502, eq. 12 and 16',
)
def sample_ddim(steps: Steps, x: Tensor, *, eta: float = 0.0, s_noise: float = 1.0) -> Run[Tensor]:
    """DDIM: x' = D + sigma_down eps + sigma_up z; eta 0 is Euler, 1 is DDPM.

    1 NFE. Song et al. (2021), arXiv:2010.02502, eq. 12 and 16.

    Its eta is that of get_ancestral_step: sigma_up = eta sigma' sqrt(1 - sigma'^2 / sigma^2).
    """
    return walk_table(steps, x, _ddim_table(steps.sigmas, eta), s_noise)


@sampler(
    order=1,
    stochastic=True,
    noise='path',
    family='DDIM',
    reference='Ho et al. 2020, arXiv:2006.11239, eq. 7',
)
def sample_ddpm(steps: Steps, x: Tensor, *, s_noise: float = 1.0) -> Run[Tensor]:
    """DDPM ancestral sampling with the smaller of its two variances: DDIM of eta 1.

    1 NFE. Ho et al. (2020), arXiv:2006.11239, eq. 7.
    """
    return walk_table(steps, x, _ddim_table(steps.sigmas, 1.0), s_noise)


def _ddim_table(sigmas: Sequence[float], eta: float) -> Table:
    table = []
    for sigma, sigma_next in itertools.pairwise(sigmas):
        sigma_down, sigma_up = get_ancestral_step(sigma, sigma_next, eta) if sigma else (0.0, 0.0)
        table.append(
            Row(sigma_down / sigma, (1 - sigma_down / sigma,), sigma_up) if sigma else STAY
        )
    return table
