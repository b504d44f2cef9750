"""DPM-Solver++ (Lu et al. 2022, arXiv:2211.01095): the linear part of the probability flow in log sigma is solved exactly.

Throughout h = log(sigma / sigma_next), and lerp(D, x, e^-h) = e^-h x + (1 - e^-h) D is the step for a constant D.
"""
from __future__ import annotations

import math
from collections import deque

import torch
from torch import Tensor

from ...core.protocols import DenoiseFn, NoiseSampler
from ...core.registry import unknown
from ..catalogue import Run, sampler
from ..coefficients import get_ancestral_step, phi
from ..loop import Callback, ExtraArgs, Sigmas, levels, steps
from ..noise import BrownianTreeNoiseSampler, default_noise_sampler


@sampler(order=2, nfe=2, stochastic=True)
def sample_dpmpp_2s_ancestral(model: DenoiseFn, x: Tensor, sigmas: Sigmas, extra_args: ExtraArgs = None,
                              callback: Callback = None, disable: bool | None = None, eta: float = 1., s_noise: float = 1.,
                              noise_sampler: NoiseSampler | None = None) -> Run[Tensor]:
    """A midpoint step in log sigma to sigma_down, then noise of sigma_up. 2 NFE, but 1 for the step to 0."""
    noise_sampler = noise_sampler or default_noise_sampler(x)
    for step in steps(model, x, sigmas, extra_args, callback, disable):
        sigma_down, sigma_up = get_ancestral_step(step.sigma, step.sigma_next, eta)
        denoised = step.denoise(x)
        if sigma_down > 0:
            middle = math.sqrt(step.sigma * sigma_down)
            denoised = step.denoise(torch.lerp(denoised, x, middle / step.sigma), middle)
        x = torch.lerp(denoised, x, sigma_down / step.sigma)
        if sigma_up:
            x = torch.add(x, noise_sampler(step.sigma, step.sigma_next), alpha=s_noise * sigma_up)
        x = yield x
    return x


@sampler(order=2, nfe=2, stochastic=True)
def sample_dpmpp_sde(model: DenoiseFn, x: Tensor, sigmas: Sigmas, extra_args: ExtraArgs = None, callback: Callback = None,
                     disable: bool | None = None, eta: float = 1., s_noise: float = 1.,
                     noise_sampler: NoiseSampler | None = None, r: float = 1 / 2) -> Run[Tensor]:
    """Two ancestral substeps, the first over the share r of h. 2 NFE, but 1 for the step to 0.

    The two draws of a step overlap in sigma, so a noise_sampler has to be a path: independent noise leaves the variance wrong.
    """
    if not 0 < r <= 1:
        raise ValueError(f'r={r} places no substep; give 0 < r <= 1 (1/2 is usual)')
    sigmas = levels(sigmas)
    noise_sampler = noise_sampler or _brownian(x, sigmas, eta)

    def substep(x: Tensor, denoised: Tensor, sigma: float, sigma_next: float) -> Tensor:
        sigma_down, sigma_up = get_ancestral_step(sigma, sigma_next, eta)
        x = torch.lerp(denoised, x, sigma_down / sigma)
        return torch.add(x, noise_sampler(sigma, sigma_next), alpha=s_noise * sigma_up) if sigma_up else x

    for step in steps(model, x, sigmas, extra_args, callback, disable):
        denoised = step.denoise(x)
        if step.sigma_next > 0:
            middle = step.sigma * (step.sigma_next / step.sigma) ** r
            x_2 = substep(x, denoised, step.sigma, middle)
            denoised = torch.lerp(denoised, step.denoise(x_2, middle), 1 / (2 * r))
        x = substep(x, denoised, step.sigma, step.sigma_next)
        x = yield x
    return x


@sampler(order=2)
def sample_dpmpp_2m(model: DenoiseFn, x: Tensor, sigmas: Sigmas, extra_args: ExtraArgs = None, callback: Callback = None,
                    disable: bool | None = None) -> Run[Tensor]:
    """D extrapolated to the middle of the step from its last two values. 1 NFE."""
    previous, h_last = None, 0.
    for step in steps(model, x, sigmas, extra_args, callback, disable):
        denoised = middle = step.denoise(x)
        if step.sigma_next > 0:
            h = math.log(step.sigma / step.sigma_next)
            if previous is not None:
                middle = torch.lerp(previous, denoised, 1 + h / (2 * h_last))
            previous, h_last = denoised, h
        x = torch.lerp(middle, x, step.sigma_next / step.sigma)
        x = yield x
    return x


