"""Layers that neither grow nor shrink what passes through them, as long as they are untrained: unit
variance in, unit variance out.

Karras et al. (2024), Analyzing and Improving the Training Dynamics of Diffusion Models, arXiv
2312.02696; equations are numbered as there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def normalize(x: Tensor, dim: int | Sequence[int] | None = None, eps: float = 1e-4) -> Tensor:
    """x over its root mean square along `dim` (all axes but the first where none is given),
    computed in float32 at least.
    """
    axes = list(range(1, x.ndim)) if dim is None else [dim] if isinstance(dim, int) else list(dim)
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return (wide / (wide.square().mean(axes, keepdim=True).sqrt() + eps)).to(x.dtype)


# Equation 81
def mp_silu(x: Tensor) -> Tensor:
    """silu over its root mean square for a unit Gaussian."""
    return F.silu(x) / 0.596


# Equation 88
def mp_sum(a: Tensor, b: Tensor, t: float = 0.5) -> Tensor:
    """a and b mixed in the shares 1 - t and t."""
    return a.lerp(b, t) / math.hypot(1 - t, t)


# Equation 103
def mp_cat(a: Tensor, b: Tensor, t: float = 0.5) -> Tensor:
    """a and b side by side (axis 1), weighing 1 - t and t whatever the numbers of their
    channels.
    """
    n_a, n_b = a.shape[1], b.shape[1]
    scale = math.sqrt((n_a + n_b) / ((1 - t) ** 2 + t**2))
    return torch.cat(
        [a * (scale * (1 - t) / math.sqrt(n_a)), b * (scale * t / math.sqrt(n_b))], dim=1
    )


# Equation 75
class MPFourier(nn.Module):
    """[B] -> [B, features]: sqrt(2) cos(2 pi (f x + p)) with frequencies f ~ N(0, 1) and phases
    p ~ U(0, 1), drawn once.
    """

    freqs: Tensor
    phases: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer('freqs', torch.randn(features))
        self.register_buffer('phases', torch.rand(features))

    def forward(self, x: Tensor) -> Tensor:
        angle = x[:, None] * self.freqs.to(x.dtype) + self.phases.to(x.dtype)
        return ((2 * math.pi * angle).cos() * math.sqrt(2)).to(self.freqs.dtype)


# Equations 47 and 66
class MPConv(nn.Module):
    """A convolution (a linear map without a kernel) without a bias, each of whose output features
    has a weight vector of unit length.

    The weight is normalised at each forward pass, so that its own length has no effect; `proj_`
    brings the parameter itself back to it after a step of the optimizer, which keeps the size of
    the steps, relative to the weights, under the learning rate's control.
    """

    def __init__(self, c_in: int, c_out: int, kernel: int | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(
            torch.randn(c_out, c_in, *[kernel] * 2) if kernel else torch.randn(c_out, c_in)
        )
        self.proj_()

    def forward(self, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        fan_in = math.prod(self.weight.shape[1:])
        weight = (normalize(self.weight) * (gain / math.sqrt(fan_in))).to(x.dtype)
        return (
            F.linear(x, weight)
            if weight.ndim == 2
            else F.conv2d(x, weight, padding=weight.shape[-1] // 2)
        )

    @torch.no_grad()
    def proj_(self) -> None:
        """Brings the parameter to unit variance in each output feature."""
        self.weight.copy_(normalize(self.weight))

    def extra_repr(self) -> str:
        return f'{list(self.weight.shape)}'
