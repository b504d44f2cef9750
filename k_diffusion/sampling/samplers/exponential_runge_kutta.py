"""Exponential Runge-Kutta steps in log sigma, for the flow (RES) and the reverse SDE (SEEDS).

Notation: h = log(sigma / sigma_next) and H = (1 + eta) h. A stage c lies at the level sigma e^{-c
h}; lerp(D, x, e^{-c H}) is x there for a constant D.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from ...core.registry import unknown
from ..coefficients import phi
from ..definition import preset, sampler
from ..loop import Step, Steps
from ..registry import Run
from ..watch import Asking


def res_2s_step(
    step: Step,
    x: Tensor,
    denoised: Tensor,
    c: float = 1 / 2,
    eta: float = 0.0,
    noises: Sequence[Tensor | None] = (None, None),
    weights: str = 'phi_2',
) -> Asking[Tensor]:
    """Take a second order step x' = e^-H x + H ((phi_1 - b) D + b D_c) with phi_k = phi_k(-H).

    Args:
        step: The step.
        x: Its start, [B, ...].
        denoised: D at the start.
        c: Share of the step at which the stage lies.
        eta: Strength of the SDE; 0 is the flow.
        noises: Unit noise of the stage and of the end, or None.
        weights: 'phi_2' for b = phi_2 / c, which keeps order 2 in stiff problems; or 'phi_1' for b
            = phi_1 / (2 c).
    """
    h = math.log(step.sigma / step.sigma_next)
    H, sigma_c = (1 + eta) * h, step.sigma * math.exp(-c * h)
    x_c = _add_scaled(torch.lerp(denoised, x, math.exp(-c * H)), noises[0], sigma_c)
    denoised_c = yield from step.ask(x_c, sigma_c)
    x = torch.lerp(denoised, x, math.exp(-H))
    gain = phi(2, -H) / c if weights == 'phi_2' else phi(1, -H) / (2 * c)
    x = torch.add(x, denoised_c - denoised, alpha=H * gain)
    return _add_scaled(x, noises[1], step.sigma_next)


def res_3s_step(
    step: Step,
    x: Tensor,
    denoised: Tensor,
    c2: float = 1 / 3,
    c3: float = 2 / 3,
    eta: float = 0.0,
    noises: Sequence[Tensor | None] = (None, None, None),
) -> Asking[Tensor]:
    """Take a third order step whose stages D_2 and D_3 satisfy the stiff order conditions.

    Args:
        step: The step.
        x: Its start, [B, ...].
        denoised: D at the start.
        c2: Share of the step at which the second stage lies.
        c3: Share of the step at which the third stage lies.
        eta: Strength of the SDE; 0 is the flow.
        noises: Unit noise of the two stages and of the end, or None.

    References:
        Hochbruck & Ostermann (2005), doi:10.1137/040611434.
    """
    h = math.log(step.sigma / step.sigma_next)
    H = (1 + eta) * h
    sigma_2, sigma_3 = step.sigma * math.exp(-c2 * h), step.sigma * math.exp(-c3 * h)
    gamma = (3 * c3 - 2) * c3 / ((2 - 3 * c2) * c2)
    a32 = gamma * c2 * phi(2, -c2 * H) + c3**2 / c2 * phi(2, -c3 * H)
    b3 = phi(2, -H) / (gamma * c2 + c3)
    x_2 = _add_scaled(torch.lerp(denoised, x, math.exp(-c2 * H)), noises[0], sigma_2)
    change_2 = (yield from step.ask(x_2, sigma_2)) - denoised
    x_3 = torch.add(torch.lerp(denoised, x, math.exp(-c3 * H)), change_2, alpha=H * a32)
    x_3 = _add_scaled(x_3, noises[1], sigma_3)
    change_3 = (yield from step.ask(x_3, sigma_3)) - denoised
    x = torch.lerp(denoised, x, math.exp(-H))
    x = torch.add(torch.add(x, change_2, alpha=H * gamma * b3), change_3, alpha=H * b3)
    return _add_scaled(x, noises[2], step.sigma_next)


def stage_noises(
    step: Step, shares: Sequence[float], eta: float, s_noise: float
) -> list[Tensor | None]:
    """Return the noise of the reverse SDE at each share c of a step, in units of the level there.

    Each continues the one before: n_c = e^{-d} n + sqrt(1 - e^{-2 d}) z with d = eta h (c - share
    before). Nothing is drawn for eta = 0.

    Args:
        step: The step.
        shares: Shares of the step, ascending.
        eta: Strength of the SDE.
        s_noise: Factor of the noise.
    """
    h = math.log(step.sigma / step.sigma_next)
    noise: Tensor | None = None
    noises, at = [], 0.0
    for share in shares:
        d = eta * h * (share - at)
        if d > 0:
            z = step.noise(step.sigma * math.exp(-at * h), step.sigma * math.exp(-share * h))
            z = z * (s_noise * math.sqrt(-math.expm1(-2 * d)))
            noise = z if noise is None else torch.add(z, noise, alpha=math.exp(-d))
        noises.append(noise)
        at = share
    return noises


def _add_scaled(x: Tensor, noise: Tensor | None, sigma: float) -> Tensor:
    return x if noise is None else torch.add(x, noise, alpha=sigma)


def _check_stages(*shares: float) -> None:
    """Raise a ValueError unless the shares ascend in (0, 1] and have weights of full order."""
    if not all(0 < c <= 1 for c in shares) or any(c >= d for c, d in itertools.pairwise(shares)):
        raise ValueError(
            f'the stages of a step must be ascending shares in (0, 1], such as 1/2, or 1/3 and '
            f'2/3; got {shares}'
        )
    if len(shares) == 2 and math.isclose(shares[0], 2 / 3):
        raise ValueError(
            'the first of two stages must not be at 2/3, where the order 3 weights do not exist; '
            'use 1/3 for example'
        )


def _walk_stages(
    steps: Steps,
    x: Tensor,
    stages: Sequence[float],
    eta: float = 0.0,
    s_noise: float = 1.0,
    **options: str,
) -> Run[Tensor]:
    """Run the steps with one or two further stages at these shares of each step.

    Args:
        options: Passed to the function that takes a step.
    """
    _check_stages(*stages)
    make_step: Callable[..., Asking[Tensor]] = res_2s_step if len(stages) == 1 else res_3s_step
    for step in steps:
        denoised = yield from step.ask(x)
        if step.sigma_next == 0:
            x = denoised
        else:
            noises = stage_noises(step, (*stages, 1.0), eta, s_noise)
            x = yield from make_step(step, x, denoised, *stages, eta=eta, noises=noises, **options)
        x = yield x
    return x


@sampler(
    order=2,
    nfe=2,
    family='exponential Runge-Kutta',
    reference='Zhang et al. 2023, arXiv:2308.02157',
)
def sample_res_2s(steps: Steps, x: Tensor, *, c2: float = 1 / 2) -> Run[Tensor]:
    """Take RES steps with two stages, the second at the share c2 of the step.

    2 NFE, 1 for the step to 0.

    Args:
        c2: Share of the step, in (0, 1].

    References:
        Zhang et al. (2023), arXiv:2308.02157.
    """
    return _walk_stages(steps, x, (c2,))


@sampler(
    order=3,
    nfe=3,
    family='exponential Runge-Kutta',
    reference='Zhang et al. 2023, arXiv:2308.02157',
)
def sample_res_3s(steps: Steps, x: Tensor, *, c2: float = 1 / 3, c3: float = 2 / 3) -> Run[Tensor]:
    """Take RES steps with three stages at the shares 0, c2 and c3 of the step.

    3 NFE, 1 for the step to 0.

    Args:
        c2: Share of the step, in (0, c3) and not 2/3.
        c3: Share of the step, in (c2, 1].

    References:
        Zhang et al. (2023), arXiv:2308.02157.
    """
    return _walk_stages(steps, x, (c2, c3))


@sampler(
    order=2,
    nfe=2,
    family='exponential Runge-Kutta',
    reference='Hochbruck & Ostermann 2005, doi:10.1137/040611434',
)
def sample_exp_heun_2_x0(steps: Steps, x: Tensor) -> Run[Tensor]:
    """Take exponential Heun steps: RES with the second stage at the end of the step.

    2 NFE, 1 for the step to 0.

    References:
        Hochbruck & Ostermann (2005), doi:10.1137/040611434.
    """
    return _walk_stages(steps, x, (1.0,))


@sampler(
    order=2,
    nfe=2,
    stochastic=True,
    noise='path',
    family='exponential Runge-Kutta',
    reference='Gonzalez et al. 2023, arXiv:2305.14267',
)
def sample_seeds_2(
    steps: Steps,
    x: Tensor,
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
    r: float = 1 / 2,
    solver_type: Literal['phi_2', 'phi_1'] = 'phi_2',
) -> Run[Tensor]:
    """Take SEEDS-2 steps: RES-2S for the reverse SDE.

    The stage at the share r and the end have noise in common. 2 NFE, 1 for the step to 0.

    Args:
        eta: Strength of the SDE; 0 is res_2s.
        s_noise: Factor of the noise.
        r: Share of the step at which the stage lies; 1 is exponential Heun for the SDE.
        solver_type: 'phi_2', whose weights keep order 2 in stiff problems; or 'phi_1', those of
            DPM-Solver++(2S), which is ComfyUI's default.

    Raises:
        ValueError: If solver_type is unknown or r is outside (0, 1].

    References:
        Gonzalez et al. (2023), arXiv:2305.14267.
    """
    if solver_type not in ('phi_1', 'phi_2'):
        raise ValueError(unknown('solver_type', solver_type, ('phi_1', 'phi_2')))
    return _walk_stages(steps, x, (r,), eta, s_noise, weights=solver_type)


sample_exp_heun_2_x0_sde = preset(
    'exp_heun_2_x0_sde',
    sample_seeds_2,
    'Take exponential Heun steps of the reverse SDE: SEEDS-2 with its stage at the end. 2 NFE.',
    {'r': 1.0, 'solver_type': 'phi_2'},
)


@sampler(
    order=3,
    nfe=3,
    stochastic=True,
    noise='path',
    family='exponential Runge-Kutta',
    reference='Gonzalez et al. 2023, arXiv:2305.14267',
)
def sample_seeds_3(
    steps: Steps,
    x: Tensor,
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
    r_1: float = 1 / 3,
    r_2: float = 2 / 3,
) -> Run[Tensor]:
    """Take SEEDS-3 steps: RES-3S for the reverse SDE.

    Order 3 in the mean and 2 in the variance. 3 NFE, 1 for the step to 0.

    Args:
        eta: Strength of the SDE; 0 is res_3s.
        s_noise: Factor of the noise.
        r_1: Share of the step at which the second stage lies, in (0, r_2) and not 2/3.
        r_2: Share of the step at which the third stage lies, in (r_1, 1].

    References:
        Gonzalez et al. (2023), arXiv:2305.14267.
    """
    return _walk_stages(steps, x, (r_1, r_2), eta, s_noise)
