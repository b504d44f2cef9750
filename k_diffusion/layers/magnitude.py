"""Magnitude-preserving layers: unit variance in, unit variance out, while untrained.

References:
    Karras et al. (2024), "Analyzing and Improving the Training Dynamics of Diffusion Models",
        arXiv:2312.02696; the equation numbers are those of the paper.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def normalize(x: Tensor, dim: int | Sequence[int] | None = None, eps: float = 1e-4) -> Tensor:
    """Divide x by its root mean square along `dim`, computed in at least float32.

    Args:
        x: The input.
        dim: The axes; by default all but the first.
        eps: Added to the root mean square.
    """
    if dim is None:
        axes = list(range(1, x.ndim))
    else:
        axes = [dim] if isinstance(dim, int) else list(dim)
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return (wide / (wide.square().mean(axes, keepdim=True).sqrt() + eps)).to(x.dtype)


# Equation 81
def mp_silu(x: Tensor) -> Tensor:
    """Return silu divided by its root mean square for a unit Gaussian.

    Args:
        x: The input.
    """
    return F.silu(x) / 0.596


# Equation 88
def mp_sum(a: Tensor, b: Tensor, t: float = 0.5) -> Tensor:
    """Mix a and b with the shares 1 - t and t, and keep the magnitude of uncorrelated inputs.

    Args:
        a: A tensor.
        b: A tensor like a.
        t: The share of b.
    """
    return a.lerp(b, t) / math.hypot(1 - t, t)


# Equation 103
def mp_cat(a: Tensor, b: Tensor, t: float = 0.5) -> Tensor:
    """Concatenate a and b along axis 1 with weights 1 - t and t, for any numbers of channels.

    Args:
        a: A tensor.
        b: Another tensor.
        t: The weight of b.
    """
    n_a, n_b = a.shape[1], b.shape[1]
    scale = math.sqrt((n_a + n_b) / ((1 - t) ** 2 + t**2))
    return torch.cat(
        [a * (scale * (1 - t) / math.sqrt(n_a)), b * (scale * t / math.sqrt(n_b))], dim=1
    )


# Equation 75
class MPFourier(nn.Module):
    """Fourier features [B] -> [B, features]: sqrt(2) cos(2 pi (f x + p)).

    The frequencies f ~ N(0, 1) and phases p ~ U(0, 1) are drawn once.

    Args:
        features: Number of features.
    """

    freqs: Tensor
    phases: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer('freqs', torch.randn(features))
        self.register_buffer('phases', torch.rand(features))

    def forward(self, x: Tensor) -> Tensor:
        """Return the features [B, features] of numbers x [B]."""
        angle = x[:, None] * self.freqs.to(x.dtype) + self.phases.to(x.dtype)
        return ((2 * math.pi * angle).cos() * math.sqrt(2)).to(self.freqs.dtype)


# Equations 47 and 66
class MPConv(nn.Module):
    """A convolution or linear map with weight vectors of unit length and without a bias.

    The weight is normalised in each forward pass, so that its length has no effect. `proj_`
    restores the length of the parameter after a step of the optimizer, so that the learning rate
    controls the relative size of the steps.

    Args:
        c_in: Number of input channels.
        c_out: Number of output channels.
        kernel: Size of the kernel; None for a linear map.
    """

    def __init__(self, c_in: int, c_out: int, kernel: int | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(
            torch.randn(c_out, c_in, *[kernel] * 2) if kernel else torch.randn(c_out, c_in)
        )
        self.proj_()

    def forward(self, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        """Return the output.

        Args:
            x: The input.
            gain: Factor of the weight.
        """
        fan_in = math.prod(self.weight.shape[1:])
        weight = (normalize(self.weight) * (gain / math.sqrt(fan_in))).to(x.dtype)
        return (
            F.linear(x, weight)
            if weight.ndim == 2
            else F.conv2d(x, weight, padding=weight.shape[-1] // 2)
        )

    @torch.no_grad()
    def proj_(self) -> None:
        """Set the parameter to unit variance in each output feature."""
        self.weight.copy_(normalize(self.weight))

    def extra_repr(self) -> str:
        return f'{list(self.weight.shape)}'
