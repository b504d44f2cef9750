"""Data that stand for a guided model's, so that guidance becomes a part of what is learned.

Ho & Salimans 2022, "Classifier-free diffusion guidance", arXiv:2207.12598:
    eq. 6    D' = D(x | cond) + (w - 1) (D(x | cond) - D(x | null))
Geng et al. 2025, "Mean flows for one-step generative modeling", arXiv:2505.13447:
    training towards the guided velocity, so that a sample takes no second call

A network that learns the mean of x_0 + (w - 1) (D(x | cond) - D(x | null)) at x = x_0 + sigma n
learns D'. It costs two calls of the guiding denoiser, which is the teacher or the network itself.
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
    """Return data [B, ...] moved by the guidance at data + sigma noise (eq. 6).

    Args:
        denoise: The denoiser that guides, without guidance of its own.
        data: Clean data, [B, ...].
        noise: [B, ...].
        sigma: Levels, [B].
        cond: The conditions.
        null: What stands for no condition, by name.
        scale: w, [B]; 1 moves nothing.
        interval: The levels (low, high] that guidance acts at; None for all.
    """
    low, high = interval or (0.0, math.inf)
    acts = (sigma > low) & (sigma <= high) & (scale != 1)
    x = data + append_dims(sigma, data.ndim) * noise
    without = {
        key: replace_by_null(key, null[key], value, len(x)) if key in null else value
        for key, value in cond.items()
    }
    both = join_trees([dict(cond), without], len(x))
    given, free = denoise(torch.cat([x, x]), torch.cat([sigma, sigma]), **both).chunk(2)
    strength = torch.where(acts, scale - 1, torch.zeros_like(scale)).to(data)
    return data + append_dims(strength, x.ndim) * (given - free)
