"""Euler's method, of first order: deterministic, with churn, and ancestral."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from ..coefficients import split_step, to_d
from ..definition import sampler
from ..loop import Steps
from ..registry import Run


@sampler(
    order=1,
    noise='independent',
    family='Euler',
    reference='Karras et al. 2022, arXiv:2206.00364, algorithm 2 without its correction',
)
def sample_euler(
    steps: Steps,
    x: Tensor,
    *,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
) -> Run[Tensor]:
    """Take Euler steps in sigma (DDIM), optionally with churn.

    1 NFE.

    Args:
        s_churn: Amount of churn; 0 disables it.
        s_tmin: Lowest noise level with churn.
        s_tmax: Highest noise level with churn.
        s_noise: Factor of the noise.

    References:
        Karras et al. (2022), arXiv:2206.00364, algorithm 2 without its correction.
    """
    for step in steps.walk(repeats=s_churn > 0):
        x, sigma_hat = step.churn(x, s_churn, s_tmin, s_tmax, s_noise)
        d = yield from step.ask_slope(x, sigma_hat)
        x = torch.add(x, d, alpha=step.sigma_next - sigma_hat)
        x = yield x
    return x


@sampler(
    order=1,
    stochastic=True,
    noise='path',
    family='Euler',
    reference='Song et al. 2021, arXiv:2010.02502, eq. 12 and 16',
)
def sample_euler_ancestral(
    steps: Steps,
    x: Tensor,
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
    down: Literal['ddpm', 'flow'] = 'ddpm',
) -> Run[Tensor]:
    """Take an Euler step to sigma_down, then add noise of level sigma_up.

    1 NFE.

    Args:
        eta: Noise strength; 0 is Euler's method, 1 is DDPM.
        s_noise: Factor of the noise.
        down: Rule for sigma_down: 'ddpm', or 'flow' for flow models (`split_step`).

    References:
        Song et al. (2021), arXiv:2010.02502, eq. 12 and 16.
    """
    for step in steps:
        sigma_down, sigma_up = split_step(step.sigma, step.sigma_next, eta, down)
        denoised = yield from step.ask(x, borrow=True)
        x = torch.add(x, to_d(x, step.sigma, denoised), alpha=sigma_down - step.sigma)
        x = step.add_noise(x, s_noise * sigma_up)
        x = yield x
    return x
