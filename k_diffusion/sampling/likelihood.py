"""The likelihood of data under a denoiser, by the probability flow."""
from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..core.protocols import DenoiseFn
from ..core.tensors import sum_per_item
from .coefficients import to_d
from .loop import ExtraArgs, Watch
from .ode import Parts, dormand_prince


def log_likelihood(model: DenoiseFn, x: Tensor, sigma_min: float | Tensor, sigma_max: float | Tensor,
                   extra_args: ExtraArgs = None, atol: float = 1e-4, rtol: float = 1e-4) -> tuple[Tensor, dict[str, Any]]:
    """(log p(x) [B] in nats, {'fevals': model calls}), x taken as a sample at the level sigma_min.

    log p(x) = log N(x(sigma_max); 0, sigma_max^2) + the integral of the divergence of dx/dsigma, which is estimated with one
    Rademacher probe from the global generator (Song et al. 2021, arXiv:2011.13456, section 4.3).
    """
    low, high = float(sigma_min), float(sigma_max)
    if not 0 < low < high < math.inf:
        raise ValueError(f'sigma_min={low} and sigma_max={high} are no range of noise levels; give 0 < sigma_min < sigma_max')
    watch = Watch(model, x.dtype, 'log_likelihood')
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    probe = torch.randint_like(x, 2) * 2 - 1

    def slope(sigma: float, parts: Parts) -> Parts:
        with torch.enable_grad():
            x = parts[0].detach().requires_grad_()
            d = to_d(x, sigma, watch(x, x.new_full((len(x),), sigma), **extra_args or {}))
            grad, = torch.autograd.grad(d, x, probe)
        return d.detach(), sum_per_item(probe * grad)

    with torch.no_grad():
        (latent, divergence), evaluations = dormand_prince(slope, (x, x.new_zeros(len(x))), low, high, atol, rtol)
        prior = torch.distributions.Normal(0., high).log_prob(latent)
        return sum_per_item(prior) + divergence, {'fevals': evaluations}
