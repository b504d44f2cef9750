"""Thresholding: keep estimates of images within the range of images."""

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
    """Clamp D to [low, high]; values inside are unchanged to the last bit.

    Args:
        denoise: The denoiser.
        low: The lower bound.
        high: The upper bound.

    Returns:
        The wrapped denoiser.
    """
    if not check_number('low', low, infinite=True) < check_number('high', high, infinite=True):
        raise ValueError(f'low and high must satisfy low < high; got {low} and {high}')
    return _Static(denoise, low, high)


def dynamic_thresholding(
    denoise: DenoiseFn, quantile: float = 0.995, bound: float = 1.0
) -> GuidedFn:
    """Rescale D to the bound by a quantile of its values.

    D' = bound D / s clamped to [-bound, bound], with s the quantile of |D| in each item, at least
    the bound. Strong guidance drives more and more pixels to the ends of the range; this brings all
    of them back. An item with s within the bound is only clamped. Intended for pixels in [-1, 1];
    latents have no such range.

    Args:
        denoise: The denoiser.
        quantile: In (0, 1].
        bound: The largest absolute value, > 0.

    Returns:
        The wrapped denoiser.

    References:
        Saharia et al. (2022), arXiv:2205.11487, section 2.3.
    """
    if not 0 < check_number('quantile', quantile) <= 1 or not check_number('bound', bound) > 0:
        raise ValueError(f'quantile must be in (0, 1] and bound > 0; got {quantile} and {bound}')
    return _Dynamic(denoise, quantile, bound)


class _Thresholded(DenoiserWrapper, ABC):
    @abstractmethod
    def threshold(self, denoised: Tensor) -> Tensor: ...

    def __call__(self, x: Tensor, sigma: Tensor, **cond: Any) -> Tensor:
        return self.threshold(self.denoise(x, sigma, **cond))

    @property
    def pair(self) -> Callable[..., tuple[Tensor, Tensor]]:
        """Return the function for (D', the unchanged unconditional estimate); requires a `pair`."""
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
        # torch.quantile takes at most 2^24 numbers
        sizes = denoised.detach().flatten(1).abs().sort(1).values
        at = self.quantile * (sizes.shape[1] - 1)
        low = int(at)
        s = torch.lerp(sizes[:, low], sizes[:, min(low + 1, sizes.shape[1] - 1)], at - low).clamp(
            min=self.bound
        )
        s = s.view(-1, *[1] * (denoised.ndim - 1))
        return denoised.clamp(-s, s) * (self.bound / s)
