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
    """D' = D(x | null) + scale (D(x | cond) - D(x | null)) where sigma lies in (interval[0],
    interval[1]], else D(x | cond).

    `null` names the conditions that are taken away and what stands in their place: one number for
    every entry (a class index), a tensor of one item's shape with or without a leading 1, None (the
    network's own unconditional), or a tree of these. Both evaluations are one call on a doubled
    batch; two calls with `joined` False and for conditions that one batch cannot hold (numbers,
    strings, tensors of different lengths). With scale 1 the denoiser is called as it is. `rescale`
    in [0, 1] is the share by which D' is given the standard deviation of D(x | cond) back, against
    washed-out colours.

    Ho & Salimans (2022), arXiv 2207.12598, eq. 6; the interval: Kynkäänniemi et al. (2024), arXiv
    2404.07724, eq. 5; rescaling: Lin et al. (2023), arXiv 2305.08891, section 3.4. The result's
    `pair` gives (D', D(x | null)), as the samplers of CFG++ want it, with the paper's lambda as the
    scale.
    """
    check_strength(scale, interval)
    check_null(null)
    if not 0 <= check_number('rescale', rescale) <= 1:
        raise ValueError(f'rescale is {rescale}; it must be a share from 0 (none) to 1')
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
    """The standard deviation of each item, [B, 1, ...]."""
    return x.std(dim=list(range(1, x.ndim)), keepdim=True)
