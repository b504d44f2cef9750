"""Features of sequences, fields and volumes with any number of channels."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .arrays import as_floats

_POOLS: dict[int, Any] = {
    1: F.adaptive_avg_pool1d,
    2: F.adaptive_avg_pool2d,
    3: F.adaptive_avg_pool3d,
}
#: Number of pieces along an axis whose means are features, and of bands of the spectrum.
_PIECES = {1: 16, 2: 6, 3: 4}
BANDS = 8


class TensorFeatureExtractor:
    """Features [B, D] of tensors [B, C, ...] without a network: local means and roughness.

    For each channel: the means over a coarse grid (16, 6x6 or 4x4x4 pieces), and the logarithm of
    the power in BANDS equal bands of frequency, up to half the sampling rate along each axis. They
    distinguish fields by level, position and smoothness, not by content; use a custom function for
    that. k-diffusion's own.
    """

    fingerprint = 'tensor 1'

    @torch.no_grad()
    def __call__(self, x: Any) -> Tensor:
        x = as_floats(x, 'x').float()
        dims = x.ndim - 2
        if dims == 0:
            return x
        if dims not in _POOLS:
            raise ValueError(
                'x must be tensors [B, C, ...] with up to 3 spatial axes; got shape '
                f'{list(x.shape)}'
            )
        sides = [min(side, _PIECES[dims]) for side in x.shape[2:]]
        means = _POOLS[dims](x, sides[0] if dims == 1 else sides)
        return torch.cat([means.flatten(1), band_powers(x).flatten(1)], 1)


def band_powers(x: Tensor, bands: int = BANDS) -> Tensor:
    """Return log10 of the mean power in equal bands of frequency, [B, C, bands].

    The mean is excluded.

    Args:
        x: [B, C, ...].
        bands: Number of bands.
    """
    axes = tuple(range(2, x.ndim))
    power = torch.fft.fftn(x, dim=axes, norm='ortho').abs().square().flatten(2)
    grids = torch.meshgrid(*(torch.fft.fftfreq(side) for side in x.shape[2:]), indexing='ij')
    radius = torch.stack(grids).square().sum(0).sqrt().flatten()
    band = (radius * 2 * bands).ceil().long().clamp(
        0, bands
    ) - 1  # (0 is the mean, and what lies in the corners is in the last)
    inside = F.one_hot(band.clamp_min(0), bands).float() * (band >= 0)[:, None]
    counts = inside.sum(0).clamp_min(1)
    return (power @ inside.to(power) / counts.to(power) + 1e-8).log10()
