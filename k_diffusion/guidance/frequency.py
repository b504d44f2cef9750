"""Frequency-decoupled guidance: a separate strength for each band of a Laplacian pyramid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.arguments import show_value
from ..core.protocols import DenoiseFn, GuidedFn
from .streams import Null, TwoConditions, check_null, check_strength


def frequency_decoupled(
    denoise: DenoiseFn,
    null: Null,
    scales: Sequence[float],
    interval: tuple[float, float] = (0.0, math.inf),
    joined: bool = True,
) -> GuidedFn:
    """Guide frequency bands: D' = D_u + the sum of w_k times band k of D_c - D_u.

    The bands are those of a Laplacian pyramid over the last two dimensions (height and width); they
    sum to D_c - D_u. Other dimensions, such as frames, are treated alike. Equal scales are
    classifier-free guidance. A low strength of the coarse band keeps colours and composition
    varied; a high strength of the fine band sharpens details: (10, 5) for SDXL in the paper. With
    all scales 1 the denoiser is called unchanged. `pair` returns (D', D_u).

    Args:
        denoise: The denoiser.
        null: Replacements for the conditions that are removed, as in `classifier_free`.
        scales: A strength for each band, the finest first; any number of bands.
        interval: Noise levels (low, high] with guidance.
        joined: Evaluate both estimates in one call on a doubled batch.

    Returns:
        The guided denoiser.

    Raises:
        ValueError: If scales is not a sequence of numbers.

    References:
        Sadat et al. (2025), arXiv:2506.19713 (FDG).
        Burt & Adelson (1983), doi:10.1109/TCOM.1983.1095851 (the pyramid, with its 5-tap filter).
    """
    if isinstance(scales, (str, bytes)) or not isinstance(scales, Sequence) or not scales:
        raise ValueError(
            'scales must be a strength for each band, the finest first, such as (10., 5.); got '
            f'{show_value(scales)}'
        )
    for scale in scales:
        check_strength(scale, interval)
    check_null(null)
    return _FrequencyDecoupled(denoise, null, tuple(scales), interval, joined)


@dataclass(frozen=True)
class _FrequencyDecoupled(TwoConditions):
    scale: tuple[float, ...]  # type: ignore[assignment]

    def does_nothing(self) -> bool:
        return all(scale == 1 for scale in self.scale)

    def guide(self, x: Tensor, sigma: Tensor, denoised: Tensor, uncond: Tensor) -> Tensor:
        if x.ndim < 3:
            raise ValueError(
                'frequency_decoupled: x must have a height and a width, [B, ..., H, W]; got '
                f'shape {list(x.shape)}'
            )
        push = (denoised - uncond).reshape(-1, 1, *x.shape[-2:])
        return uncond + _weigh_bands(push, self.scale).view_as(x)


def _weigh_bands(images: Tensor, scales: Sequence[float]) -> Tensor:
    """Multiply the bands of images [N, 1, H, W] by their scales, the finest first, and add them."""
    if len(scales) == 1:
        return images * scales[0]
    size = images.shape[2:]
    coarse = F.interpolate(_blur(images), ((size[0] + 1) // 2, (size[1] + 1) // 2), mode='bilinear')
    fine = images - _enlarge(coarse, size)
    return fine * scales[0] + _enlarge(_weigh_bands(coarse, scales[1:]), size)


def _enlarge(images: Tensor, size: Sequence[int]) -> Tensor:
    """Enlarge images to a size and filter them."""
    return _blur(F.interpolate(images, tuple(size), mode='bilinear'))


def _blur(images: Tensor) -> Tensor:
    """Filter images with (1, 4, 6, 4, 1) / 16 along both axes; the border is repeated."""
    taps = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0], dtype=images.dtype, device=images.device) / 16
    padded = F.pad(images, (2, 2, 2, 2), mode='replicate')
    return F.conv2d(F.conv2d(padded, taps.view(1, 1, 5, 1)), taps.view(1, 1, 1, 5))
