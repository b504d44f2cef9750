"""A plain diffusion transformer: patches, and global attention among them."""

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
from .section import check_above, check_at_least, check_share
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
    """Return the first half of the features times gelu of the second half.

    Args:
        x: [..., 2 D].
    """
    value, gate = x.chunk(2, dim=-1)
    return value * F.gelu(gate)


class GEGLU(nn.Module):
    """The function geglu as a module."""

    def forward(self, x: Tensor) -> Tensor:
        """Return geglu(x).

        Args:
            x: [..., 2 D].
        """
        return geglu(x)


def scaled_dot_product_attention(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0
) -> Tensor:
    """Return attention of q to k and v, by the kernel that torch selects, such as flash attention.

    Args:
        q: Queries, [B, heads, N, D].
        k: Keys, [B, heads, M, D].
        v: Values, [B, heads, M, D].
        attn_mask: Added to the scores, or True for pairs with attention.
        dropout_p: The dropout rate.
    """
    return attend(q, k, v, attn_mask, dropout_p)


class RMSNorm(blocks.RMSNorm):
    """rms_norm with a learned scale.

    Args:
        param_shape: The shape of the scale.
        eps: Added to the mean square.
    """

    def __init__(self, param_shape: int | tuple[int, ...], eps: float = 1e-6) -> None:
        super().__init__(param_shape, eps)


class FeedForwardBlock(blocks.FeedForwardBlock):
    """x + down(dropout(up(norm(x, cond)))), with a gated up and a condition as wide as x.

    Args:
        d_model: The features of x and of the condition.
        d_ff: The features inside.
        dropout: The dropout rate.
    """

    def __init__(self, d_model: int, d_ff: int, dropout: float = 0.0) -> None:
        super().__init__(d_model, d_ff, d_model, dropout=dropout)


class QKNorm(nn.Module):
    """Scales queries or keys for cosine attention, with the logits exp(scale) cos(q, k).

    Their length is (exp(scale) sqrt D)^1/2.

    The learned scale of each head is at most log(max_scale).

    Args:
        n_heads: The number of heads.
        eps: Added to the mean square.
        max_scale: The largest factor of the cosine.

    References:
        Henry et al. (2020), arXiv:2010.04245; the bound is that of Liu et al. (2021),
        arXiv:2111.09883.
    """

    def __init__(self, n_heads: int, eps: float = 1e-6, max_scale: float = 100.0) -> None:
        super().__init__()
        self.eps = eps
        self.max_scale = math.log(max_scale)
        self.scale = nn.Parameter(torch.full((n_heads,), math.log(10.0)))
        self.proj_()

    def proj_(self) -> None:
        """Clamp the parameter to its bound."""
        with torch.no_grad():
            self.scale.clamp_(max=self.max_scale)

    def forward(self, x: Tensor) -> Tensor:
        """Return the scaled vectors, in the shape of x.

        Args:
            x: Queries or keys, [B, heads, N, D].
        """
        # The value is clamped and the gradient is not, so that a scale beyond the bound can return.
        scale = self.scale + (self.scale.clamp(max=self.max_scale) - self.scale).detach()
        return rms_norm(x, ((scale - math.log(x.shape[-1]) / 2) / 2).exp()[:, None, None], self.eps)


class SelfAttentionBlock(nn.Module):
    """x + out(dropout(attention among the tokens of norm(x, cond))).

    Args:
        d_model: The features of x and of the condition.
        d_head: The features of a head.
        dropout: The dropout rate.

    Raises:
        ValueError: If d_head does not divide d_model.
    """

    def __init__(self, d_model: int, d_head: int, dropout: float = 0.0) -> None:
        super().__init__()
        if d_model % d_head:
            raise ValueError(f'd_model must be a multiple of d_head, {d_head}; got {d_model}')
        self.d_head = d_head
        self.n_heads = d_model // d_head
        self.norm = AdaRMSNorm(d_model, d_model)
        self.qkv_proj = apply_wd(nn.Linear(d_model, d_model * 3, bias=False))
        self.qk_norm = QKNorm(self.n_heads)
        self.pos_emb = AxialRoPE(d_head, self.n_heads)
        self.dropout = nn.Dropout(dropout)
        self.out_proj = apply_wd(zero_init(nn.Linear(d_model, d_model, bias=False)))

    def forward(self, x: Tensor, pos: Tensor, cond: Tensor) -> Tensor:
        """Return the tokens, in the shape of x.

        Args:
            x: Tokens, [B, N, d_model].
            pos: Their positions, [N, 2].
            cond: [B, d_model].
        """
        qkv = self.qkv_proj(self.norm(x, cond)).unflatten(-1, (3, self.n_heads, self.d_head))
        q, k, v = qkv.transpose(1, 3).unbind(2)
        q, k = self.pos_emb(self.qk_norm(q), pos), self.pos_emb(self.qk_norm(k), pos)
        y = scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return x + self.out_proj(self.dropout(y))


