"""Thresholding: estimates of pictures kept within the range of pictures."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.arguments import check_number
from ..core.protocols import DenoiseFn, GuidedFn
from ..core.wrapping import DenoiserWrapper


def static_thresholding(denoise: DenoiseFn, low: float = -1.0, high: float = 1.0) -> GuidedFn:
    """D' = D clamped to [low, high]. What lies within is left as it is, to the last bit."""
    if not check_number('low', low, infinite=True) < check_number('high', high, infinite=True):
        raise ValueError(
            f'low is {low} and high is {high}; the range must hold two numbers, the lower one first'
        )
    return _Static(denoise, low, high)


def dynamic_thresholding(
    denoise: DenoiseFn, quantile: float = 0.995, bound: float = 1.0
) -> GuidedFn:
    """D' = bound D / s clamped to [-bound, bound], s the quantile of |D| in each item, or the bound
    where s is less.

    Strong guidance drives more and more pixels to the ends of the range; this draws them all back
    in. An item whose s is within the bound is only clamped. For pixels in [-1, 1]; latents have no
    such range. Saharia et al. (2022), arXiv 2205.11487, section 2.3.
    """
    if not 0 < check_number('quantile', quantile) <= 1 or not check_number('bound', bound) > 0:
        raise ValueError(
            f'quantile is {quantile} and bound is {bound}; the quantile must be in (0, 1] and the '
            'bound above 0'
        )
    return _Dynamic(denoise, quantile, bound)


class _Thresholded(DenoiserWrapper, ABC):
    @abstractmethod
    def threshold(self, denoised: Tensor) -> Tensor: ...

    def __call__(self, x: Tensor, sigma: Tensor, **cond: Any) -> Tensor:
        return self.threshold(self.denoise(x, sigma, **cond))

    @property
    def pair(self) -> Callable[..., tuple[Tensor, Tensor]]:
        """(D', the unconditional estimate as it is); only of a denoiser that has a pair."""
        return self._threshold_pair if hasattr(self.denoise, 'pair') else self.__getattr__('pair')

    def _threshold_pair(self, x: Tensor, sigma: Tensor, **cond: Any) -> tuple[Tensor, Tensor]:
        guided, unconditional = self.denoise.pair(x, sigma, **cond)  # type: ignore[attr-defined]
        return self.threshold(guided), unconditional


@dataclass(frozen=True)
class _Static(_Thresholded):
    denoise: DenoiseFn
    low: float
    high: float

    def threshold(self, denoised: Tensor) -> Tensor:
        return denoised.clamp(self.low, self.high)


@dataclass(frozen=True)
class _Dynamic(_Thresholded):
    denoise: DenoiseFn
    quantile: float
    bound: float

    def threshold(self, denoised: Tensor) -> Tensor:
        sizes = (
            denoised.detach().flatten(1).abs().sort(1).values
        )  # torch.quantile takes at most 2^24 numbers
        at = self.quantile * (sizes.shape[1] - 1)
        low = int(at)
        s = torch.lerp(sizes[:, low], sizes[:, min(low + 1, sizes.shape[1] - 1)], at - low).clamp(
            min=self.bound
        )
        s = s.view(-1, *[1] * (denoised.ndim - 1))
        return denoised.clamp(-s, s) * (self.bound / s)
