"""DPM-Solver++: the linear part of the probability flow in log sigma is solved exactly.

Notation: h = log(sigma / sigma_next). lerp(D, x, e^-h) = e^-h x + (1 - e^-h) D is the step for a
constant D.

References:
    Lu et al. (2022), arXiv:2211.01095.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Literal

import torch
from torch import Tensor

from ...core.registry import unknown
from ..coefficients import get_ancestral_step, phi, split_step
from ..definition import preset, sampler
from ..loop import Step, Steps
from ..registry import Run


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
    """Take a midpoint step in log sigma to sigma_down, then add noise of level sigma_up.

    2 NFE, 1 for the step to 0.

    Args:
        eta: Noise strength; 0 disables noise, 1 is that of DDPM.
        s_noise: Factor of the noise.
        down: Rule for sigma_down: 'ddpm', or 'flow' for flow models (`split_step`).

    References:
        Lu et al. (2022), arXiv:2211.01095, algorithm 1.
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
    """Take two ancestral substeps, the first over the share r of the step in log sigma.

    2 NFE, 1 for the step to 0. The two draws of a step overlap in sigma, so the noise must come
    from one path: independent noise gives a wrong variance.

    Args:
        eta: Noise strength; 0 disables noise, 1 is that of DDPM.
        s_noise: Factor of the noise.
        r: Share of the step, in (0, 1].

    Raises:
        ValueError: If r is outside (0, 1].

    References:
        Lu et al. (2022), arXiv:2211.01095.
    """
    if not 0 < r <= 1:
        raise ValueError(f'r must be in (0, 1] (1/2 is the usual value); got {r}')
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
    """Take a step to sigma_down for a constant D, then add noise of level sigma_up."""
    sigma_down, sigma_up = get_ancestral_step(sigma, sigma_next, eta)
    return step.add_noise(
        torch.lerp(denoised, x, sigma_down / sigma), s_noise * sigma_up, sigma, sigma_next
    )


@sampler(order=2, family='DPM-Solver++', reference='Lu et al. 2022, arXiv:2211.01095, algorithm 2')
def sample_dpmpp_2m(steps: Steps, x: Tensor) -> Run[Tensor]:
    """Extrapolate D to the middle of the step from its last two values.

    1 NFE.

    References:
        Lu et al. (2022), arXiv:2211.01095, algorithm 2.
    """
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
    """Take DPM-Solver++(2M) steps of the reverse SDE of strength eta.

    The step in log sigma is (1 + eta) h in place of h; then noise is added. 1 NFE.

    Args:
        eta: Noise strength; 0 is the probability flow.
        s_noise: Factor of the noise.
        solver_type: 'midpoint', or 'heun' for the exact exponential weights.

    Raises:
        ValueError: If solver_type is unknown.

    References:
        Lu et al. (2022), arXiv:2211.01095.
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
    'Take 2M steps of the reverse SDE with the exact exponential weights. 1 NFE.',
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
    """Take DPM-Solver++(3M) steps of the reverse SDE of strength eta, as published.

    1 NFE. The curvature term is half of the exact one, so the order is 2.

    Args:
        eta: Noise strength; 0 is the probability flow.
        s_noise: Factor of the noise.

    References:
        Lu et al. (2022), arXiv:2211.01095.
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
    """Return lerp(D, x, e^-H) + f2 slope + f3 bend, with as many terms as past values allow.

    slope is the derivative of D at the start of the step, bend its second divided difference.
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
    """Return the deviation of the noise that an SDE of strength eta adds in a step of length h.

    Args:
        sigma_next: The level at the end of the step.
        eta_h: eta times the step in log sigma.
    """
    return sigma_next * math.sqrt(-math.expm1(-2 * eta_h))
