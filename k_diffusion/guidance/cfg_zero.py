"""CFG-Zero*: guidance of flows with a rescaled unconditional velocity and zero initial steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.arguments import check_number
from ..core.protocols import DenoiseFn, GuidedFn
from ..core.tensors import append_dims
from .streams import (
    BothEstimates,
    Null,
    TwoConditions,
    check_null,
    check_strength,
    dot_per_item,
    inside,
    level_per_item,
)


def cfg_zero_star(
    denoise: DenoiseFn,
    null: Null,
    scale: float,
    interval: tuple[float, float] = (0.0, math.inf),
    zero_above: float = math.inf,
    joined: bool = True,
) -> GuidedFn:
    """Guide velocities: v' = s v_u + scale (v_c - s v_u) with s = <v_c, v_u> / |v_u|^2.

    v is the velocity of the straight path from data to noise, x_t = (1 - t) data + t noise with t =
    sigma / (1 + sigma). A denoiser of any form has one: v = (x - (1 + sigma) D) / sigma, and D = (x
    - sigma v) / (1 + sigma). The method is published for networks that predict v. For others the
    same formula acts in another frame than they were trained in.

    v' = 0 for sigma > zero_above, which is D' = x / (1 + sigma): x_t does not move. The paper does
    so in the first step, or in the first 4 % of many; zero_above is then a level between that step
    and the next. With scale 1 and no zero_above the denoiser is called unchanged. `pair` returns
    (D', D_u).

    Args:
        denoise: The denoiser.
        null: Replacements for the conditions that are removed, as in `classifier_free`.
        scale: Guidance strength; 1 disables guidance.
        interval: Noise levels (low, high] with guidance.
        zero_above: Level above which v' = 0; inf for none.
        joined: Evaluate both estimates in one call on a doubled batch.

    Returns:
        The guided denoiser.

    References:
        Fan et al. (2025), arXiv:2503.18886.
    """
    check_strength(scale, interval)
    check_null(null)
    guided = _ZeroStar(denoise, null, scale, interval, joined)
    if check_number('zero_above', zero_above, 0.0, infinite=True) == math.inf:
        return guided
    return _ZeroVelocity(guided, zero_above)


@dataclass(frozen=True)
class _ZeroStar(TwoConditions):
    def guide(self, x: Tensor, sigma: Tensor, denoised: Tensor, uncond: Tensor) -> Tensor:
        sigma = append_dims(sigma.to(x), x.ndim)
        v_c, v_u = ((x - (1 + sigma) * each) / sigma for each in (denoised, uncond))
        best = dot_per_item(v_c, v_u) / dot_per_item(v_u, v_u).clamp(min=1e-12)
        return torch.add(denoised, sigma / (1 + sigma) * (v_c - best * v_u), alpha=1 - self.scale)


@dataclass(frozen=True)
class _ZeroVelocity(BothEstimates):
    denoise: DenoiseFn
    above: float

    def estimates(
        self, ask: Callable[..., tuple[Tensor, ...]], x: Tensor, sigma: Tensor, **cond: Any
    ) -> tuple[Tensor, ...]:
        resting = inside(level_per_item(sigma, x), (self.above, math.inf), x.ndim)
        still = x / (1 + append_dims(level_per_item(sigma, x).to(x), x.ndim))
        if sigma.is_cpu and bool(resting.all()):  # on other devices the test would wait
            return still, still
        return tuple(torch.where(resting, still, each) for each in ask(x, sigma, **cond))
