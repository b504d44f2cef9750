"""CFG-Zero*: guidance of flows with the unconditional velocity brought to its best length, and
no motion at first.
"""

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
    """v' = s v_u + scale (v_c - s v_u) with s = <v_c, v_u> / |v_u|^2, and v' = 0 where sigma >
    zero_above.

    v is the velocity of the straight path from data to noise, x_t = (1 - t) data + t noise with t =
    sigma / (1 + sigma); a denoiser of any form has one, v = (x - (1 + sigma) D) / sigma, and back,
    D = (x - sigma v) / (1 + sigma). The method is published for networks that predict v; for others
    it is the same formula on another frame than they were trained in. v' = 0 is D' = x / (1 +
    sigma): the state x_t stays as it is. The paper takes it for the first step, or the first 4 % of
    many; `zero_above` is then a level between those of that step and the next. With scale 1 and
    without `zero_above` the denoiser is called as it is. `pair` gives (D', D_u).

    Args:
        denoise: the denoiser.
        null: what stands for each condition that is taken away, as in classifier_free.
        scale: the strength; 1 is no guidance.
        interval: noise levels (low, high] that are guided.
        zero_above: above this level nothing moves; inf for none.
        joined: ask both estimates in one call.

    References:
        Fan et al. 2025, arXiv:2503.18886 (CFG-Zero*).
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
        if sigma.is_cpu and bool(resting.all()):  # no call is needed; elsewhere a look would wait
            return still, still
        return tuple(torch.where(resting, still, each) for each in ask(x, sigma, **cond))
