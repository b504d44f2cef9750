"""Autoguidance: guidance away from a worse version of the same model."""

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
    """Guide away from a worse denoiser: D' = D_worse + scale (D - D_worse).

    `worse` has the errors of `denoise`, but larger: a smaller network, or the same one after fewer
    steps or averaged over a shorter time. It needs no conditions, so that unconditional models can
    be guided too. With scale 1 `worse` is not called. `pair` of the result returns (D', D_worse).

    Args:
        denoise: The denoiser.
        worse: A worse denoiser of the same data.
        scale: Guidance strength; 1 disables guidance.
        interval: Noise levels (low, high] with guidance.

    Returns:
        The guided denoiser.

    References:
        Karras et al. (2024), arXiv:2406.02507.
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
