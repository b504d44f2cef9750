"""Samplers of CFG++, which renoise the guided estimate in the unconditional direction.

The model is a guided denoiser with a method `pair` that returns both estimates, as
K.guidance.classifier_free makes it. Its scale is the paper's lambda, in [0, 1]. One step equals a
step with plain guidance of scale lambda / (1 - sigma' / sigma). The guidance of a step does not
shrink with the step, so the result has no limit in the number of steps, and a scale suits one
number of steps.

Notation: D is the guided estimate, D_u the unconditional one, eps_u = (x - D_u) / sigma.

References:
    Chung et al. (2024), arXiv:2406.08070.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ...core.registry import unknown
from ..coefficients import adams_weights, get_ancestral_step
from ..definition import sampler
from ..loop import Steps
from ..registry import Run
from .exponential_multistep import Table, ancestral_table


@sampler(order=0, needs_pair=True, family='CFG++', reference='Chung et al. 2024, arXiv:2406.08070')
def sample_euler_cfg_pp(steps: Steps, x: Tensor) -> Run[Tensor]:
    """Take x' = D + sigma' eps_u, with eps_u the unconditional noise estimate.

    1 NFE (of both estimates).

    References:
        Chung et al. (2024), arXiv:2406.08070.
    """
    for step in steps:
        guided, unconditional = yield from step.ask_pair(x)
        x = torch.add(guided, x - unconditional, alpha=step.sigma_next / step.sigma)
        x = yield x
    return x


@sampler(
    order=0,
    stochastic=True,
    noise='path',
    needs_pair=True,
    family='CFG++',
    reference='Chung et al. 2024, arXiv:2406.08070',
)
def sample_euler_ancestral_cfg_pp(
    steps: Steps, x: Tensor, *, eta: float = 1.0, s_noise: float = 1.0
) -> Run[Tensor]:
    """Take a step of euler_cfg_pp to sigma_down, then add noise of level sigma_up.

    1 NFE (of both estimates).

    Args:
        eta: Noise strength; 0 disables noise, 1 is that of DDPM.
        s_noise: Factor of the noise.

    References:
        Chung et al. (2024), arXiv:2406.08070.
    """
    for step in steps:
        sigma_down, sigma_up = get_ancestral_step(step.sigma, step.sigma_next, eta)
        guided, unconditional = yield from step.ask_pair(x)
        x = torch.add(guided, x - unconditional, alpha=sigma_down / step.sigma)
        x = step.add_noise(x, s_noise * sigma_up)
        x = yield x
    return x


@sampler(order=0, needs_pair=True, family='CFG++', reference='Chung et al. 2024, arXiv:2406.08070')
def sample_dpmpp_2m_cfg_pp(steps: Steps, x: Tensor) -> Run[Tensor]:
    """Take DPM-Solver++(2M) steps that renoise in the unconditional direction.

    With a = sigma' / sigma, h the step in log sigma and h_p, D_p the step and the unconditional
    estimate before: x' = D + a (x - D_u) + (1 - a) (D - D_p) h / (2 h_p). 1 NFE (of both
    estimates).

    References:
        Chung et al. (2024), arXiv:2406.08070.
    """
    previous, h_last = None, 0.0
    for step in steps:
        guided, unconditional = yield from step.ask_pair(x)
        a = step.sigma_next / step.sigma
        x = torch.add(guided, x - unconditional, alpha=a)
        if step.sigma_next > 0:
            h = math.log(step.sigma / step.sigma_next)
            if previous is not None:
                x = torch.add(x, guided - previous, alpha=(1 - a) * h / (2 * h_last))
            previous, h_last = unconditional, h
        x = yield x
    return x


@sampler(
    order=0,
    nfe=2,
    stochastic=True,
    noise='path',
    needs_pair=True,
    family='CFG++',
    reference='Chung et al. 2024, arXiv:2406.08070',
)
def sample_dpmpp_2s_ancestral_cfg_pp(
    steps: Steps,
    x: Tensor,
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
    uncond_from: Literal['start', 'middle'] = 'start',
) -> Run[Tensor]:
    """Take dpmpp_2s_ancestral steps that renoise in the unconditional direction.

    With a = sigma_down / sigma and x_m = D + a_m (x - D_u) at the middle of log sigma: x' = a (x +
    D - D_u) + (1 - a) D_m. 2 NFE (of both estimates).

    Args:
        eta: Noise strength; 0 disables noise, 1 is that of DDPM.
        s_noise: Factor of the noise.
        uncond_from: The stage of D and D_u in D - D_u: 'start', or 'middle' as in ComfyUI. With
            'middle' the result differs from dpmpp_2s_ancestral also where D = D_u.

    Raises:
        ValueError: If uncond_from is unknown.

    References:
        Chung et al. (2024), arXiv:2406.08070.
    """
    if uncond_from not in ('start', 'middle'):
        raise ValueError(unknown('uncond_from', uncond_from, ('start', 'middle')))
    for step in steps:
        sigma_down, sigma_up = get_ancestral_step(step.sigma, step.sigma_next, eta)
        guided, unconditional = yield from step.ask_pair(x)
        if sigma_down == 0:
            x = guided
        else:
            a, middle = sigma_down / step.sigma, math.sqrt(step.sigma * sigma_down)
            x_m = torch.add(guided, x - unconditional, alpha=middle / step.sigma)
            guided_m, unconditional_m = yield from step.ask_pair(x_m, middle)
            push = guided - (unconditional if uncond_from == 'start' else unconditional_m)
            x = torch.lerp(guided_m, x, a).add_(push, alpha=a)
        x = step.add_noise(x, s_noise * sigma_up)
        x = yield x
    return x


def _walk_res(steps: Steps, x: Tensor, table: Table, s_noise: float = 1.0) -> Run[Tensor]:
    """Take x' = a (x + D - D_u) + b_0 D_u + b_1 D_p, with D_p the D_u of the step before.

    The first step, which has no D_p, is D + a (x - D_u).
    """
    previous: Tensor | None = None
    for step in steps:
        a, b, s, _ = table[step.i]
        guided, unconditional = yield from step.ask_pair(x)
        if previous is None or len(b) == 1:
            x = torch.add(guided, x - unconditional, alpha=a)
        else:
            x = (x + guided).mul_(a).add_(unconditional, alpha=b[0] - a).add_(previous, alpha=b[1])
        previous = unconditional
        x = step.add_noise(x, s_noise * s)
        x = yield x
    return x


@sampler(order=0, needs_pair=True, family='CFG++', reference='Chung et al. 2024, arXiv:2406.08070')
def sample_res_multistep_cfg_pp(steps: Steps, x: Tensor) -> Run[Tensor]:
    """Take res_multistep steps on the unconditional estimate and add a (D - D_u).

    a = sigma' / sigma. 1 NFE (of both estimates).

    References:
        Chung et al. (2024), arXiv:2406.08070.
    """
    return _walk_res(steps, x, ancestral_table(steps.sigmas, 0.0))


@sampler(
    order=0,
    stochastic=True,
    noise='path',
    needs_pair=True,
    family='CFG++',
    reference='Chung et al. 2024, arXiv:2406.08070',
)
def sample_res_multistep_ancestral_cfg_pp(
    steps: Steps, x: Tensor, *, eta: float = 1.0, s_noise: float = 1.0
) -> Run[Tensor]:
    """Take a step of res_multistep_cfg_pp to sigma_down, then add noise of level sigma_up.

    1 NFE (of both estimates).

    Args:
        eta: Noise strength; 0 disables noise, 1 is that of DDPM.
        s_noise: Factor of the noise.

    References:
        Chung et al. (2024), arXiv:2406.08070.
    """
    return _walk_res(steps, x, ancestral_table(steps.sigmas, eta), s_noise)


@sampler(order=0, needs_pair=True, family='CFG++', reference='Chung et al. 2024, arXiv:2406.08070')
def sample_gradient_estimation_cfg_pp(
    steps: Steps, x: Tensor, *, ge_gamma: float = 2.0
) -> Run[Tensor]:
    """Take gradient estimation steps that renoise in the unconditional direction.

    x' = D + sigma' eps_u + (ge_gamma - 1) (sigma' - sigma) (eps_u - eps_p), with eps_p the eps_u of
    the step before. The step to 0 ends at D. 1 NFE (of both estimates).

    Args:
        ge_gamma: Weight of the newest noise estimate; 1 is euler_cfg_pp.

    References:
        Chung et al. (2024), arXiv:2406.08070.
        Permenter & Yuan (2023), arXiv:2306.04848.
    """
    previous: Tensor | None = None
    for step in steps:
        guided, unconditional = yield from step.ask_pair(x)
        slope = (x - unconditional).div_(step.sigma)
        x = guided
        if step.sigma_next > 0:
            x = torch.add(guided, slope, alpha=step.sigma_next)
            if previous is not None:
                x.add_(slope - previous, alpha=(ge_gamma - 1) * (step.sigma_next - step.sigma))
        previous = slope
        x = yield x
    return x


@sampler(order=0, needs_pair=True, family='CFG++', reference='Chung et al. 2024, arXiv:2406.08070')
def sample_cfgpp_ud10_ab(
    steps: Steps, x: Tensor, *, ud: float = 0.1, ab: float = 0.25
) -> Run[Tensor]:
    """Take euler_cfg_pp steps with an extrapolated slope and a share of Adams-Bashforth.

    eps_u is extrapolated by the share `ud` of its change in the step before, in proportion to the
    step sizes. The share `ab` of the step is Adams-Bashforth of order 2 in sigma. The step to 0
    ends at D extrapolated linearly in sigma. The default values are ComfyUI's, chosen by eye for
    one model. 1 NFE (of both estimates).

    Args:
        ud: Share of the extrapolation of eps_u.
        ab: Share of Adams-Bashforth.

    References:
        Chung et al. (2024), arXiv:2406.08070.
    """
    # (eps_u, the whole slope, D) of the step before, which began at sigma_last
    slopes: Sequence[Tensor] = ()
    sigma_last = math.nan
    for step in steps:
        guided, unconditional = yield from step.ask_pair(x)
        slope_u, h = (x - unconditional).div_(step.sigma), step.sigma_next - step.sigma
        ahead = slope_u
        if slopes:
            ahead = torch.add(
                slope_u, slope_u - slopes[0], alpha=ud * h / (step.sigma - sigma_last)
            )
        slope = (torch.add(guided, ahead, alpha=step.sigma_next) - x).div_(h)
        weights = [h, 0.0]
        if slopes:
            w_0, w_1 = adams_weights([step.sigma, sigma_last], step.sigma, step.sigma_next)
            weights = [h + ab * (w_0 - h), ab * w_1]
        if step.sigma_next == 0:
            x = guided
            if slopes:
                x = torch.add(
                    guided, guided - slopes[2], alpha=-step.sigma / (step.sigma - sigma_last)
                )
        else:
            x = torch.add(x, slope, alpha=weights[0])
            x = torch.add(x, slopes[1], alpha=weights[1]) if slopes else x
        slopes, sigma_last = (slope_u, slope, guided), step.sigma
        x = yield x
    return x
