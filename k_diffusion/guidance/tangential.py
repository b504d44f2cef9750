"""Tangential damping: classifier-free guidance from the common part of both estimates."""

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
    """Guide from the common direction: D' = D_u' + scale (D_c - D_u').

    x - D_u' is the projection of x - D_u onto the first right singular vector v of the matrix with
    the two rows x - D_u and x - D_c (the scores, up to a factor): x - D_u' = <x - D_u, v> v. With
    scale 1 the denoiser is called unchanged. `pair` returns (D', D_u), with the undamped D_u.

    Args:
        denoise: The denoiser.
        null: Replacements for the conditions that are removed, as in `classifier_free`.
        scale: Guidance strength; 1 disables guidance.
        interval: Noise levels (low, high] with guidance.
        joined: Evaluate both estimates in one call on a doubled batch.

    Returns:
        The guided denoiser.

    References:
        Kwon et al. (2025), arXiv:2503.18137 (TCFG).
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
