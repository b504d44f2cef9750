"""Tangential damping: classifier-free guidance by the part of the unconditional estimate that
the two share.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.protocols import DenoiseFn, GuidedFn
from .streams import Null, TwoConditions, check_null, check_strength, dot_per_item


def tangential_damping(
    denoise: DenoiseFn,
    null: Null,
    scale: float,
    interval: tuple[float, float] = (0.0, math.inf),
    joined: bool = True,
) -> GuidedFn:
    """D' = D_u' + scale (D_c - D_u'), with x - D_u' the part of x - D_u along what x - D_u and x -
    D_c have most in common.

    That direction v is the first right singular vector of the matrix of the two rows x - D_u and
    x - D_c (the scores, up to a factor): x - D_u' = <x - D_u, v> v. With scale 1 the denoiser is
    called as it is. `pair` gives (D', D_u), with the undamped D_u.

    Args:
        denoise: the denoiser.
        null: what stands for each condition that is taken away, as in classifier_free.
        scale: the strength; 1 is no guidance.
        interval: noise levels (low, high] that are guided.
        joined: ask both estimates in one call.

    References:
        Kwon et al. 2025, arXiv:2503.18137 (TCFG).
    """
    check_strength(scale, interval)
    check_null(null)
    return _Tangential(denoise, null, scale, interval, joined)


@dataclass(frozen=True)
class _Tangential(TwoConditions):
    def guide(self, x: Tensor, sigma: Tensor, denoised: Tensor, uncond: Tensor) -> Tensor:
        rest_u, rest_c = x - uncond, x - denoised
        # v is cos(t) rest_u + sin(t) rest_c, up to its length, with (cos t, sin t) the first
        # eigenvector of the matrix of inner products; then <rest_u, v> v is cos(t) times it.
        uu, uc, cc = (
            dot_per_item(rest_u, rest_u),
            dot_per_item(rest_u, rest_c),
            dot_per_item(rest_c, rest_c),
        )
        angle = torch.atan2(2 * uc, uu - cc) / 2
        cos, sin = angle.cos(), angle.sin()
        damped = x - cos * (cos * rest_u + sin * rest_c)
        return torch.lerp(damped, denoised, self.scale)
