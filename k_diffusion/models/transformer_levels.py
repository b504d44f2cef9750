"""The levels of the hourglass transformer: their configs, their layers, merging and splitting."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..core.modules import checkpoint
from ..layers.neighborhood import check_kernel_size
from ..layers.neighborhood_backends import check_backend
from .cosine_attention import (
    NeighborhoodSelfAttentionBlock,
    SelfAttentionBlock,
    ShiftedWindowSelfAttentionBlock,
    check_heads,
)
from .tagging import apply_wd
from .transformer_blocks import FeedForwardBlock
from .windows import from_patches, to_patches


class TransformerLayer(nn.Module):
    """Attention, if any, and the feed-forward block, each recomputed under checkpointing.

    Args:
        self_attn: The attention, or None.
        ff: The feed-forward block.
    """

    def __init__(self, self_attn: nn.Module | None, ff: nn.Module) -> None:
        super().__init__()
        self.self_attn = self_attn
        self.ff = ff

    def forward(self, x: Tensor, pos: Tensor, cond: Tensor) -> Tensor:
        """Return the tokens, in the shape of x.

        Args:
            x: Tokens, [B, ..., D].
            pos: Their positions, [..., dims].
            cond: [B, cond_features].
        """
        if self.self_attn is not None:
            x = checkpoint(self.self_attn, x, pos, cond)
        y: Tensor = checkpoint(self.ff, x, cond)
        return y


class GlobalTransformerLayer(TransformerLayer):
    """A layer with global attention."""

    def __init__(
        self,
        d_model: int,
        d_ff: int,
        d_head: int,
        cond_features: int,
        dropout: float = 0.0,
        dims: int = 2,
    ) -> None:
        super().__init__(
            SelfAttentionBlock(d_model, d_head, cond_features, dropout=dropout, dims=dims),
            FeedForwardBlock(d_model, d_ff, cond_features, dropout=dropout),
        )


class NeighborhoodTransformerLayer(TransformerLayer):
    """A layer with attention to the kernel_size x kernel_size neighbourhood."""

    def __init__(
        self,
        d_model: int,
        d_ff: int,
        d_head: int,
        cond_features: int,
        kernel_size: int,
        dropout: float = 0.0,
        backend: str = 'auto',
        dims: int = 2,
    ) -> None:
        super().__init__(
            NeighborhoodSelfAttentionBlock(
                d_model,
                d_head,
                cond_features,
                kernel_size,
                dropout=dropout,
                backend=backend,
                dims=dims,
            ),
            FeedForwardBlock(d_model, d_ff, cond_features, dropout=dropout),
        )


class ShiftedWindowTransformerLayer(TransformerLayer):
    """A layer with attention within windows, which odd layers shift by half a window."""

    def __init__(
        self,
        d_model: int,
        d_ff: int,
        d_head: int,
        cond_features: int,
        window_size: int,
        index: int,
        dropout: float = 0.0,
        dims: int = 2,
    ) -> None:
        shift = window_size // 2 if index % 2 else 0
        super().__init__(
            ShiftedWindowSelfAttentionBlock(
                d_model, d_head, cond_features, window_size, shift, dropout=dropout, dims=dims
            ),
            FeedForwardBlock(d_model, d_ff, cond_features, dropout=dropout),
        )


class NoAttentionTransformerLayer(TransformerLayer):
    """A layer without attention."""

    def __init__(self, d_model: int, d_ff: int, cond_features: int, dropout: float = 0.0) -> None:
        super().__init__(None, FeedForwardBlock(d_model, d_ff, cond_features, dropout=dropout))


@dataclass
class GlobalAttentionSpec:
    """Global attention."""

    d_head: int

    def layer(
        self, level: LevelSpec, cond_features: int, index: int, dims: int = 2
    ) -> TransformerLayer:
        """Return the layer.

        Args:
            level: The level.
            cond_features: The features of the condition.
            index: The number of the layer in its level.
            dims: The number of axes.
        """
        return GlobalTransformerLayer(
            level.width, level.d_ff, self.d_head, cond_features, dropout=level.dropout, dims=dims
        )

    def check(self, width: int, sides: Sequence[int]) -> None:
        """Raise ValueError if the attention does not fit a level.

        Args:
            width: The features of the level.
            sides: The sides of its grid of tokens.
        """
        check_heads(width, self.d_head, len(sides))


@dataclass
class NeighborhoodAttentionSpec:
    """Attention to the kernel_size x kernel_size neighbourhood.

    Attributes:
        backend: auto, tiles, natten or flex.
    """

    d_head: int
    kernel_size: int
    backend: str = 'auto'

    def layer(
        self, level: LevelSpec, cond_features: int, index: int, dims: int = 2
    ) -> TransformerLayer:
        """Return the layer.

        Args:
            level: The level.
            cond_features: The features of the condition.
            index: The number of the layer in its level.
            dims: The number of axes.
        """
        return NeighborhoodTransformerLayer(
            level.width,
            level.d_ff,
            self.d_head,
            cond_features,
            self.kernel_size,
            dropout=level.dropout,
            backend=self.backend,
            dims=dims,
        )

    def check(self, width: int, sides: Sequence[int]) -> None:
        """Raise ValueError if the attention does not fit a level.

        Args:
            width: The features of the level.
            sides: The sides of its grid of tokens.
        """
        check_heads(width, self.d_head, len(sides))
        check_kernel_size(self.kernel_size, *sides)
        check_backend(self.backend, len(sides))


@dataclass
class ShiftedWindowAttentionSpec:
    """Attention within windows of window_size x window_size."""

    d_head: int
    window_size: int

    def layer(
        self, level: LevelSpec, cond_features: int, index: int, dims: int = 2
    ) -> TransformerLayer:
        """Return the layer.

        Args:
            level: The level.
            cond_features: The features of the condition.
            index: The number of the layer in its level.
            dims: The number of axes.
        """
        return ShiftedWindowTransformerLayer(
            level.width,
            level.d_ff,
            self.d_head,
            cond_features,
            self.window_size,
            index,
            dropout=level.dropout,
            dims=dims,
        )

    def check(self, width: int, sides: Sequence[int]) -> None:
        """Raise ValueError if the attention does not fit a level.

        Args:
            width: The features of the level.
            sides: The sides of its grid of tokens.
        """
        check_heads(width, self.d_head, len(sides))
        if self.window_size < 1 or any(side % self.window_size for side in sides):
            raise ValueError(
                f'window_size must divide the sides of its level, {"x".join(map(str, sides))} '
                f'tokens; got {self.window_size}'
            )


@dataclass
class NoAttentionSpec:
    """No attention."""

    def layer(
        self, level: LevelSpec, cond_features: int, index: int, dims: int = 2
    ) -> TransformerLayer:
        """Return the layer.

        Args:
            level: The level.
            cond_features: The features of the condition.
            index: The number of the layer in its level.
            dims: The number of axes.
        """
        return NoAttentionTransformerLayer(
            level.width, level.d_ff, cond_features, dropout=level.dropout
        )

    def check(self, width: int, sides: Sequence[int]) -> None:
        """Accept every level.

        Args:
            width: Not used.
            sides: Not used.
        """
        pass


AttentionSpec = (
    GlobalAttentionSpec | NeighborhoodAttentionSpec | ShiftedWindowAttentionSpec | NoAttentionSpec
)


@dataclass
class LevelSpec:
    """A level of the network.

    Attributes:
        depth: The number of layers in each direction, down and up.
        width: The features.
        d_ff: The hidden features of feed-forward blocks.
        self_attn: The attention.
        dropout: The dropout rate.
    """

    depth: int
    width: int
    d_ff: int
    self_attn: AttentionSpec
    dropout: float

    def layers(self, cond_features: int, dims: int = 2, first: int = 0) -> Level:
        """Return the layers of one direction.

        Args:
            cond_features: The features of the condition.
            dims: The number of axes.
            first: The number of the first layer.
        """
        return Level(
            [self.self_attn.layer(self, cond_features, first + i, dims) for i in range(self.depth)]
        )


@dataclass
class MappingSpec:
    """The mapping network: its blocks, features and hidden features."""

    depth: int
    width: int
    d_ff: int
    dropout: float


class Level(nn.ModuleList):
    """Layers in sequence: x [B, ..., D] at pos [..., dims], cond [B, F]."""

    def forward(self, x: Tensor, pos: Tensor, cond: Tensor) -> Tensor:
        """Return the tokens, in the shape of x.

        Args:
            x: Tokens, [B, ..., D].
            pos: Their positions, [..., dims].
            cond: [B, cond_features].
        """
        for layer in self:
            x = layer(x, pos, cond)
        return x


class TokenMerge(nn.Module):
    """Merge patches of tokens: [..., H, W, in_features] -> [..., H / a, W / b, out_features].

    Args:
        in_features: The features of a token.
        out_features: The features of a merged token.
        patch_size: The sides of a patch, for any number of axes.
    """

    def __init__(
        self, in_features: int, out_features: int, patch_size: Sequence[int] = (2, 2)
    ) -> None:
        super().__init__()
        self.patch_size = tuple(patch_size)
        self.proj = apply_wd(
            nn.Linear(in_features * math.prod(patch_size), out_features, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the merged tokens.

        Args:
            x: [..., H, W, in_features].
        """
        return self.proj(to_patches(x, self.patch_size).flatten(-1 - len(self.patch_size)))


