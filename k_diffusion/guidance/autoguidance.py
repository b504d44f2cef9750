"""Autoguidance: away from a worse version of the same model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.arguments import check_denoiser
from ..core.protocols import DenoiseFn, GuidedFn
from .streams import TwoEstimates, check_strength


def autoguidance(
    denoise: DenoiseFn,
    worse: DenoiseFn,
    scale: float,
    interval: tuple[float, float] = (0.0, math.inf),
) -> GuidedFn:
    """D' = D_worse + scale (D - D_worse) where sigma lies in (interval[0], interval[1]], else D.

    `worse` has the faults of `denoise`, only more of them: a smaller network, or the same after
    fewer steps, or averaged over a shorter time. It needs no conditions, so that unconditional
    models are guided too. With scale 1 `worse` is not called. The result's `pair` gives (D',
    D_worse). Karras et al. (2024), arXiv 2406.02507.
    """
    check_strength(scale, interval)
    check_denoiser('worse', worse)
    return _Autoguidance(denoise, worse, scale, interval)


@dataclass(frozen=True)
class _Autoguidance(TwoEstimates):
    denoise: DenoiseFn
    worse: DenoiseFn
    scale: float
    interval: tuple[float, float]

    def estimates(self, x: Tensor, sigma: Tensor, **cond: Any) -> tuple[Tensor, Tensor, Tensor]:
        good = self.denoise(x, sigma, **cond).clone()  # the two may answer in one buffer
        worse = self.worse(x, sigma, **cond)
        return torch.lerp(worse, good, self.scale), good, worse
