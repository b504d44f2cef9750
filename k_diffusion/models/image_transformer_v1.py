"""A plain diffusion transformer (after Peebles & Xie, 2022, arXiv 2212.09748): patches, and
attention of each to all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.modules import checkpoint as checkpoint_helper
from ..layers.attention import attend
from ..layers.conditioning import zero_init
from . import transformer_blocks as blocks
from .axial_rope import AxialRoPE, make_axial_pos
from .section import check_above, check_share
from .tagging import apply_wd, filter_params, tag_module, tag_param
from .transformer_blocks import (
    AdaRMSNorm,
    ConditionedTransformer,
    MappingFeedForwardBlock,
    MappingNetwork,
    rms_norm,
)
from .transformer_config import TransformerSection

__all__ = [
    'GEGLU',
    'AdaRMSNorm',
    'FeedForwardBlock',
    'ImageTransformerDenoiserModelV1',
    'ImageTransformerV1Config',
    'MappingFeedForwardBlock',
    'MappingNetwork',
    'Patching',
    'QKNorm',
    'RMSNorm',
    'SelfAttentionBlock',
    'TransformerBlock',
    'Unpatching',
    'apply_wd',
    'checkpoint_helper',
    'filter_params',
    'geglu',
    'rms_norm',
    'round_to_power_of_two',
    'scaled_dot_product_attention',
    'tag_module',
    'tag_param',
    'zero_init',
]

HEAD_SIZE = 64  # features of an attention head


def geglu(x: Tensor) -> Tensor:
    """The first half of the features times gelu of the second."""
    value, gate = x.chunk(2, dim=-1)
    return value * F.gelu(gate)


class GEGLU(nn.Module):
    """geglu as a module."""

    def forward(self, x: Tensor) -> Tensor:
        return geglu(x)


def scaled_dot_product_attention(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0
) -> Tensor:
    """Attention of q to k and v, each [B, heads, N, D]; torch picks the kernel, flash attention
    among them.
    """
    return attend(q, k, v, attn_mask, dropout_p)


class RMSNorm(blocks.RMSNorm):
    """rms_norm with a learned scale."""

    def __init__(self, param_shape: int | tuple[int, ...], eps: float = 1e-6) -> None:
        super().__init__(param_shape, eps)


class FeedForwardBlock(blocks.FeedForwardBlock):
    """x + down(dropout(up(norm(x, cond)))); up is gated, the condition as wide as x."""

    def __init__(self, d_model: int, d_ff: int, dropout: float = 0.0) -> None:
        super().__init__(d_model, d_ff, d_model, dropout=dropout)


class QKNorm(nn.Module):
    """x [B, heads, N, D] as vectors of length (exp(scale) sqrt D)^1/2, so that attention has the
    logits exp(scale) cos(q, k).

    The learned scale of each head is held to log(max_scale).
    """

    def __init__(self, n_heads: int, eps: float = 1e-6, max_scale: float = 100.0) -> None:
        super().__init__()
        self.eps = eps
        self.max_scale = math.log(max_scale)
        self.scale = nn.Parameter(torch.full((n_heads,), math.log(10.0)))
        self.proj_()

    def proj_(self) -> None:
        """Brings the parameter itself back to its bound."""
        with torch.no_grad():
            self.scale.clamp_(max=self.max_scale)

    def forward(self, x: Tensor) -> Tensor:
        # The value is bounded and the gradient is not, so that a scale beyond the bound finds its
        # way back.
        scale = self.scale + (self.scale.clamp(max=self.max_scale) - self.scale).detach()
        return rms_norm(x, ((scale - math.log(x.shape[-1]) / 2) / 2).exp()[:, None, None], self.eps)


class SelfAttentionBlock(nn.Module):
    """x + out(dropout(attention among the tokens of norm(x, cond))): x [B, N, d_model] at pos
    [N, 2].
    """

    def __init__(self, d_model: int, d_head: int, dropout: float = 0.0) -> None:
        super().__init__()
        if d_model % d_head:
            raise ValueError(f'd_model is {d_model}; it must be a multiple of d_head, {d_head}')
        self.d_head = d_head
        self.n_heads = d_model // d_head
        self.norm = AdaRMSNorm(d_model, d_model)
        self.qkv_proj = apply_wd(nn.Linear(d_model, d_model * 3, bias=False))
        self.qk_norm = QKNorm(self.n_heads)
        self.pos_emb = AxialRoPE(d_head, self.n_heads)
        self.dropout = nn.Dropout(dropout)
        self.out_proj = apply_wd(zero_init(nn.Linear(d_model, d_model, bias=False)))

    def forward(self, x: Tensor, pos: Tensor, cond: Tensor) -> Tensor:
        qkv = self.qkv_proj(self.norm(x, cond)).unflatten(-1, (3, self.n_heads, self.d_head))
        q, k, v = qkv.transpose(1, 3).unbind(2)
        q, k = self.pos_emb(self.qk_norm(q), pos), self.pos_emb(self.qk_norm(k), pos)
        y = scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return x + self.out_proj(self.dropout(y))


class TransformerBlock(nn.Module):
    """Attention and the feed-forward block; each recomputed in the backward pass under
    checkpointing.
    """

    def __init__(self, d_model: int, d_ff: int, d_head: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.self_attn = SelfAttentionBlock(d_model, d_head, dropout=dropout)
        self.ff = FeedForwardBlock(d_model, d_ff, dropout=dropout)

    def forward(self, x: Tensor, pos: Tensor, cond: Tensor) -> Tensor:
        x = checkpoint_helper(self.self_attn, x, pos, cond)
        y: Tensor = checkpoint_helper(self.ff, x, cond)
        return y


class Patching(nn.Module):
    """[B, features, H, W] -> a token for each patch of a x b pixels, [B, H / a W / b, features a
    b].
    """

    def __init__(self, features: int, patch_size: Sequence[int]) -> None:
        super().__init__()
        self.patch_size = tuple(patch_size)
        self.d_out = features * math.prod(patch_size)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.patch_size
        if x.shape[-2] % a or x.shape[-1] % b:
            raise ValueError(
                f'the input is {x.shape[-2]}x{x.shape[-1]}; this model takes sides that are '
                f'multiples of {a} and {b}: '
                'pad, crop or resize it'
            )
        x = x.unflatten(-2, (-1, a)).unflatten(-1, (-1, b))
        return x.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


class Unpatching(nn.Module):
    """The inverse of Patching, for an image of height x width."""

    def __init__(self, features: int, patch_size: Sequence[int]) -> None:
        super().__init__()
        self.patch_size = tuple(patch_size)
        self.d_in = features * math.prod(patch_size)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        a, b = self.patch_size
        x = x.unflatten(2, (-1, a, b)).unflatten(1, (height // a, width // b))
        return x.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)


class ImageTransformerDenoiserModelV1(ConditionedTransformer):
    """F(x, sigma): [B, in_features, H, W] -> [B, out_features, H, W].

    `num_classes` counts the class that stands for none; with classes class_cond [B] must be given.
    """

    def __init__(
        self,
        n_layers: int,
        d_model: int,
        d_ff: int,
        in_features: int,
        out_features: int,
        patch_size: Sequence[int],
        num_classes: int = 0,
        dropout: float = 0.0,
        sigma_data: float = 1.0,
        flow_map: bool = False,
        guidance_input: bool = False,
    ) -> None:
        super().__init__()
        self.sigma_data = sigma_data
        self.num_classes = num_classes
        self.patch_in = Patching(in_features, patch_size)
        self.patch_out = Unpatching(out_features, patch_size)
        self.make_condition(
            2,
            d_model,
            d_ff,
            dropout,
            num_classes,
            flow_map=flow_map,
            guidance_input=guidance_input,
        )
        self.in_proj = apply_wd(nn.Linear(self.patch_in.d_out, d_model, bias=False))
        self.blocks = nn.ModuleList(
            [TransformerBlock(d_model, d_ff, HEAD_SIZE, dropout=dropout) for _ in range(n_layers)]
        )
        self.out_norm = RMSNorm(d_model)
        self.out_proj = apply_wd(zero_init(nn.Linear(d_model, self.patch_out.d_in, bias=False)))

    def forward(
        self,
        x: Tensor,
        sigma: Tensor,
        aug_cond: Tensor | None = None,
        class_cond: Tensor | None = None,
        sigma_next: Tensor | None = None,
        guidance_scale: Tensor | None = None,
    ) -> Tensor:
        height, width = x.shape[-2:]
        a, b = self.patch_in.patch_size
        x = self.in_proj(self.patch_in(x))
        pos = make_axial_pos(height // a, width // b, device=x.device)
        cond = self.condition(sigma, aug_cond, class_cond, None, sigma_next, guidance_scale)
        for block in self.blocks:
            x = block(x, pos, cond)
        return self.patch_out(self.out_proj(self.out_norm(x)), height, width)

    def proj_(self) -> ImageTransformerDenoiserModelV1:
        """Brings the scales of attention back to their bound, for a trainer to call after a
        step.
        """
        for module in self.modules():
            if isinstance(module, QKNorm):
                module.proj_()
        return self

    def hidden_modules(self) -> list[nn.Module]:
        return [self.blocks]


def round_to_power_of_two(x: float, tol: float) -> int:
    """x rounded to a multiple of the largest power of two that keeps it within the relative
    tolerance.
    """
    for power in range(math.ceil(math.log2(x)), 0, -1):
        multiple = round(x / 2**power) * 2**power
        if abs(x - multiple) <= tol * x:
            return multiple
    return round(x)


@dataclass(kw_only=True)
class ImageTransformerV1Config(TransformerSection):
    """The "model" section of a config for ImageTransformerDenoiserModelV1."""

    type: Literal['image_transformer_v1'] = 'image_transformer_v1'
    depth: int  # layers
    width: int
    d_ff: int = 0  # 0: about 8/3 of the width
    dropout_rate: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_above(0, depth=self.depth, width=self.width)
        check_above(-1, d_ff=self.d_ff)
        check_share(dropout_rate=self.dropout_rate)
        if self.width % HEAD_SIZE:
            raise ValueError(
                f'width is {self.width}; it must be a multiple of {HEAD_SIZE}, the features of an '
                'attention head'
            )
        self.d_ff = self.d_ff or round_to_power_of_two(self.width * 8 / 3, tol=0.05)
        self.check_sides()

    def build(self, num_classes: int = 0) -> ImageTransformerDenoiserModelV1:
        """The network; `num_classes` counts the class that stands for none."""
        return ImageTransformerDenoiserModelV1(
            self.depth,
            self.width,
            self.d_ff,
            self.input_channels,
            self.input_channels,
            self.patch_size,
            num_classes=num_classes,
            dropout=self.dropout_rate,
            sigma_data=self.sigma_data,
            flow_map=self.flow_map,
            guidance_input=self.guidance_input,
        )
