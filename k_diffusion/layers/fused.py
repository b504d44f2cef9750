"""Element-wise parts of a transformer as single functions with their own gradients.

They need fewer passes over memory than autograd. Each has a plain twin that defines the result. The
twin is used where the function is not supported: in forward-mode differentiation, vmap and
torch.func, in a compiled network (the compiler fuses by itself), and for second derivatives.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.modules import forward_mode


def fusible() -> bool:
    """Return True if only reverse-mode differentiation is active."""
    return not (
        torch.compiler.is_compiling()
        or forward_mode()
        or torch._C._are_functorch_transforms_active()
    )


def wide(dtype: torch.dtype, *others: torch.dtype) -> torch.dtype:
    """Return float32, or the widest of these dtypes.

    Args:
        dtype: A dtype.
        *others: Further dtypes.
    """
    for other in (torch.float32, *others):
        dtype = torch.promote_types(dtype, other)
    return dtype


def derive_again(
    plain: Callable[..., Any], inputs: tuple[Any, ...], grads: tuple[Tensor, ...]
) -> tuple[Tensor | None, ...]:
    """Return the gradients of the plain twin with a graph, for second derivatives.

    Args:
        plain: The twin.
        inputs: Its arguments.
        grads: The gradients of its outputs.
    """
    with torch.enable_grad():
        variables = [x for x in inputs if isinstance(x, Tensor) and x.requires_grad]
        gradients = iter(
            torch.autograd.grad(
                plain(*inputs), variables, grads, create_graph=True, allow_unused=True
            )
        )
    return tuple(
        next(gradients) if isinstance(x, Tensor) and x.requires_grad else None for x in inputs
    )


def plain_rms_norm(x: Tensor, scale: Tensor, eps: float) -> Tensor:
    """Return scale x / sqrt(mean x^2 + eps) over the last axis, computed in at least float32.

    Args:
        x: The input.
        scale: Broadcasts against x.
        eps: Added to the mean square.
    """
    y = x.to(wide(x.dtype))
    return (y * (torch.rsqrt(y.square().mean(dim=-1, keepdim=True) + eps) * scale)).to(x.dtype)


class ScaledRMSNorm(torch.autograd.Function):
    """plain_rms_norm of x [B, N, D] with a scale [B, D], or [1, D] for the whole batch."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, eps: float) -> Tensor:
        y = x.to(wide(x.dtype))
        size = torch.linalg.vector_norm(y, dim=-1, keepdim=True)
        inverse = torch.rsqrt(size.square_().div_(x.shape[-1]).add_(eps))
        ctx.save_for_backward(x, scale, inverse)
        ctx.eps = eps
        return (y * inverse).mul_(scale[:, None]).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, inverse = ctx.saved_tensors
        if torch.is_grad_enabled():
            return derive_again(
                lambda x, scale, eps: plain_rms_norm(x, scale[:, None], eps),
                (x, scale, ctx.eps),
                (grad,),
            )
        y, g, s = x.to(inverse.dtype), grad.to(inverse.dtype), scale.to(inverse.dtype)
        product = g * y
        dot = product @ s.expand(len(x), -1)[:, :, None]
        d_scale = (inverse.mT @ product)[:, 0].sum_to_size(scale.shape).to(scale.dtype)
        d_x = (
            torch.mul(g, s[:, None], out=product)
            .mul_(inverse)
            .addcmul_(y, dot.mul_(inverse.pow(3)), value=-1 / x.shape[-1])
        )
        return d_x.to(x.dtype), d_scale, None


def scaled_rms_norm(x: Tensor, scale: Tensor, eps: float) -> Tensor:
    """Divide by the root mean square along the last axis, and multiply by a scale.

    Args:
        x: [B, ..., D].
        scale: [B, D] or [1, D].
        eps: Added to the mean square.
    """
    if not fusible():
        return plain_rms_norm(x, scale.view(len(scale), *[1] * (x.ndim - 2), -1), eps)
    y: Tensor = ScaledRMSNorm.apply(x.flatten(1, -2), scale, eps)
    return y.view(x.shape)


