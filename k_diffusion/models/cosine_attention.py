"""Cosine-similarity self-attention with rotary positions: global, neighbourhood or windowed."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from ..layers.attention import attend
from ..layers.conditioning import zero_init
from ..layers.fused import rotated_cosines
from ..layers.neighborhood import check_kernel_size
from ..layers.neighborhood_backends import attend_nearby, choose_backend
from . import flags, flops
from .tagging import apply_wd
from .transformer_blocks import AdaRMSNorm
from .windows import rearrange, shifted_mask, window_order


@flags.compile_wrap
def scale_for_cosine_sim(q: Tensor, k: Tensor, scale: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Scale q and k [..., D] to length sqrt(scale), so that q . k is scale cos(q, k).

    Args:
        q: Queries.
        k: Keys.
        scale: Broadcasts against [..., 1].
        eps: Added to the squared length.
    """
    dtype = torch.promote_types(torch.promote_types(q.dtype, scale.dtype), torch.float32)
    root = scale.to(dtype).sqrt()

    def scaled(x: Tensor) -> Tensor:
        wide = x.to(dtype)
        return (wide * (torch.rsqrt(wide.square().sum(dim=-1, keepdim=True) + eps) * root)).to(
            x.dtype
        )

    return scaled(q), scaled(k)


def scale_for_cosine_sim_qkv(qkv: Tensor, scale: Tensor, eps: float) -> Tensor:
    """Apply scale_for_cosine_sim to the q and k of qkv [..., 3, heads, D].

    Args:
        qkv: Queries, keys and values.
        scale: [heads].
        eps: Added to the squared length.
    """
    q, k, v = qkv.unbind(-3)
    return torch.stack([*scale_for_cosine_sim(q, k, scale[:, None], eps), v], dim=-3)


def _rotate(x: Tensor, theta: Tensor, conj: bool) -> tuple[Tensor, Tensor]:
    """Rotate the first n and the next n features of x by the angles theta [..., n].

    The result is in float32 at least.
    """
    wide = torch.promote_types(x.dtype, torch.promote_types(theta.dtype, torch.float32))
    n = theta.shape[-1]
    a, b = x[..., :n].to(wide), x[..., n : 2 * n].to(wide)
    cos, sin = theta.cos(), -theta.sin() if conj else theta.sin()
    return a * cos - b * sin, b * cos + a * sin


def apply_rotary_emb(x: Tensor, theta: Tensor, conj: bool = False) -> Tensor:
    """Rotate the features i and n + i of x by the angle i; features from 2 n on are unchanged.

    Args:
        x: [..., D].
        theta: Angles, [..., n].
        conj: Rotate backwards.
    """
    a, b = _rotate(x, theta, conj)
    return torch.cat([a.to(x.dtype), b.to(x.dtype), x[..., 2 * theta.shape[-1] :]], dim=-1)