@sampler(order=2, stochastic=True)
def sample_dpmpp_2m_sde(model: DenoiseFn, x: Tensor, sigmas: Sigmas, extra_args: ExtraArgs = None, callback: Callback = None,
                        disable: bool | None = None, eta: float = 1., s_noise: float = 1.,
                        noise_sampler: NoiseSampler | None = None, solver_type: str = 'midpoint') -> Run[Tensor]:
    """2M for the reverse SDE of strength eta: H = (1 + eta) h in place of h, then noise. 1 NFE.

    solver_type: 'midpoint', or 'heun', the exact exponential weights.
    """
    if solver_type not in ('midpoint', 'heun'):
        raise ValueError(unknown('solver_type', solver_type, ('midpoint', 'heun')))
    sigmas = levels(sigmas)
    noise_sampler = noise_sampler or _brownian(x, sigmas, eta)
    previous, h_last = None, 0.
    for step in steps(model, x, sigmas, extra_args, callback, disable):
        denoised = step.denoise(x)
        if step.sigma_next == 0:
            x = denoised
        else:
            h = math.log(step.sigma / step.sigma_next)
            H = (1 + eta) * h
            x = torch.lerp(denoised, x, math.exp(-H))
            if previous is not None:
                gain = H * phi(2, -H) if solver_type == 'heun' else -math.expm1(-H) / 2
                x = torch.add(x, denoised - previous, alpha=gain * h / h_last)
            x = _renoise(x, step.sigma, step.sigma_next, eta * h, s_noise, noise_sampler)
            previous, h_last = denoised, h
        x = yield x
    return x


@sampler(order=2, stochastic=True)
def sample_dpmpp_3m_sde(model: DenoiseFn, x: Tensor, sigmas: Sigmas, extra_args: ExtraArgs = None, callback: Callback = None,
                        disable: bool | None = None, eta: float = 1., s_noise: float = 1.,
                        noise_sampler: NoiseSampler | None = None) -> Run[Tensor]:
    """The published 3M for the reverse SDE. 1 NFE. Its curvature term is half of the exact one, hence order 2."""
    sigmas = levels(sigmas)
    noise_sampler = noise_sampler or _brownian(x, sigmas, eta)
    past: deque[tuple[Tensor, float]] = deque(maxlen=2)  # (D, the h of its step), newest first
    for step in steps(model, x, sigmas, extra_args, callback, disable):
        denoised = step.denoise(x)
        if step.sigma_next == 0:
            x = denoised
        else:
            h = math.log(step.sigma / step.sigma_next)
            x = _third_order(x, denoised, past, h, (1 + eta) * h)
            x = _renoise(x, step.sigma, step.sigma_next, eta * h, s_noise, noise_sampler)
            past.appendleft((denoised, h))
        x = yield x
    return x


def _third_order(x: Tensor, denoised: Tensor, past: deque[tuple[Tensor, float]], h: float, H: float) -> Tensor:
    """lerp(D, x, e^-H) + f2 (slope of D at the step's start) + f3 (its second divided difference), with what past there is."""
    x = torch.lerp(denoised, x, math.exp(-H))
    f2, f3 = H * phi(2, -H), H * phi(3, -H)
    if len(past) == 2:
        (d_1, h_1), (d_2, h_2) = past
        r_0, r_1 = h_1 / h, h_2 / h
        slope_0, slope_1 = (denoised - d_1) / r_0, (d_1 - d_2) / r_1
        bend = (slope_0 - slope_1) / (r_0 + r_1)
        return x + f2 * (slope_0 + r_0 * bend) + f3 * bend
    if past:
        d_1, h_1 = past[0]
        return torch.add(x, denoised - d_1, alpha=f2 * h / h_1)
    return x


def _renoise(x: Tensor, sigma: float, sigma_next: float, eta_h: float, s_noise: float, noise_sampler: NoiseSampler) -> Tensor:
    """x + the noise that an SDE of strength eta adds over a step."""
    scale = s_noise * sigma_next * math.sqrt(-math.expm1(-2 * eta_h))
    return torch.add(x, noise_sampler(sigma, sigma_next), alpha=scale) if scale else x


def _brownian(x: Tensor, sigmas: list[float], eta: float) -> NoiseSampler:
    """The default noise of the SDE samplers; no path is laid where none is walked (eta = 0)."""
    positive = [sigma for sigma in sigmas if sigma > 0]
    if not eta or not positive:
        return default_noise_sampler(x)
    return BrownianTreeNoiseSampler(x, min(positive), max(positive))
