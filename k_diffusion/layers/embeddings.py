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


class MapInputs(nn.Module):
    """What a flow map is given besides the first level: sigma_next [B] and, if asked, the guidance
    scale [B], as features [B, feats].

    The features are linear in Fourier features of the flow time sigma_next / (1 + sigma_next) and
    of log(scale). The linear maps start at zero, so that a network with these inputs starts as the
    one without.
    """

    def __init__(self, feats: int, guidance: bool = False) -> None:
        super().__init__()
        self.level = _zero_start(feats)
        self.scale = _zero_start(feats) if guidance else None

    def forward(
        self, like: Tensor, sigma_next: Tensor | None, guidance_scale: Tensor | None
    ) -> Tensor:
        """Return the features.

        Args:
            like: The first levels [B]; a second level that is None counts as 0 for all of them.
            sigma_next: The second levels.
            guidance_scale: The scales; None counts as 1.

        Raises:
            ValueError: There is a scale and the network was built without that input.
        """
        wide = torch.promote_types(like.dtype, torch.float32)
        level = torch.zeros_like(like, dtype=wide) if sigma_next is None else sigma_next.to(wide)
        found: Tensor = self.level((level / (1 + level))[:, None])
        if self.scale is None:
            if guidance_scale is not None:
                raise ValueError(
                    'guidance_scale must be left out for a network that was built without '
                    'guidance_input; got one'
                )
            return found
        scale = torch.ones_like(level) if guidance_scale is None else guidance_scale.to(wide)
        features: Tensor = self.scale(scale.log()[:, None])
        return found + features


def map_features(
    inputs: MapInputs | None,
    sigma: Tensor,
    sigma_next: Tensor | None,
    guidance_scale: Tensor | None,
) -> Tensor | None:
    """Return the features of the inputs of a flow map [B, feats]; None for a network without them.

    Raises:
        ValueError: One is given to a network without them.
    """
    if inputs is not None:
        found: Tensor = inputs(sigma, sigma_next, guidance_scale)
        return found
    if sigma_next is not None or guidance_scale is not None:
        raise ValueError(
            'sigma_next and guidance_scale must be left out for a network of one noise level; '
            'build it with flow_map'
        )
    return None


def _zero_start(feats: int) -> nn.Sequential:
    """Fourier features of a number and a linear map that starts at zero."""
    linear = nn.Linear(feats, feats, bias=False)
    nn.init.zeros_(linear.weight)
    return nn.Sequential(FourierFeatures(1, feats), linear)