class TokenSplitWithoutSkip(nn.Module):
    """Split tokens into patches: [..., H, W, in_features] -> [..., a H, b W, out_features].

    Args:
        in_features: The features of a token.
        out_features: The features of its parts.
        patch_size: The sides of a patch, for any number of axes.
    """

    def __init__(
        self, in_features: int, out_features: int, patch_size: Sequence[int] = (2, 2)
    ) -> None:
        super().__init__()
        self.patch_size = tuple(patch_size)
        self.proj = apply_wd(
            nn.Linear(in_features, out_features * math.prod(patch_size), bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the parts of the tokens.

        Args:
            x: [..., H, W, in_features].
        """
        return from_patches(
            self.proj(x).unflatten(-1, (*self.patch_size, -1)), len(self.patch_size)
        )


class TokenSplit(nn.Module):
    """Split tokens into patches, interpolated with the skip: skip + fac (split - skip).

    Args:
        in_features: The features of a token.
        out_features: The features of its parts.
        patch_size: The sides of a patch, for any number of axes.
    """

    def __init__(
        self, in_features: int, out_features: int, patch_size: Sequence[int] = (2, 2)
    ) -> None:
        super().__init__()
        self.patch_size = tuple(patch_size)
        self.fac = nn.Parameter(torch.full([1], 0.5))
        self.proj = apply_wd(
            nn.Linear(in_features, out_features * math.prod(patch_size), bias=False)
        )

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Return the parts of the tokens, interpolated with the skip connection.

        Args:
            x: [..., H, W, in_features].
            skip: [..., a H, b W, out_features].
        """
        x = from_patches(self.proj(x).unflatten(-1, (*self.patch_size, -1)), len(self.patch_size))
        return torch.lerp(skip, x, self.fac.to(x.dtype))


def downscale_pos(pos: Tensor) -> Tensor:
    """Return the positions of tokens merged by twos: [H, W, 2] -> [H / 2, W / 2, 2].

    Args:
        pos: The positions, for any number of axes [..., dims].
    """
    dims = pos.shape[-1]
    return to_patches(pos, (2,) * dims).mean(dim=tuple(range(-1 - dims, -1)))