def plain_linear_geglu(x: Tensor, weight: Tensor) -> Tensor:
    """Return value * gelu(gate), where a linear map gives value and gate, in this order.

    Args:
        x: [..., D].
        weight: [2 F, D].

    References:
        Shazeer (2020), arXiv:2002.05202.
    """
    # Two products with half the weight each: the halves of one product would be strided, and slow
    # to process.
    w_value, w_gate = weight.chunk(2)
    return F.linear(x, w_value) * F.gelu(F.linear(x, w_gate))


class LinearGEGLU(torch.autograd.Function):
    """plain_linear_geglu of x [N, D] and weight [2 F, D]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        w_value, w_gate = weight.chunk(2)
        value, gate = x @ w_value.mT, x @ w_gate.mT
        activation = F.gelu(gate)
        ctx.save_for_backward(x, weight, value, gate, activation)
        return value * activation

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, value, gate, activation = ctx.saved_tensors
        if torch.is_grad_enabled():
            return derive_again(plain_linear_geglu, (x, weight), (grad,))
        w_value, w_gate = weight.chunk(2)
        d_value, d_gate = grad * activation, grad * value
        torch.ops.aten.gelu_backward(d_gate, gate, grad_input=d_gate)
        d_x = (d_value @ w_value).addmm_(d_gate, w_gate) if ctx.needs_input_grad[0] else None
        d_weight = torch.empty_like(weight)
        for part, d in zip(d_weight.chunk(2), (d_value, d_gate)):
            torch.mm(d.mT, x, out=part)
        return d_x, d_weight


def linear_geglu(x: Tensor, weight: Tensor) -> Tensor:
    """plain_linear_geglu of x [..., D] and weight [2 F, D]."""
    if not fusible():
        return plain_linear_geglu(x, weight)
    if (
        x.device.type != 'meta'
        and x.dtype != torch.float64
        and torch.is_autocast_enabled(x.device.type)
    ):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight = x.to(dtype), weight.to(dtype)
    y: Tensor = LinearGEGLU.apply(x.flatten(0, -2), weight)
    return y.view(*x.shape[:-1], -1)


def plain_rotated_cosines(
    qkv: Tensor, scale: Tensor, theta: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return q and k as rotated unit vectors times sqrt(scale), and v unchanged.

    The features i and n + i are rotated by the angle i of theta.

    Args:
        qkv: [B, N, 3, heads, D].
        scale: [heads].
        theta: [W, N, heads, n] with 2 n <= D. W divides B: the items of a batch take the angles in
            turn.
        eps: Added to squared lengths.

    Returns:
        Three tensors [B, heads, N, D].
    """
    dtype = wide(qkv.dtype, scale.dtype, theta.dtype)
    q, k, v = qkv.unbind(2)
    n = theta.shape[-1]
    cos, sin, root = theta.cos(), theta.sin(), scale.to(dtype).sqrt()[:, None]

    def rotate(x: Tensor) -> Tensor:
        y = x.to(dtype).unflatten(0, (-1, len(theta)))
        y = y * (torch.rsqrt(y.square().sum(dim=-1, keepdim=True) + eps) * root)
        a, b = y[..., :n], y[..., n : 2 * n]
        return (
            torch.cat([a * cos - b * sin, b * cos + a * sin, y[..., 2 * n :]], dim=-1)
            .flatten(0, 1)
            .to(x.dtype)
        )

    return rotate(q).transpose(1, 2), rotate(k).transpose(1, 2), v.transpose(1, 2)


