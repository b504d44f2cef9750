"""Move training data by guidance, so that a network learns the guided denoiser.

    D' = D(x | cond) + (w - 1) (D(x | cond) - D(x | null))

A network that learns the mean of x_0 + (w - 1) (D(x | cond) - D(x | null)) at x = x_0 + sigma n
learns D'. It costs two calls of the guiding denoiser, which is the teacher or the network itself.

References:
    Ho & Salimans (2022), arXiv:2207.12598, equation 6; Geng et al. (2025), arXiv:2505.13447
    (training towards the guided velocity, so that a sample takes no second call).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..core.conditions import join_trees, replace_by_null
from ..core.protocols import DenoiseFn
from ..core.tensors import append_dims


@torch.no_grad()
def guide_data(
    denoise: DenoiseFn,
    data: Tensor,
    noise: Tensor,
    sigma: Tensor,
    cond: Mapping[str, Any],
    null: Mapping[str, Any],
    scale: Tensor,
    interval: tuple[float, float] | None = None,
) -> Tensor:
    """Return data [B, ...] moved by the guidance at data + sigma noise.

    Args:
        denoise: The denoiser that guides, without guidance of its own.
        data: Clean data, [B, ...].
        noise: [B, ...].
        sigma: Levels, [B].
        cond: The conditions.
        null: The values that stand for no condition, by name.
        scale: w, [B]; 1 leaves the data unchanged.
        interval: The levels (low, high] with guidance; None for all.
    """
    low, high = interval or (0.0, math.inf)
    acts = (sigma > low) & (sigma <= high) & (scale != 1)
    x = data + append_dims(sigma, data.ndim) * noise
    without = {
        key: replace_by_null(key, null[key], value, len(x)) if key in null else value
        for key, value in cond.items()
    }
    both = join_trees([dict(cond), without], len(x))
    conditional, free = denoise(torch.cat([x, x]), torch.cat([sigma, sigma]), **both).chunk(2)
    strength = torch.where(acts, scale - 1, torch.zeros_like(scale)).to(data)
    return data + append_dims(strength, x.ndim) * (conditional - free)
