"""Attention over the pixels of a feature map: among themselves, and to a sequence."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..core.modules import forward_mode
from .conditioning import ConditionedModule, zero_init
from .dimensions import conv
from .pairwise import pairwise_attention, pairwise_pays


class SelfAttention(ConditionedModule):
    """x + out(attention among the pixels of norm(x)), for x [B, C, ...] with `dims` spatial axes.

    Args:
        dims: Number of spatial axes.
        c_in: Number of channels.
        n_head: Number of heads.
        norm: Makes the normalisation from the number of channels.
        dropout_rate: Dropout of the attention weights.
    """

    def __init__(
        self,
        dims: int,
        c_in: int,
        n_head: int,
        norm: Callable[[int], nn.Module],
        dropout_rate: float = 0.0,
    ) -> None:
        super().__init__()
        check_heads(c_in, n_head)
        self.n_head = n_head
        self.norm_in = norm(c_in)
        self.qkv_proj = conv(dims, c_in, c_in * 3, 1)
        self.out_proj = zero_init(conv(dims, c_in, c_in, 1))
        self.dropout = nn.Dropout(dropout_rate)

    def forward(self, input: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        """Return the output, of the shape of input.

        Args:
            input: [B, C, ...].
            cond: The conditions by key.
        """
        qkv = self.qkv_proj(self.norm_in(input, cond))
        q, k, v = (split_heads(tokens(t), self.n_head) for t in qkv.chunk(3, dim=1))
        y = attend(q, k, v, dropout_rate=self.dropout.p if self.training else 0.0)
        return input + self.out_proj(image(join_heads(y), input))


class SelfAttention2d(SelfAttention):
    """SelfAttention over images [B, C, H, W]."""

    def __init__(
        self, c_in: int, n_head: int, norm: Callable[[int], nn.Module], dropout_rate: float = 0.0
    ) -> None:
        super().__init__(2, c_in, n_head, norm, dropout_rate)


class CrossAttention(ConditionedModule):
    """x + out(attention of the pixels of norm(x) to a sequence), for x [B, C, ...].

    The condition holds the sequence [B, N, c_enc] under `cond_key`, and for padded sequences [B, N]
    under `cond_key_padding`, 1 at tokens to ignore.

    Args:
        dims: Number of spatial axes.
        c_dec: Number of channels of x.
        c_enc: Width of the sequence.
        n_head: Number of heads.
        norm_dec: Makes the normalisation of x from the number of channels.
        dropout_rate: Dropout of the attention weights.
        cond_key: The key of the sequence.
        cond_key_padding: The key of its padding.
    """

    def __init__(
        self,
        dims: int,
        c_dec: int,
        c_enc: int,
        n_head: int,
        norm_dec: Callable[[int], nn.Module],
        dropout_rate: float = 0.0,
        cond_key: str = 'cross',
        cond_key_padding: str = 'cross_padding',
    ) -> None:
        super().__init__()
        check_heads(c_dec, n_head)
        self.n_head = n_head
        self.cond_key = cond_key
        self.cond_key_padding = cond_key_padding
        self.norm_enc = nn.LayerNorm(c_enc)
        self.norm_dec = norm_dec(c_dec)
        self.q_proj = conv(dims, c_dec, c_dec, 1)
        self.kv_proj = nn.Linear(c_enc, c_dec * 2)
        self.out_proj = zero_init(conv(dims, c_dec, c_dec, 1))
        self.dropout = nn.Dropout(dropout_rate)

    def forward(self, input: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        """Return the output, of the shape of input.

        Args:
            input: [B, C, ...].
            cond: The conditions by key.
        """
        q = split_heads(tokens(self.q_proj(self.norm_dec(input, cond))), self.n_head)
        kv = self.kv_proj(self.norm_enc(cond[self.cond_key]))
        k, v = (split_heads(t, self.n_head) for t in kv.chunk(2, dim=-1))
        padding = cond.get(self.cond_key_padding)
        # A large finite number: a sequence of padding only gives a mean instead of NaN.
        mask = None if padding is None else padding[:, None, None, :].to(q.dtype) * -10000
        y = attend(q, k, v, mask, dropout_rate=self.dropout.p if self.training else 0.0)
        return input + self.out_proj(image(join_heads(y), input))


class CrossAttention2d(CrossAttention):
    """CrossAttention of images [B, C, H, W]."""

    def __init__(
        self,
        c_dec: int,
        c_enc: int,
        n_head: int,
        norm_dec: Callable[[int], nn.Module],
        dropout_rate: float = 0.0,
        cond_key: str = 'cross',
        cond_key_padding: str = 'cross_padding',
    ) -> None:
        super().__init__(
            2, c_dec, c_enc, n_head, norm_dec, dropout_rate, cond_key, cond_key_padding
        )


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    dropout_rate: float = 0.0,
    scale: float | None = None,
) -> Tensor:
    """Return softmax(q k^T scale + mask) v.

    Args:
        q: [B, heads, N, D].
        k: [B, heads, M, D].
        v: [B, heads, M, D].
        mask: Broadcasts against [B, heads, N, M]; or [W, heads or 1, N, M], where the items of the
            batch take W masks in turn.
        dropout_rate: Dropout of the attention weights.
        scale: 1 / sqrt(D) by default.
    """
    if dropout_rate == 0 and not (mask is not None and mask.requires_grad) and pairwise_pays(q, k):
        return pairwise_attention(q, k, v, mask, q.shape[-1] ** -0.5 if scale is None else scale)
    if mask is not None and mask.ndim == 4 and len(mask) not in (1, len(q)):
        mask = mask.expand(len(q) // len(mask), *mask.shape).flatten(0, 1)
    with sdpa_kernel(SDPBackend.MATH) if forward_mode() else nullcontext():
        return F.scaled_dot_product_attention(q, k, v, mask, dropout_rate, scale=scale)


def check_heads(channels: int, n_head: int) -> None:
    """Raise a ValueError unless the channels are a multiple of the heads.

    Args:
        channels: Number of channels.
        n_head: Number of heads.
    """
    if channels % n_head:
        raise ValueError(
            f'channels must be a multiple of the number of heads, {n_head}; got {channels}'
        )


def tokens(x: Tensor) -> Tensor:
    """Convert [B, C, ...] to [B, N, C] for N pixels; a view, dense in channels_last.

    Args:
        x: A feature map.
    """
    return x.flatten(2).mT


def image(x: Tensor, like: Tensor) -> Tensor:
    """Convert [B, N, C] to [B, C, ...] with the sides of `like`; a view, dense in channels_last.

    Args:
        x: Tokens.
        like: A feature map.
    """
    return x.mT.unflatten(2, like.shape[2:])


def split_heads(x: Tensor, n_head: int) -> Tensor:
    """Convert [B, N, heads D] to [B, heads, N, D].

    Args:
        x: Tokens.
        n_head: Number of heads.
    """
    return x.unflatten(-1, (n_head, -1)).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """Convert [B, heads, N, D] to [B, N, heads D].

    Args:
        x: Tokens by head.
    """
    return x.transpose(1, 2).flatten(2)
