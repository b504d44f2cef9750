"""DDIM with noise of strength eta, and DDPM."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import Tensor

from ..coefficients import get_ancestral_step
from ..definition import sampler
from ..loop import Steps
from ..registry import Run
from .exponential_multistep import STAY, Row, Table, walk_table


@sampler(
    order=1,
    noise='path',
    family='DDIM',
    reference='Song et al. 2021, arXiv:2010.02502, eq. 12 and 16',
)
def sample_ddim(steps: Steps, x: Tensor, *, eta: float = 0.0, s_noise: float = 1.0) -> Run[Tensor]:
    """Take DDIM steps: x' = D + sigma_down eps + sigma_up z.

    sigma_up = eta sigma' sqrt(1 - sigma'^2 / sigma^2), as in `get_ancestral_step`. 1 NFE.

    Args:
        eta: Noise strength; 0 is Euler's method, 1 is DDPM.
        s_noise: Factor of the noise.

    References:
        Song et al. (2021), arXiv:2010.02502, eq. 12 and 16.
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
    """Take DDPM ancestral steps with the smaller of the two variances; DDIM with eta = 1.

    1 NFE.

    Args:
        s_noise: Factor of the noise.

    References:
        Ho et al. (2020), arXiv:2006.11239, eq. 7.
    """
    return walk_table(steps, x, _ddim_table(steps.sigmas, 1.0), s_noise)


def _ddim_table(sigmas: Sequence[float], eta: float) -> Table:
    """Return the row of each step; a step that starts at level 0 is the identity."""
    table = []
    for sigma, sigma_next in itertools.pairwise(sigmas):
        sigma_down, sigma_up = get_ancestral_step(sigma, sigma_next, eta) if sigma else (0.0, 0.0)
        table.append(
            Row(sigma_down / sigma, (1 - sigma_down / sigma,), sigma_up) if sigma else STAY
        )
    return table
