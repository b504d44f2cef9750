"""Attention among few tokens on a CPU, with its gradient, by batched matrix products.

Torch's own attention on a CPU is made for many tokens: it does not keep the attention weights and
computes them again in the backward pass. Among some two hundred tokens the weights are no larger
than the queries, and keeping them saves a third of the time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .fused import derive_again, fusible

MOST_KEYS = 200  # up to this number it is faster, forward and backward


def pairwise_pays(q: Tensor, k: Tensor) -> bool:
    """Return True if pairwise_attention is the faster way to a gradient with respect to q.

    In half precision it would also be less accurate.

    Args:
        q: [B, heads, N, D].
        k: [B, heads, M, D].
    """
    return (
        q.ndim == 4
        and q.shape[:2] == k.shape[:2]
        and k.shape[2] <= MOST_KEYS
        and q.device.type == 'cpu'
        and q.dtype in (torch.float32, torch.float64)
        and fusible()
        and torch.is_grad_enabled()
        and q.requires_grad
        and not torch.is_autocast_enabled('cpu')
    )


def plain_pairwise_attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float
) -> Tensor:
    """Return softmax(q k^T scale + bias) v.

    Args:
        q: [B, heads, N, D].
        k: [B, heads, M, D].
        v: [B, heads, M, D].
        bias: [W, heads or 1, N or 1, M], without gradient. W divides B: the items of a batch take
            the biases in turn.
        scale: Factor of q k^T.
    """
    scores = q @ k.mT * scale
    if bias is not None:
        scores = (scores.unflatten(0, (-1, len(bias))) + bias).flatten(0, 1)
    return scores.softmax(-1) @ v


class PairwiseAttention(torch.autograd.Function):
    """plain_pairwise_attention with its own gradient."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float
    ) -> Tensor:
        flat_q, flat_k, flat_v = (x.flatten(0, 1) for x in (q, k, v))
        shares = torch.baddbmm(q.new_empty(1, 1, 1), flat_q, flat_k.mT, beta=0, alpha=scale)
        if bias is not None:
            shares.view(-1, len(bias), *q.shape[1:3], k.shape[2]).add_(bias)
        torch.softmax(shares, -1, out=shares)
        ctx.save_for_backward(q, k, v, bias, shares)
        ctx.scale = scale
        return torch.bmm(shares, flat_v).view(*q.shape[:3], v.shape[3])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, bias, shares = ctx.saved_tensors
        if torch.is_grad_enabled():
            return derive_again(plain_pairwise_attention, (q, k, v, bias, ctx.scale), (grad,))
        flat_q, flat_k, flat_v, flat_grad = (x.flatten(0, 1) for x in (q, k, v, grad))
        d_q, d_k, d_v = _gradients(flat_q, flat_k, flat_v, shares, flat_grad, ctx.scale)
        return d_q.view(q.shape), d_k.view(k.shape), d_v.view(v.shape), None, None


def _gradients(
    q: Tensor, k: Tensor, v: Tensor, shares: Tensor, grad: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients with respect to q, k and v from the attention weights."""
    d_scores = torch.bmm(grad, v.mT)
    torch.ops.aten._softmax_backward_data(d_scores, shares, -1, shares.dtype, grad_input=d_scores)
    nothing = q.new_empty(1, 1, 1)
    return (
        torch.baddbmm(nothing, d_scores, k, beta=0, alpha=scale),
        torch.baddbmm(nothing, d_scores.mT, q, beta=0, alpha=scale),
        torch.bmm(shares.mT, grad),
    )


def pairwise_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float
) -> Tensor:
    """Return plain_pairwise_attention with a mask.

    Args:
        q: [B, heads, N, D].
        k: [B, heads, M, D].
        v: [B, heads, M, D].
        mask: Of up to four axes: True where a query may attend to a key, or a bias.
        scale: Factor of q k^T.
    """
    if mask is not None and mask.dtype == torch.bool:
        mask = q.new_zeros(mask.shape).masked_fill_(~mask, -torch.inf)
    bias = None if mask is None else mask.view(*[1] * (4 - mask.ndim), *mask.shape)
    y: Tensor = PairwiseAttention.apply(q, k, v, bias, scale)
    return y
