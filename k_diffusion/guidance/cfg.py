"""Classifier-free guidance."""
from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.protocols import DenoiseFn, GuidedFn
from ..core.tensors import append_dims


def classifier_free(denoise: DenoiseFn, null: Mapping[str, Tensor | float | int], scale: float,
                    interval: tuple[float, float] = (0., math.inf)) -> GuidedFn:
    """D' = D(x | null) + scale (D(x | cond) - D(x | null)) where sigma lies in (interval[0], interval[1]], else D(x | cond).

    `null` names the conditions that are taken away and what stands in their place, one value for every item (a class
    index, say) or a tensor of one item's shape. Both evaluations are one call on a doubled batch. With scale 1 the denoiser is
    called as it is. Ho & Salimans (2022), arXiv 2207.12598, eq. 6; the interval: Kynkäänniemi et al. (2024), arXiv 2404.07724,
    eq. 5. The result's `pair` gives (D', D(x | null)), as the samplers of CFG++ want it, with the paper's lambda as the scale.
    """
    if not math.isfinite(scale):
        raise ValueError(f'the guidance scale is {scale}; it must be a finite number (1 is no guidance)')
    low, high = interval
    if not 0 <= low < high:
        raise ValueError(f'the guidance interval is {interval}; it must hold two noise levels, the lower one first')
    return _ClassifierFree(denoise, null, scale, interval)


@dataclass(frozen=True)
class _ClassifierFree:
    denoise: DenoiseFn
    null: Mapping[str, Tensor | float | int]
    scale: float
    interval: tuple[float, float]

    def __call__(self, x: Tensor, sigma: Tensor, **cond: Any) -> Tensor:
        return self.denoise(x, sigma, **cond) if self.scale == 1 else self.pair(x, sigma, **cond)[0]

    def pair(self, x: Tensor, sigma: Tensor, **cond: Any) -> tuple[Tensor, Tensor]:
        absent = sorted(self.null.keys() - cond.keys())
        if absent:
            raise ValueError(f'the guided denoiser was called without {absent[0]!r}, which it is to guide towards; pass it as a condition')
        both = {key: torch.cat([_null(self.null[key], value) if key in self.null else value, value]) if isinstance(value, Tensor) else value
                for key, value in cond.items()}
        without, with_ = self.denoise(torch.cat([x, x]), torch.cat([sigma, sigma]), **both).chunk(2)
        low, high = self.interval
        scale, one = (with_.new_full((), value) for value in (self.scale, 1.))
        weight = torch.where((sigma > low) & (sigma <= high), scale, one)
        return torch.lerp(without, with_, append_dims(weight, x.ndim)), without


def _null(value: Tensor | float | int, like: Tensor) -> Tensor:
    return torch.as_tensor(value, dtype=like.dtype, device=like.device).expand_as(like)
