"""Encode numbers as features."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class FourierFeatures(nn.Module):
    """Random Fourier features: cat(cos, sin)(2 pi W x), [..., in_features] -> [..., out_features].

    W [out_features / 2, in_features] ~ N(0, std^2) is drawn once and stored. The angles are
    computed in the dtype of the input, also under autocast, and the features are returned in that
    of W.

    Args:
        in_features: The numbers per item.
        out_features: The features, an even number.
        std: The standard deviation of the frequencies.

    Raises:
        ValueError: If out_features is odd.

    References:
        Tancik et al. (2020), arXiv:2006.10739.
    """

    weight: Tensor

    def __init__(self, in_features: int, out_features: int, std: float = 1.0) -> None:
        super().__init__()
        if out_features % 2:
            raise ValueError(
                f'out_features must be even, half cosines and half sines; got {out_features}'
            )
        self.register_buffer('weight', torch.randn(out_features // 2, in_features) * std)

    def forward(self, input: Tensor) -> Tensor:
        """Return the features.

        Args:
            input: [..., in_features].
        """
        angle = 2 * math.pi * (input[..., None, :] * self.weight.to(input.dtype)).sum(-1)
        return torch.cat([angle.cos(), angle.sin()], dim=-1).to(self.weight.dtype)


class MapInputs(nn.Module):
    """The inputs of a flow map besides the first level, as features [B, feats].

    They are the second level sigma_next [B] and, if asked for, the guidance scale [B]. The features
    are linear in Fourier features of the flow time sigma_next / (1 + sigma_next) and of log(scale).
    The linear maps start at zero, so that a network with these inputs starts as the one without.

    Args:
        feats: The number of features.
        guidance: Take the guidance scale.
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
            like: The first levels [B], which give the shape and the dtype.
            sigma_next: The second levels, [B]; None counts as 0.
            guidance_scale: The scales, [B]; None counts as 1.

        Raises:
            ValueError: If there is a scale and the network was built without that input.
        """
        wide = torch.promote_types(like.dtype, torch.float32)
        level = torch.zeros_like(like, dtype=wide) if sigma_next is None else sigma_next.to(wide)
        features: Tensor = self.level((level / (1 + level))[:, None])
        if self.scale is None:
            if guidance_scale is not None:
                raise ValueError(
                    'guidance_scale must be left out for a network that was built without '
                    'guidance_input; got one'
                )
            return features
        scale = torch.ones_like(level) if guidance_scale is None else guidance_scale.to(wide)
        return features + self.scale(scale.log()[:, None])


def map_features(
    inputs: MapInputs | None,
    sigma: Tensor,
    sigma_next: Tensor | None,
    guidance_scale: Tensor | None,
) -> Tensor | None:
    """Return the features of the inputs of a flow map, [B, feats]; None for a network without them.

    Args:
        inputs: The module of the network, or None.
        sigma: The first levels, [B].
        sigma_next: The second levels, [B].
        guidance_scale: The scales, [B].

    Raises:
        ValueError: If inputs is None and sigma_next or guidance_scale is not.
    """
    if inputs is not None:
        features: Tensor = inputs(sigma, sigma_next, guidance_scale)
        return features
    if sigma_next is not None or guidance_scale is not None:
        raise ValueError(
            'sigma_next and guidance_scale must be left out for a network of one noise level; '
            'build it with flow_map'
        )
    return None


def _zero_start(feats: int) -> nn.Sequential:
    """Return Fourier features of a number, and a linear map of them that starts at zero."""
    linear = nn.Linear(feats, feats, bias=False)
    nn.init.zeros_(linear.weight)
    return nn.Sequential(FourierFeatures(1, feats), linear)
