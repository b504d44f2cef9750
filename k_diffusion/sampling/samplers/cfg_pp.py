"""CFG++ (Chung et al. 2024, arXiv:2406.08070): the guided estimate, renoised in the direction of the unconditional one.

The model is a guided denoiser that shows both estimates (`pair`), as K.guidance.classifier_free makes it; its scale is the
paper's lambda, in [0, 1]. One step equals a step with plain guidance of scale lambda / (1 - sigma' / sigma): the push does not
shrink with the step, so that there is no limit in the number of steps and the scale suits one number of them.
"""
from __future__ import annotations

import math

import torch
from torch import Tensor

from ..coefficients import get_ancestral_step
from ..loop import Steps
from ..registry import Run, sampler


@sampler(order=0, needs_pair=True, family='CFG++', reference='Chung et al. 2024, arXiv:2406.08070')
def sample_euler_cfg_pp(steps: Steps, x: Tensor) -> Run[Tensor]:
    """x' = D + sigma' eps_u, eps_u the unconditional noise. 1 NFE (of both estimates)."""
    for step in steps:
        guided, unconditional = step.denoise_pair(x)
        x = torch.add(guided, x - unconditional, alpha=step.sigma_next / step.sigma)
        x = yield x
    return x


@sampler(order=0, stochastic=True, noise='path', needs_pair=True, family='CFG++',
         reference='Chung et al. 2024, arXiv:2406.08070')
def sample_euler_ancestral_cfg_pp(steps: Steps, x: Tensor, *, eta: float = 1.,
                                  s_noise: float = 1.) -> Run[Tensor]:
    """euler_cfg_pp to sigma_down, then noise of sigma_up. 1 NFE (of both estimates)."""
    for step in steps:
        sigma_down, sigma_up = get_ancestral_step(step.sigma, step.sigma_next, eta)
        guided, unconditional = step.denoise_pair(x)
        x = torch.add(guided, x - unconditional, alpha=sigma_down / step.sigma)
        x = step.add_noise(x, s_noise * sigma_up)
        x = yield x
    return x


@sampler(order=0, needs_pair=True, family='CFG++', reference='Chung et al. 2024, arXiv:2406.08070')
def sample_dpmpp_2m_cfg_pp(steps: Steps, x: Tensor) -> Run[Tensor]:
    """x' = D + a (x - D_u) + (1 - a) (D - D_u before) / (2 r), a = sigma' / sigma, r = h before / h. 1 NFE (of both estimates)."""
    previous, h_last = None, 0.
    for step in steps:
        guided, unconditional = step.denoise_pair(x)
        a = step.sigma_next / step.sigma
        x = torch.add(guided, x - unconditional, alpha=a)
        if step.sigma_next > 0:
            h = math.log(step.sigma / step.sigma_next)
            if previous is not None:
                x = torch.add(x, guided - previous, alpha=(1 - a) * h / (2 * h_last))
            previous, h_last = unconditional, h
        x = yield x
    return x