class RotatedCosines(torch.autograd.Function):
    """plain_rotated_cosines; theta takes no gradient."""

    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, scale: Tensor, theta: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        batch, n_tokens, _, heads, d = qkv.shape
        dtype = wide(qkv.dtype, scale.dtype, theta.dtype)
        both = qkv[:, :, :2].permute(2, 0, 3, 1, 4)
        inverse = torch.rsqrt(
            torch.linalg.vector_norm(both, dim=-1, keepdim=True, dtype=dtype).square_().add_(eps)
        )
        cos, sin = (t.to(dtype).transpose(1, 2).contiguous() for t in (theta.cos(), theta.sin()))
        out = qkv.new_empty(3, batch, heads, n_tokens, d)
        exact = out[:2] if out.dtype == dtype else out.new_empty(out[:2].shape, dtype=dtype)
        size, n = inverse * scale.to(dtype).sqrt()[:, None, None], 2 * theta.shape[-1]
        turn(both[..., :n] * size, exact[..., :n], cos, sin)
        torch.mul(both[..., n:], size, out=exact[..., n:])
        if exact.dtype != out.dtype:
            out[:2].copy_(exact)
        out[2].copy_(qkv[:, :, 2].transpose(1, 2))
        ctx.save_for_backward(qkv, scale, theta, inverse, cos, sin)
        ctx.eps = eps
        return out[0], out[1], out[2]

    @staticmethod
    def backward(ctx: Any, d_q: Tensor, d_k: Tensor, d_v: Tensor) -> tuple[Tensor | None, ...]:
        qkv, scale, theta, inverse, cos, sin = ctx.saved_tensors
        if torch.is_grad_enabled():
            return derive_again(
                plain_rotated_cosines, (qkv, scale, theta, ctx.eps), (d_q, d_k, d_v)
            )
        dtype, n = inverse.dtype, 2 * theta.shape[-1]
        both = qkv[:, :, :2].permute(2, 0, 3, 1, 4)
        g = torch.empty_like(both, dtype=dtype, memory_format=torch.contiguous_format)
        for into, d in zip(g.split(1), (d_q, d_k)):
            turn(d[None, ..., :n], into[..., :n], cos, -sin)
            into[..., n:].copy_(d[None, ..., n:])
        root = scale.to(dtype).sqrt()[:, None, None]
        dot = (g * both).sum(-1, keepdim=True).mul_(inverse)
        d_scale = (dot.sum((0, 1, 3, 4)) / (2 * root[:, 0, 0])).to(scale.dtype)
        g.mul_(inverse * root).addcmul_(both, dot.mul_(inverse.square()).mul_(root), value=-1)
        d_qkv = torch.empty_like(qkv, memory_format=torch.contiguous_format)
        d_qkv[:, :, :2].permute(2, 0, 3, 1, 4).copy_(g)
        d_qkv[:, :, 2].transpose(1, 2).copy_(d_v)
        return d_qkv, d_scale, None, None


def turn(x: Tensor, out: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Rotate the features i and n + i of x by angles, and write the result to out.

    Args:
        x: [S, B, heads, N, 2 n].
        out: Like x.
        cos: Cosines of the angles, [W, heads, N, n].
        sin: Sines of the angles.
    """
    (a, b), (out_a, out_b) = (t.unflatten(1, (-1, len(cos))).chunk(2, dim=-1) for t in (x, out))
    torch.mul(a, cos, out=out_a).addcmul_(b, sin, value=-1)
    torch.mul(b, cos, out=out_b).addcmul_(a, sin)


def rotated_cosines(
    qkv: Tensor, scale: Tensor, theta: Tensor, eps: float = 1e-6
) -> tuple[Tensor, Tensor, Tensor]:
    """Return q and k for attention by cosine similarity with rotary positions, and v.

    All are [B, heads, N, D]; the scale of the attention is then 1.

    Args:
        qkv: [B, N, 3, heads, D].
        scale: [heads].
        theta: [W, N, heads, n], without gradient; item b of the batch takes theta[b % W].
        eps: Added to squared lengths.
    """
    if not fusible():
        return plain_rotated_cosines(qkv, scale, theta, eps)
    q, k, v = RotatedCosines.apply(qkv, scale, theta, eps)
    return q, k, v
