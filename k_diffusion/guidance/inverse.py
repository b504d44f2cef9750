"""Pictures from what is known of them: inpainting and other inverse problems y = A(clean) + noise, with any denoiser."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.protocols import DenoiseFn
from ..core.tensors import append_dims

Operator = Callable[[Tensor], Tensor]


def inpainting(denoise: DenoiseFn, image: Tensor, mask: Tensor, spread: float | None = None) -> DenoiseFn:
    """D' is the image where the mask is 1, and the denoiser's elsewhere; x then follows the image's own noise there.

    image: [C, H, W] or one for each item; mask: broadcasts against it, 1 where the image is known. spread: the standard
    deviation of the data; with it the unknown is first moved to agree with the known, by the network's gradient
    (`pseudo_inverse` for A = mask), which makes the two fit at twice the cost. With a mask of 0 the denoiser's answer is left
    as it is, to the last bit. Wang et al. (2022), arXiv 2212.00490.
    """
    if spread is not None:
        denoise = pseudo_inverse(denoise, lambda clean: clean * mask.to(clean), mask * image, spread, orthonormal=True)

    def guided(x: Tensor, sigma: Tensor, **cond: Any) -> Tensor:
        return torch.where(mask.to(x.device) > 0.5, image.to(x), denoise(x, sigma, **cond))
    return guided


def pseudo_inverse(denoise: DenoiseFn, operator: Operator, y: Tensor, spread: float = 1., noise: float = 0., orthonormal: bool = False,
                   iterations: int = 20) -> DenoiseFn:
    """D' = D + sigma^2 J^T A^T (r^2 A A^T + noise^2)^-1 (y - A D), J = dD/dx, r^2 = sigma^2 spread^2 / (sigma^2 + spread^2).

    operator: A, linear, from a batch of clean data to a batch of measurements; its transpose is found by differentiation. y: one
    measurement or one for each item. noise: the standard deviation of the measurements' noise. spread: that of the data.
    orthonormal: whether A A^T is 1 on the measurements (masks, permutations, ...); else the inverse is found by at most
    `iterations` steps of conjugate gradients, exact for as many different singular values. Right for Gaussian data of that
    standard deviation, and near the end for any. Song et al. (2023), Pseudoinverse-guided diffusion models, ICLR.
    """
    if not spread > 0 or noise < 0:
        raise ValueError(f'spread is {spread} and noise is {noise}; spread must be above 0 and noise at least 0')

    def guided(x: Tensor, sigma: Tensor, **cond: Any) -> Tensor:
        sigma_ = append_dims(sigma, x.ndim)
        variance = sigma_ ** 2 * spread ** 2 / (sigma_ ** 2 + spread ** 2)
        with torch.enable_grad():
            at = x.detach().requires_grad_()
            denoised = denoise(at, sigma, **cond)
        clean = denoised.detach()
        a = Linear(operator, clean)
        residual = y.to(clean) - a(clean)
        r2 = append_dims(variance.flatten(), residual.ndim)
        if orthonormal:
            solved = residual / (r2 + noise ** 2)
        else:
            solved = conjugate_gradients(lambda v: r2 * a(a.transpose(v)) + noise ** 2 * v, residual, iterations)
        push, = torch.autograd.grad(denoised, at, a.transpose(solved))
        return clean + sigma_ ** 2 * push
    return guided


def posterior_sampling(denoise: DenoiseFn, operator: Operator, y: Tensor, scale: float = 1., spread: float = 1.,
                       noise: float = 0.) -> DenoiseFn:
    """D' = D - scale sigma^2 grad |y - A(D)|^2 / (2 (r^2 + noise^2)), r^2 as in `pseudo_inverse`, the gradient with respect to x.

    operator: any differentiable A, linear or not; a batch goes in and a batch comes out. The weight is the one that is right for
    A = 1 and Gaussian data of standard deviation `spread`, so that scale 1 is a good start; for an A whose gain is g take
    1 / g^2. With scale 0 the denoiser is called as it is. Chung et al. (2022), arXiv 2209.14687.
    """
    if not spread > 0 or noise < 0:
        raise ValueError(f'spread is {spread} and noise is {noise}; spread must be above 0 and noise at least 0')

    def guided(x: Tensor, sigma: Tensor, **cond: Any) -> Tensor:
        if scale == 0:
            return denoise(x, sigma, **cond)
        with torch.enable_grad():
            at = x.detach().requires_grad_()
            denoised = denoise(at, sigma, **cond)
            gradient, = torch.autograd.grad((y.to(denoised) - operator(denoised)).square().sum() / 2, at)
        s2 = append_dims(sigma, x.ndim) ** 2
        return denoised.detach() - scale * s2 / (s2 * spread ** 2 / (s2 + spread ** 2) + noise ** 2) * gradient
    return guided


@dataclass(frozen=True)
class Linear:
    """A linear operator and its transpose, the latter by differentiation; `like` is a batch of what it takes."""

    operator: Operator
    like: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return self.operator(x)

    def transpose(self, v: Tensor) -> Tensor:
        """A^T v."""
        with torch.enable_grad():
            at = torch.zeros_like(self.like, requires_grad=True)
            return torch.autograd.grad(self.operator(at), at, v)[0]


def conjugate_gradients(matrix: Operator, b: Tensor, iterations: int) -> Tensor:
    """The v that solves M v = b for each item of a batch, M symmetric and positive semi-definite, b in its range."""
    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum(dim=list(range(1, a.ndim)), keepdim=True)

    v, residual = torch.zeros_like(b), b
    direction, size = residual, dot(b, b)
    least = size * torch.finfo(b.dtype).eps ** 2
    for _ in range(iterations):
        image = matrix(direction)
        step = torch.where(size > least, size / dot(direction, image).clamp(min=torch.finfo(b.dtype).tiny), 0.)
        v, residual = v + step * direction, residual - step * image
        new = dot(residual, residual)
        direction = residual + torch.where(size > least, new / size.clamp(min=torch.finfo(b.dtype).tiny), 0.) * direction
        size = new
    return v
