"""DPM-Solver++ (Lu et al.

2022, arXiv:2211.01095): the linear part of the probability flow in log sigma is solved exactly.

Throughout h = log(sigma / sigma_next), and lerp(D, x, e^-h) = e^-h x + (1 - e^-h) D is the step for
a constant D.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Literal

import torch
from torch import Tensor

from ...core.registry import unknown
from ..coefficients import get_ancestral_step, phi, split_step
from ..loop import Step, Steps
from ..registry import Run, preset, sampler


@sampler(
    order=2,
    nfe=2,
    stochastic=True,
    noise='path',
    family='DPM-Solver++',
    reference='Lu et al. 2022, arXiv:2211.01095, algorithm 1',
)
def sample_dpmpp_2s_ancestral(
    steps: Steps,
    x: Tensor,
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
    down: Literal['ddpm', 'flow'] = 'ddpm',
) -> Run[Tensor]:
    """A midpoint step in log sigma to sigma_down, then noise of sigma_up.

    2 NFE, but 1 for the step to 0.

    down: how sigma_down is found, 'ddpm' or, for flow models, 'flow' (`split_step`).
    """
    for step in steps:
        sigma_down, sigma_up = split_step(step.sigma, step.sigma_next, eta, down)
        denoised = yield from step.ask(x)
        if sigma_down > 0:
            middle = math.sqrt(step.sigma * sigma_down)
            denoised = yield from step.ask(torch.lerp(denoised, x, middle / step.sigma), middle)
        x = torch.lerp(denoised, x, sigma_down / step.sigma)
        x = step.add_noise(x, s_noise * sigma_up)
        x = yield x
    return x


@sampler(
    order=2,
    nfe=2,
    stochastic=True,
    noise='path',
    path_by_default=True,
    family='DPM-Solver++',
    reference='Lu et al. 2022, arXiv:2211.01095',
)
def sample_dpmpp_sde(
    steps: Steps, x: Tensor, *, eta: float = 1.0, s_noise: float = 1.0, r: float = 1 / 2
) -> Run[Tensor]:
    """Two ancestral substeps, the first over the share r of h. 2 NFE, but 1 for the step to 0.

    The two draws of a step overlap in sigma, so a noise_sampler has to be a path: independent noise
    leaves the variance wrong.
    """
    if not 0 < r <= 1:
        raise ValueError(f'r={r} places no substep; give 0 < r <= 1 (1/2 is usual)')
    for step in steps:
        denoised = yield from step.ask(x)
        if step.sigma_next > 0:
            middle = step.sigma * (step.sigma_next / step.sigma) ** r
            x_2 = _substep(step, x, denoised, step.sigma, middle, eta, s_noise)
            denoised = torch.lerp(denoised, (yield from step.ask(x_2, middle)), 1 / (2 * r))
        x = _substep(step, x, denoised, step.sigma, step.sigma_next, eta, s_noise)
        x = yield x
    return x


def _substep(
    step: Step,
    x: Tensor,
    denoised: Tensor,
    sigma: float,
    sigma_next: float,
    eta: float,
    s_noise: float,
) -> Tensor:
    """Part of a step: to sigma_down for a constant D, then noise of sigma_up."""
    sigma_down, sigma_up = get_ancestral_step(sigma, sigma_next, eta)
    return step.add_noise(
        torch.lerp(denoised, x, sigma_down / sigma), s_noise * sigma_up, sigma, sigma_next
    )


@sampler(order=2, family='DPM-Solver++', reference='Lu et al. 2022, arXiv:2211.01095, algorithm 2')
def sample_dpmpp_2m(steps: Steps, x: Tensor) -> Run[Tensor]:
    """D extrapolated to the middle of the step from its last two values. 1 NFE."""
    previous, h_last = None, 0.0
    for step in steps:
        denoised = middle = yield from step.ask(x)
        if step.sigma_next > 0:
            h = math.log(step.sigma / step.sigma_next)
            if previous is not None:
                middle = torch.lerp(previous, denoised, 1 + h / (2 * h_last))
            previous, h_last = denoised, h
        x = torch.lerp(middle, x, step.sigma_next / step.sigma)
        x = yield x
    return x


@sampler(
    order=2,
    stochastic=True,
    noise='path',
    path_by_default=True,
    family='DPM-Solver++',
    reference='Lu et al. 2022, arXiv:2211.01095',
)
def sample_dpmpp_2m_sde(
    steps: Steps,
    x: Tensor,
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
    solver_type: Literal['midpoint', 'heun'] = 'midpoint',
) -> Run[Tensor]:
    """2M for the reverse SDE of strength eta: H = (1 + eta) h in place of h, then noise. 1 NFE.

    solver_type: 'midpoint', or 'heun', the exact exponential weights.
    """
    if solver_type not in ('midpoint', 'heun'):
        raise ValueError(unknown('solver_type', solver_type, ('midpoint', 'heun')))
    previous, h_last = None, 0.0
    for step in steps:
        denoised = yield from step.ask(x)
        if step.sigma_next == 0:
            x = denoised
        else:
            h = math.log(step.sigma / step.sigma_next)
            H = (1 + eta) * h
            x = torch.lerp(denoised, x, math.exp(-H))
            if previous is not None:
                gain = H * phi(2, -H) if solver_type == 'heun' else -math.expm1(-H) / 2
                x = torch.add(x, denoised - previous, alpha=gain * h / h_last)
            x = step.add_noise(x, s_noise * sde_noise(step.sigma_next, eta * h))
            previous, h_last = denoised, h
        x = yield x
    return x


sample_dpmpp_2m_sde_heun = preset(
    'dpmpp_2m_sde_heun',
    sample_dpmpp_2m_sde,
    '2M for the reverse SDE with the exact exponential weights. 1 NFE.',
    {'solver_type': 'heun'},
)


@sampler(
    order=2,
    stochastic=True,
    noise='path',
    path_by_default=True,
    family='DPM-Solver++',
    reference='Lu et al. 2022, arXiv:2211.01095',
)
def sample_dpmpp_3m_sde(
    steps: Steps, x: Tensor, *, eta: float = 1.0, s_noise: float = 1.0
) -> Run[Tensor]:
    """The published 3M for the reverse SDE.

    1 NFE. Its curvature term is half of the exact one, hence order 2.
    """
    past: deque[tuple[Tensor, float]] = deque(maxlen=2)  # (D, the h of its step), newest first
    for step in steps:
        denoised = yield from step.ask(x)
        if step.sigma_next == 0:
            x = denoised
        else:
            h = math.log(step.sigma / step.sigma_next)
            x = _third_order(x, denoised, past, h, (1 + eta) * h)
            x = step.add_noise(x, s_noise * sde_noise(step.sigma_next, eta * h))
            past.appendleft((denoised, h))
        x = yield x
    return x


def _third_order(
    x: Tensor, denoised: Tensor, past: deque[tuple[Tensor, float]], h: float, H: float
) -> Tensor:
    """lerp(D, x, e^-H) + f2 (slope of D at the step's start) + f3 (its second divided
    difference), with what past there is.
    """
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


def sde_noise(sigma_next: float, eta_h: float) -> float:
    """Return the deviation of the noise that an SDE of strength eta adds over a step of length
    h.
    """
    return sigma_next * math.sqrt(-math.expm1(-2 * eta_h))
