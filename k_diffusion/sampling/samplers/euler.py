"""Euler's method, first order: along dx/dsigma, and with the ancestral split."""
from __future__ import annotations

import math

import torch
from torch import Tensor

from ...core.protocols import DenoiseFn, NoiseSampler
from ..catalogue import Run, sampler
from ..coefficients import get_ancestral_step, to_d
from ..loop import Callback, ExtraArgs, Sigmas, steps
from ..noise import churn, default_noise_sampler


@sampler(order=1, noise='independent')
def sample_euler(model: DenoiseFn, x: Tensor, sigmas: Sigmas, extra_args: ExtraArgs = None, callback: Callback = None,
                 disable: bool | None = None, s_churn: float = 0., s_tmin: float = 0., s_tmax: float = math.inf,
                 s_noise: float = 1., noise_sampler: NoiseSampler | None = None) -> Run[Tensor]:
    """Euler steps in sigma (= DDIM), optionally with churn (Karras et al. 2022, algorithm 2 without its correction). 1 NFE."""
    noise_sampler = noise_sampler or default_noise_sampler(x)
    for step in steps(model, x, sigmas, extra_args, callback, disable, repeats=s_churn > 0):
        x, sigma_hat = churn(x, step, s_churn, s_tmin, s_tmax, s_noise, noise_sampler)
        d = step.slope(x, sigma_hat)
        x = torch.add(x, d, alpha=step.sigma_next - sigma_hat)
        x = yield x
    return x


@sampler(order=1, stochastic=True)
def sample_euler_ancestral(model: DenoiseFn, x: Tensor, sigmas: Sigmas, extra_args: ExtraArgs = None, callback: Callback = None,
                           disable: bool | None = None, eta: float = 1., s_noise: float = 1.,
                           noise_sampler: NoiseSampler | None = None) -> Run[Tensor]:
    """An Euler step to sigma_down, then noise of sigma_up (eta = 1: DDPM; 0: Euler). 1 NFE."""
    noise_sampler = noise_sampler or default_noise_sampler(x)
    for step in steps(model, x, sigmas, extra_args, callback, disable):
        sigma_down, sigma_up = get_ancestral_step(step.sigma, step.sigma_next, eta)
        denoised = step.denoise(x, borrow=True)
        x = torch.add(x, to_d(x, step.sigma, denoised), alpha=sigma_down - step.sigma)
        if sigma_up:
            x = torch.add(x, noise_sampler(step.sigma, step.sigma_next), alpha=s_noise * sigma_up)
        x = yield x
    return x