class TransformerBlock(nn.Module):
    """Attention and a feed-forward block; each is recomputed in backward if checkpointing is on.

    Args:
        d_model: The features.
        d_ff: The features inside the feed-forward block.
        d_head: The features of a head.
        dropout: The dropout rate.
    """

    def __init__(self, d_model: int, d_ff: int, d_head: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.self_attn = SelfAttentionBlock(d_model, d_head, dropout=dropout)
        self.ff = FeedForwardBlock(d_model, d_ff, dropout=dropout)

    def forward(self, x: Tensor, pos: Tensor, cond: Tensor) -> Tensor:
        """Return the tokens, in the shape of x.

        Args:
            x: Tokens, [B, N, d_model].
            pos: Their positions, [N, 2].
            cond: [B, d_model].
        """
        x = checkpoint_helper(self.self_attn, x, pos, cond)
        y: Tensor = checkpoint_helper(self.ff, x, cond)
        return y


class Patching(nn.Module):
    """Cuts an image into patches of a x b pixels: [B, D, H, W] -> tokens [B, H / a W / b, D a b].

    Args:
        features: D.
        patch_size: a and b.
    """

    def __init__(self, features: int, patch_size: Sequence[int]) -> None:
        super().__init__()
        self.patch_size = tuple(patch_size)
        self.d_out = features * math.prod(patch_size)

    def forward(self, x: Tensor) -> Tensor:
        """Return the tokens, [B, H / a W / b, D a b].

        Args:
            x: Images, [B, D, H, W].

        Raises:
            ValueError: If the patches do not divide the sides.
        """
        a, b = self.patch_size
        if x.shape[-2] % a or x.shape[-1] % b:
            raise ValueError(
                f'x must have sides that are multiples of {a} and {b}; got '
                f'{x.shape[-2]}x{x.shape[-1]}: pad, crop or resize it'
            )
        x = x.unflatten(-2, (-1, a)).unflatten(-1, (-1, b))
        return x.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


class Unpatching(nn.Module):
    """The inverse of Patching, for an image of a given size.

    Args:
        features: D.
        patch_size: a and b.
    """

    def __init__(self, features: int, patch_size: Sequence[int]) -> None:
        super().__init__()
        self.patch_size = tuple(patch_size)
        self.d_in = features * math.prod(patch_size)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        """Return the images, [B, D, height, width].

        Args:
            x: Tokens, [B, height / a width / b, D a b].
            height: The height of the images.
            width: The width of the images.
        """
        a, b = self.patch_size
        x = x.unflatten(2, (-1, a, b)).unflatten(1, (height // a, width // b))
        return x.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)


class ImageTransformerDenoiserModelV1(ConditionedTransformer):
    """A transformer F(x, sigma): [B, in_features, H, W] -> [B, out_features, H, W].

    It is k-diffusion's own variant of the diffusion transformer of Peebles & Xie.

    Args:
        n_layers: The number of blocks.
        d_model: The features.
        d_ff: The features inside a feed-forward block.
        in_features: The channels of the input.
        out_features: The channels of the output.
        patch_size: The sides of a patch.
        num_classes: The number of classes, including the null class; 0 for none.
        dropout: The dropout rate.
        sigma_data: Stored for callers.
        flow_map: Take a second noise level, sigma_next.
        guidance_input: Take the guidance scale.

    References:
        Peebles & Xie (2022), arXiv:2212.09748.
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
        """Return F(x, sigma), [B, out_features, H, W].

        Args:
            x: The scaled input, [B, in_features, H, W].
            sigma: The noise levels, [B].
            aug_cond: The augmentation, [B, 9]; none by default.
            class_cond: Classes [B], for a model with classes.
            sigma_next: The second levels of a flow map, [B].
            guidance_scale: The guidance scales of a flow map, [B].

        Raises:
            ValueError: If the input or a condition does not fit the model.
        """
        height, width = x.shape[-2:]
        a, b = self.patch_in.patch_size
        x = self.in_proj(self.patch_in(x))
        pos = make_axial_pos(height // a, width // b, device=x.device)
        cond = self.condition(sigma, aug_cond, class_cond, None, sigma_next, guidance_scale)
        for block in self.blocks:
            x = block(x, pos, cond)
        return self.patch_out(self.out_proj(self.out_norm(x)), height, width)

    def proj_(self) -> ImageTransformerDenoiserModelV1:
        """Clamp the scales of attention, and return the model.

        A trainer calls it after each step.
        """
        for module in self.modules():
            if isinstance(module, QKNorm):
                module.proj_()
        return self

    def hidden_modules(self) -> list[nn.Module]:
        """Return the blocks."""
        return [self.blocks]


def round_to_power_of_two(x: float, tol: float) -> int:
    """Round x to a multiple of the largest power of two that is within a relative tolerance.

    Args:
        x: A positive number.
        tol: The tolerance.
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
        check_at_least(0, d_ff=self.d_ff)
        check_share(dropout_rate=self.dropout_rate)
        if self.width % HEAD_SIZE:
            raise ValueError(
                f'width must be a multiple of {HEAD_SIZE}, the features of an attention head; '
                f'got {self.width}'
            )
        self.d_ff = self.d_ff or round_to_power_of_two(self.width * 8 / 3, tol=0.05)
        self.check_sides()

    def build(self, num_classes: int = 0) -> ImageTransformerDenoiserModelV1:
        """Return the network.

        Args:
            num_classes: The number of classes, including the null class.
        """
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
