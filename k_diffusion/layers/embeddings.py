"""Numbers as features."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class FourierFeatures(nn.Module):
    """[..., in_features] -> [..., out_features]: cosines and sines of random frequencies, cat(cos,
    sin)(2 pi W x).

    W [out_features / 2, in_features] ~ N(0, std^2) is drawn once and kept (Tancik et al., 2020,
    arXiv 2006.10739). The angles are computed in the input's dtype, float32 say, also under
    autocast, and the features given in W's.
    """

    weight: Tensor

    def __init__(self, in_features: int, out_features: int, std: float = 1.0) -> None:
        super().__init__()
        if out_features % 2:
            raise ValueError(
                f'out_features is {out_features}; it must be even: half cosines, half sines'
            )
        self.register_buffer('weight', torch.randn(out_features // 2, in_features) * std)

    def forward(self, input: Tensor) -> Tensor:
        angle = 2 * math.pi * (input[..., None, :] * self.weight.to(input.dtype)).sum(-1)
        return torch.cat([angle.cos(), angle.sin()], dim=-1).to(self.weight.dtype)
