"""The blocks of image_v1: residual convolutions and attention, in levels down and up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..core.modules import checkpoint
from ..layers.attention import CrossAttention, SelfAttention
from ..layers.conditioning import (
    AdaGN,
    ConditionedModule,
    ConditionedResidualBlock,
    ConditionedSequential,
    zero_init,
)
from ..layers.dimensions import channel_dropout, conv
from ..layers.resampling import Downsample, Upsample
from .levels import GROUP_SIZE, HEAD_SIZE, n_groups


def orthogonal_(module: Any) -> Any:
    """Set the weight of a module to an orthogonal matrix, and return the module.

    Args:
        module: The module.
    """
    nn.init.orthogonal_(module.weight)
    return module


class ResConvBlock(ConditionedResidualBlock):
    """A residual block of two convolutions of width 3: [B, c_in, ...] -> [B, c_out, ...].

    Each comes after an AdaGN and a GELU.

    Args:
        feats_in: The features of the condition.
        c_in: The channels of the input.
        c_mid: The channels between the convolutions.
        c_out: The channels of the output.
        group_size: The channels of a normalisation group, about.
        dropout_rate: The dropout rate.
        dims: The number of spatial axes.

    References:
        He et al. (2016), arXiv:1603.05027 (activations before the convolutions).
    """

    def __init__(
        self,
        feats_in: int,
        c_in: int,
        c_mid: int,
        c_out: int,
        group_size: int = GROUP_SIZE,
        dropout_rate: float = 0.0,
        dims: int = 2,
    ) -> None:
        super().__init__(
            AdaGN(feats_in, c_in, n_groups(c_in, group_size)),
            nn.GELU(),
            conv(dims, c_in, c_mid, 3, padding=1),
            channel_dropout(dims, dropout_rate),
            AdaGN(feats_in, c_mid, n_groups(c_mid, group_size)),
            nn.GELU(),
            zero_init(conv(dims, c_mid, c_out, 3, padding=1)),
            channel_dropout(dims, dropout_rate),
            skip=None if c_in == c_out else orthogonal_(conv(dims, c_in, c_out, 1, bias=False)),
        )


def block_layers(
    n_layers: int,
    feats_in: int,
    c_in: int,
    c_mid: int,
    c_out: int,
    group_size: int,
    head_size: int,
    dropout_rate: float,
    self_attn: bool,
    cross_attn: bool,
    c_enc: int,
    dims: int = 2,
) -> list[nn.Module]:
    """Return residual blocks with attention: c_in -> c_mid -> ... -> c_mid -> c_out channels.

    Args:
        n_layers: The number of residual blocks.
        feats_in: The features of the condition.
        c_in: The channels of the input.
        c_mid: The channels between the blocks.
        c_out: The channels of the output.
        group_size: The channels of a normalisation group, about.
        head_size: The channels of an attention head, about.
        dropout_rate: The dropout rate.
        self_attn: Add self-attention to each block.
        cross_attn: Add cross-attention to each block.
        c_enc: The features of the tokens for cross-attention.
        dims: The number of spatial axes.
    """

    def norm(channels: int) -> AdaGN:
        return AdaGN(feats_in, channels, n_groups(channels, group_size))

    layers: list[nn.Module] = []
    for i in range(n_layers):
        c = c_mid if i < n_layers - 1 else c_out
        layers.append(
            ResConvBlock(
                feats_in, c_in if i == 0 else c_mid, c_mid, c, group_size, dropout_rate, dims
            )
        )
        if self_attn:
            layers.append(SelfAttention(dims, c, n_groups(c, head_size), norm, dropout_rate))
        if cross_attn:
            layers.append(
                CrossAttention(dims, c, c_enc, n_groups(c, head_size), norm, dropout_rate)
            )
    return layers


class UNetLevel(ConditionedSequential):
    """Layers in sequence, of which checkpointing recomputes the conditioned ones."""

    def forward(  # type: ignore[override]  # Sequential takes one
        self, input: Tensor, cond: Mapping[str, Tensor]
    ) -> Tensor:
        """Run the layers.

        Args:
            input: [B, C, ...].
            cond: The condition.
        """
        for layer in self:
            input = (
                checkpoint(layer, input, cond)
                if isinstance(layer, ConditionedModule)
                else layer(input)
            )
        return input


class DBlock(UNetLevel):
    """A level on the way down: halve the sides, if asked for, then the layers.

    Args:
        n_layers: The number of residual blocks.
        feats_in: The features of the condition.
        c_in: The channels of the input.
        c_mid: The channels between the blocks.
        c_out: The channels of the output.
        group_size: The channels of a normalisation group, about.
        head_size: The channels of an attention head, about.
        dropout_rate: The dropout rate.
        downsample: Halve the sides.
        self_attn: Add self-attention to each block.
        cross_attn: Add cross-attention to each block.
        c_enc: The features of the tokens for cross-attention.
        dims: The number of spatial axes.
    """

    def __init__(
        self,
        n_layers: int,
        feats_in: int,
        c_in: int,
        c_mid: int,
        c_out: int,
        group_size: int = GROUP_SIZE,
        head_size: int = HEAD_SIZE,
        dropout_rate: float = 0.0,
        downsample: bool = False,
        self_attn: bool = False,
        cross_attn: bool = False,
        c_enc: int = 0,
        dims: int = 2,
    ) -> None:
        super().__init__(
            nn.Identity(),
            *block_layers(
                n_layers,
                feats_in,
                c_in,
                c_mid,
                c_out,
                group_size,
                head_size,
                dropout_rate,
                self_attn,
                cross_attn,
                c_enc,
                dims,
            ),
        )
        self.dims = dims
        self.set_downsample(downsample)

    def set_downsample(self, downsample: bool) -> DBlock:
        """Set whether the level halves the sides, and return it.

        Args:
            downsample: Halve the sides.
        """
        self[0] = Downsample(self.dims) if downsample else nn.Identity()
        return self


class UBlock(UNetLevel):
    """A level on the way up: the skip connection, the layers, then double the sides, if asked for.

    Args:
        n_layers: The number of residual blocks.
        feats_in: The features of the condition.
        c_in: The channels of the input.
        c_mid: The channels between the blocks.
        c_out: The channels of the output.
        group_size: The channels of a normalisation group, about.
        head_size: The channels of an attention head, about.
        dropout_rate: The dropout rate.
        upsample: Double the sides.
        self_attn: Add self-attention to each block.
        cross_attn: Add cross-attention to each block.
        c_enc: The features of the tokens for cross-attention.
        dims: The number of spatial axes.
    """

    def __init__(
        self,
        n_layers: int,
        feats_in: int,
        c_in: int,
        c_mid: int,
        c_out: int,
        group_size: int = GROUP_SIZE,
        head_size: int = HEAD_SIZE,
        dropout_rate: float = 0.0,
        upsample: bool = False,
        self_attn: bool = False,
        cross_attn: bool = False,
        c_enc: int = 0,
        dims: int = 2,
    ) -> None:
        super().__init__(
            *block_layers(
                n_layers,
                feats_in,
                c_in,
                c_mid,
                c_out,
                group_size,
                head_size,
                dropout_rate,
                self_attn,
                cross_attn,
                c_enc,
                dims,
            ),
            nn.Identity(),
        )
        self.dims = dims
        self.set_upsample(upsample)

    def forward(  # type: ignore[override]  # Sequential takes one
        self,
        input: Tensor,
        cond: Mapping[str, Tensor],
        skip: Tensor | None = None,
    ) -> Tensor:
        """Run the level.

        Args:
            input: [B, C, ...].
            cond: The condition.
            skip: The output of the level on the way down, concatenated to the input.
        """
        return super().forward(input if skip is None else torch.cat([input, skip], dim=1), cond)

    def set_upsample(self, upsample: bool) -> UBlock:
        """Set whether the level doubles the sides, and return it.

        Args:
            upsample: Double the sides.
        """
        self[-1] = Upsample(self.dims) if upsample else nn.Identity()
        return self


class MappingNet(nn.Sequential):
    """The small network for the condition: linear maps and GELUs.

    Args:
        feats_in: The features of the input.
        feats_out: The features of the output.
        n_layers: The number of linear maps.
    """

    def __init__(self, feats_in: int, feats_out: int, n_layers: int = 2) -> None:
        layers: list[nn.Module] = []
        for i in range(n_layers):
            layers += [
                orthogonal_(nn.Linear(feats_in if i == 0 else feats_out, feats_out)),
                nn.GELU(),
            ]
        super().__init__(*layers)
