"""Classifier-free guidance."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.arguments import check_number
from ..core.protocols import DenoiseFn, GuidedFn
from .streams import Null, TwoConditions, check_null, check_strength


def classifier_free(
    denoise: DenoiseFn,
    null: Null,
    scale: float,
    interval: tuple[float, float] = (0.0, math.inf),
    rescale: float = 0.0,
    joined: bool = True,
) -> GuidedFn:
    """Guide by conditions: D' = D(x | null) + scale (D(x | cond) - D(x | null)).

    With scale 1, and outside the interval, the denoiser is called unchanged. `pair` of the result
    returns (D', D(x | null)), as samplers of CFG++ need it, with the paper's lambda as the scale.

    Args:
        denoise: The denoiser.
        null: The conditions that are removed, with their replacements: a number for every entry (a
            class index); a tensor of the shape of an item, with or without a leading 1; None (the
            network's own unconditional input); or a tree of these.
        scale: Guidance strength; 1 disables guidance.
        interval: Noise levels (low, high] with guidance.
        rescale: Share, in [0, 1], by which the standard deviation of D(x | cond) is restored in D',
            against washed-out colours.
        joined: Evaluate both estimates in one call on a doubled batch. Conditions that do not fit
            into one batch (numbers, strings, tensors of different lengths) take two calls in any
            case.

    Returns:
        The guided denoiser.

    Raises:
        ValueError: If rescale is outside [0, 1], or scale or interval is invalid.

    References:
        Ho & Salimans (2022), arXiv:2207.12598, eq. 6.
        Kynkäänniemi et al. (2024), arXiv:2404.07724, eq. 5 (interval).
        Lin et al. (2023), arXiv:2305.08891, section 3.4 (rescale).
    """
    check_strength(scale, interval)
    check_null(null)
    if not 0 <= check_number('rescale', rescale) <= 1:
        raise ValueError(f'rescale must be in [0, 1] (0 disables it); got {rescale}')
    return _ClassifierFree(denoise, null, scale, interval, joined, rescale)


@dataclass(frozen=True)
class _ClassifierFree(TwoConditions):
    rescale: float

    def guide(self, x: Tensor, sigma: Tensor, denoised: Tensor, uncond: Tensor) -> Tensor:
        guided = torch.lerp(uncond, denoised, self.scale)
        if self.rescale and x[0].numel() > 1:  # one element has no spread
            spread = _std(guided)
            ratio = torch.where(spread > 0, _std(denoised) / spread.clamp(min=1e-12), 1.0)
            guided = guided * torch.lerp(torch.ones_like(ratio), ratio, self.rescale)
        return guided


def _std(x: Tensor) -> Tensor:
    """Return the standard deviation of each item, [B, 1, ...]."""
    return x.std(dim=list(range(1, x.ndim)), keepdim=True)
