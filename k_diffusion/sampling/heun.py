"""Heun's method, second order: the trapezoid in sigma."""
from __future__ import annotations

import math

import torch
from torch import Tensor

from ..core.protocols import DenoiseFn, NoiseSampler
from .catalogue import Run, sampler
from .coefficients import to_d
from .loop import Callback, ExtraArgs, Sigmas, steps
from .noise import churn, default_noise_sampler


@sampler(order=2, nfe=2, noise='independent')
def sample_heun(model: DenoiseFn, x: Tensor, sigmas: Sigmas, extra_args: ExtraArgs = None, callback: Callback = None,
                disable: bool | None = None, s_churn: float = 0., s_tmin: float = 0., s_tmax: float = math.inf,
                s_noise: float = 1., noise_sampler: NoiseSampler | None = None) -> Run[Tensor]:
    """Karras et al. 2022, arXiv:2206.00364, algorithm 2. 2 NFE, but 1 for the step to 0."""
    noise_sampler = noise_sampler or default_noise_sampler(x)
    for step in steps(model, x, sigmas, extra_args, callback, disable, repeats=s_churn > 0):
        x, sigma_hat = churn(x, step, s_churn, s_tmin, s_tmax, s_noise, noise_sampler)
        d = to_d(x, sigma_hat, step.denoise(x, sigma_hat))
        h = step.sigma_next - sigma_hat
        if step.sigma_next > 0:
            x_2 = torch.add(x, d, alpha=h)
            d = (d + to_d(x_2, step.sigma_next, step.denoise(x_2, step.sigma_next))) / 2
        x = torch.add(x, d, alpha=h)
        x = yield x
    return x