class ApplyRotaryEmbeddingInplace(torch.autograd.Function):
    """apply_rotary_emb that overwrites x.

    It takes less memory, for programs without forward-mode gradients, vmap or compile.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, theta: Tensor, conj: bool) -> Tensor:
        ctx.mark_dirty(x)
        ctx.save_for_backward(theta)
        ctx.conj = conj
        n = theta.shape[-1]
        x[..., :n], x[..., n : 2 * n] = _rotate(x, theta, conj)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (theta,) = ctx.saved_tensors
        return apply_rotary_emb(grad, theta, not ctx.conj), None, None


def apply_rotary_emb_(x: Tensor, theta: Tensor) -> Tensor:
    """Apply apply_rotary_emb in place.

    Args:
        x: [..., D].
        theta: Angles, [..., n], which get no gradient.
    """
    out: Tensor = ApplyRotaryEmbeddingInplace.apply(x, theta, False)
    return out


class AxialRoPE(nn.Module):
    """The angles of positions: pos [..., dims] -> [..., n_heads, n], an equal share for each axis.

    n is dim / 2, or the largest multiple of dims below it. The frequencies are fixed, from pi to 10
    pi, evenly spaced in the logarithm over all heads.

    Args:
        dim: The rotated features per head.
        n_heads: The number of heads.
        dims: The number of axes.

    References:
        Su et al. (2021), arXiv:2104.09864; axial: Crowson et al. (2024), arXiv:2401.11605.
    """

    freqs: Tensor

    def __init__(self, dim: int, n_heads: int, dims: int = 2) -> None:
        super().__init__()
        each = dim // 2 // dims
        freqs = torch.linspace(math.log(math.pi), math.log(10 * math.pi), n_heads * each + 1)[
            :-1
        ].exp()
        self.register_buffer('freqs', freqs.view(each, n_heads).mT.contiguous())

    def forward(self, pos: Tensor) -> Tensor:
        """Return the angles, [..., n_heads, n].

        Args:
            pos: Positions, [..., dims].
        """
        freqs = self.freqs.to(pos.dtype)
        return torch.cat([place[..., None, :] * freqs for place in pos.split(1, dim=-1)], dim=-1)


class CosineAttentionBlock(nn.Module, ABC):
    """x + out(dropout(attention of norm(x, cond))), for x [B, ..., d_model] at pos [..., dims].

    Args:
        d_model: The features.
        d_head: The features of a head.
        cond_features: The features of the condition.
        dropout: The dropout rate.
        dims: The number of axes.
    """

    def __init__(
        self, d_model: int, d_head: int, cond_features: int, dropout: float = 0.0, dims: int = 2
    ) -> None:
        super().__init__()
        check_heads(d_model, d_head, dims)
        self.d_head = d_head
        self.n_heads = d_model // d_head
        self.norm = AdaRMSNorm(d_model, cond_features)
        self.qkv_proj = apply_wd(nn.Linear(d_model, d_model * 3, bias=False))
        self.scale = nn.Parameter(torch.full([self.n_heads], 10.0))
        self.pos_emb = AxialRoPE(d_head // 2, self.n_heads, dims)
        self.dropout = nn.Dropout(dropout)
        self.out_proj = apply_wd(zero_init(nn.Linear(d_model, d_model, bias=False)))

    def forward(self, x: Tensor, pos: Tensor, cond: Tensor) -> Tensor:
        """Return the tokens, in the shape of x.

        Args:
            x: The tokens, [B, ..., d_model].
            pos: Their positions, [..., dims].
            cond: [B, cond_features].
        """
        return x + self.out_proj(self.dropout(self.attend(self.norm(x, cond), pos)))

    def project(self, x: Tensor, pos: Tensor) -> tuple[Tensor, ...]:
        """Project x [B, N, d_model] to q, k, v [B, heads, N, d_head], for attention of scale 1.

        Args:
            x: The tokens.
            pos: [N, dims], or [W, N, dims] if the items of the batch are at W positions in turn.
        """
        qkv = self.qkv_proj(x).unflatten(-1, (3, self.n_heads, self.d_head))
        theta = self.pos_emb(pos)
        return rotated_cosines(qkv, self.scale, theta if theta.ndim == 4 else theta[None])

    @abstractmethod
    def attend(self, x: Tensor, pos: Tensor) -> Tensor:
        """Return the attention among tokens, in their shape.

        Args:
            x: The tokens, [B, ..., d_model].
            pos: Their positions, [..., dims].
        """


class SelfAttentionBlock(CosineAttentionBlock):
    """Global attention."""

    def attend(self, x: Tensor, pos: Tensor) -> Tensor:
        """Return the attention among tokens, in their shape.

        Args:
            x: The tokens, [B, ..., d_model].
            pos: Their positions, [..., dims].
        """
        q, k, v = self.project(x.flatten(1, -2), pos.flatten(0, -2))
        return attend(q, k, v, scale=1.0).transpose(1, 2).reshape(x.shape)


class NeighborhoodSelfAttentionBlock(CosineAttentionBlock):
    """Attention of each token to the nearest kernel_size tokens along each axis.

    Args:
        d_model: The features.
        d_head: The features of a head.
        cond_features: The features of the condition.
        kernel_size: The side of the neighbourhood.
        dropout: The dropout rate.
        backend: One of choose_backend's.
        dims: The number of axes.

    References:
        Hassani et al. (2022), arXiv:2204.07143.
    """

    def __init__(
        self,
        d_model: int,
        d_head: int,
        cond_features: int,
        kernel_size: int,
        dropout: float = 0.0,
        backend: str = 'auto',
        dims: int = 2,
    ) -> None:
        super().__init__(d_model, d_head, cond_features, dropout=dropout, dims=dims)
        check_kernel_size(kernel_size)
        self.kernel_size = kernel_size
        self.backend = choose_backend(backend, kernel_size, d_head, dims)

    def attend(self, x: Tensor, pos: Tensor) -> Tensor:
        """Return the attention among tokens, in their shape.

        Args:
            x: The tokens, [B, ..., d_model].
            pos: Their positions, [..., dims].
        """
        q, k, v = (
            y.transpose(1, 2).unflatten(1, x.shape[1:-1])
            for y in self.project(x.flatten(1, -2), pos.flatten(0, -2))
        )
        if self.backend != 'tiles' and q.is_cuda:
            flops.op(flops.op_natten, q, k, v, self.kernel_size)
        return attend_nearby(self.backend, q, k, v, self.kernel_size, scale=1.0).flatten(-2)


class ShiftedWindowSelfAttentionBlock(CosineAttentionBlock):
    """Attention within windows, on a shifted grid.

    Args:
        d_model: The features.
        d_head: The features of a head.
        cond_features: The features of the condition.
        window_size: The side of a window.
        window_shift: The shift of the grid along each axis.
        dropout: The dropout rate.
        dims: The number of axes.

    References:
        Liu et al. (2021), arXiv:2103.14030.
    """

    def __init__(
        self,
        d_model: int,
        d_head: int,
        cond_features: int,
        window_size: int,
        window_shift: int,
        dropout: float = 0.0,
        dims: int = 2,
    ) -> None:
        super().__init__(d_model, d_head, cond_features, dropout=dropout, dims=dims)
        self.window_size = window_size
        self.window_shift = window_shift

    def attend(self, x: Tensor, pos: Tensor) -> Tensor:
        """Return the attention among tokens, in their shape.

        Args:
            x: The tokens, [B, ..., d_model].
            pos: Their positions, [..., dims].
        """
        sides, dims = x.shape[1:-1], pos.shape[-1]
        tokens = self.window_size**dims
        order, back = window_order(sides, self.window_size, self.window_shift, x.device)
        # Cut before the projection: it copies x once, instead of q, k and v.
        windows = rearrange(x.flatten(1, -2), order, back)
        q, k, v = self.project(
            windows.view(-1, tokens, x.shape[-1]), pos.flatten(0, -2)[order].view(-1, tokens, dims)
        )
        mask = shifted_mask(
            [side // self.window_size for side in sides],
            self.window_size,
            self.window_shift,
            q.device,
        )
        y = attend(q, k, v, mask, scale=1.0)
        return rearrange(y.transpose(1, 2).reshape(windows.shape), back, order).view(x.shape)


def check_heads(width: int, d_head: int, dims: int = 2) -> None:
    """Check that heads divide a width, and that rotary positions can be shared among the axes.

    Args:
        width: The features.
        d_head: The features of a head.
        dims: The number of axes.

    Raises:
        ValueError: If not.
    """
    if 0 < d_head < 4 * dims:
        raise ValueError(
            f'd_head must be at least {4 * dims} for the positions of {dims} axes; got {d_head}'
        )
    if d_head < 1 or d_head % 8 or width % d_head:
        raise ValueError(
            f'd_head must be a multiple of 8 that divides the width, {width}; got {d_head}'
        )


def use_flash_2(x: Tensor) -> bool:
    """Return whether attention of a tensor may use flash attention: in half precision on CUDA.

    Args:
        x: A tensor.
    """
    return (
        flags.get_use_flash_attention_2()
        and x.is_cuda
        and x.dtype in (torch.float16, torch.bfloat16)
    )
