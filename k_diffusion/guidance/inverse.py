"""Inpainting and other inverse problems y = A(clean) + noise, with any denoiser."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.arguments import check_broadcast, check_function, check_number, check_whole, show_value
from ..core.protocols import DenoiseFn
from ..core.tensors import append_dims
from ..core.wrapping import DenoiserWrapper, select_like_x

Operator = Callable[[Tensor], Tensor]

_MASK_VALUES = 'booleans, values from 0 to 1, or the integers 0 and 255'


def inpainting(
    denoise: DenoiseFn, image: Tensor, mask: Tensor, spread: float | None = None
) -> DenoiseFn:
    """Keep a known part of an image: D' is the image where the mask is 1, and D elsewhere.

    x then follows the noise of the image itself there. With a mask of 0 D is unchanged to the last
    bit.

    Args:
        denoise: The denoiser.
        image: [C, H, W], or one for each item.
        mask: Broadcasts against the image: booleans, 0 and 1, integers 0 and 255, or soft values in
            [0, 1] with D' = mask image + (1 - mask) D.
        spread: Standard deviation of the data. With it the unknown part is first moved to agree
            with the known part by the gradient of the network (`pseudo_inverse` for A = mask),
            which fits the two parts at twice the cost. The push of a soft value is mask^2 times
            that of a known value.

    Returns:
        The guided denoiser.

    Raises:
        TypeError: If image or mask is not a tensor.
        ValueError: If they do not fit each other, or the mask has other values.

    References:
        Wang et al. (2022), arXiv:2212.00490.
    """
    if not isinstance(image, Tensor):
        raise TypeError(
            f'image must be a tensor, [C, H, W] or [B, C, H, W]; got {show_value(image)}'
        )
    mask = as_mask(mask)
    check_mask(image, mask)
    if spread is not None:
        denoise = pseudo_inverse(denoise, Masked(mask), mask * image, spread, orthonormal=True)
    return _Inpainting(denoise, image, mask)


def as_mask(mask: Tensor) -> Tensor:
    """Convert a mask to floating-point values in [0, 1].

    Args:
        mask: Booleans, numbers in [0, 1], or integers of which each is 0 or 255.

    Raises:
        TypeError: If it cannot be made a tensor.
        ValueError: If it holds other values.
    """
    try:
        mask = torch.as_tensor(mask)
    except (TypeError, RuntimeError, ValueError):
        raise TypeError(
            f'mask must be a tensor of {_MASK_VALUES}; got {show_value(mask)}'
        ) from None
    if mask.is_complex():
        raise ValueError(f'mask must hold {_MASK_VALUES}; got {mask.dtype}')
    if mask.dtype == torch.bool:
        return mask.to(torch.float32)
    values = mask if mask.is_floating_point() else mask.to(torch.float32)
    if not mask.is_floating_point() and values.numel() and ((values == 0) | (values == 255)).all():
        return values / 255
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError(
            f'mask must hold {_MASK_VALUES}; '
            f'got {mask.dtype} from {values.min().item():g} to {values.max().item():g}'
        )
    return values


def check_mask(image: Tensor, mask: Tensor) -> None:
    """Raise a ValueError unless the mask broadcasts against the image.

    Args:
        image: The image.
        mask: The mask.
    """
    try:
        torch.broadcast_shapes(image.shape, mask.shape)
    except RuntimeError:
        raise ValueError(
            f'mask must broadcast against the image of shape {list(image.shape)}; '
            f'got shape {list(mask.shape)}'
        ) from None


@dataclass(frozen=True)
class Masked:
    """The linear operator that multiplies by a mask."""

    mask: Tensor

    def __call__(self, clean: Tensor) -> Tensor:
        return clean * self.mask.to(clean)

    def select_items(self, items: Tensor, shape: Sequence[int]) -> Masked:
        """Return the operator for some items of a batch.

        Args:
            items: Their indices.
            shape: The shape of the batch.
        """
        mask = select_like_x(self.mask, items, shape)
        return self if mask is self.mask else Masked(mask)


@dataclass(frozen=True)
class _Inpainting(DenoiserWrapper):
    denoise: DenoiseFn
    image: Tensor
    mask: Tensor
    per_item = ('image', 'mask')

    def __call__(self, x: Tensor, sigma: Tensor, **cond: Any) -> Tensor:
        if self.image.ndim == x.ndim and len(self.image) not in (1, len(x)):
            raise ValueError(
                f'image must hold one image, or one for each of the {len(x)} items; got '
                f'{len(self.image)}'
            )
        check_broadcast('image', self.image, x.shape, 'x')
        denoised, mask = self.denoise(x, sigma, **cond), self.mask.to(x)
        return torch.where(mask > 0, torch.lerp(denoised, self.image.to(x), mask), denoised)


class _Measured(DenoiserWrapper):
    """A denoiser guided by measurements y = A(clean), one for all items or one for each."""

    operator: Operator
    y: Tensor
    per_item = ('y',)

    def residual(self, output: Tensor) -> Tensor:
        """Return y minus the measurement of an estimate."""
        check_broadcast('y', self.y, output.shape, 'what the operator gives')
        return self.y.to(output) - output

    def select_field(self, name: str, value: Any, items: Tensor, shape: Sequence[int]) -> Any:
        if value.ndim == 0 or len(value) != shape[0] or shape[0] == 1:
            return value
        with torch.no_grad():
            output = self.operator(value.new_zeros(tuple(shape)))
        return value[items.to(value.device)] if value.ndim == output.ndim else value


def pseudo_inverse(
    denoise: DenoiseFn,
    operator: Operator,
    y: Tensor,
    spread: float = 1.0,
    noise: float = 0.0,
    orthonormal: bool = False,
    iterations: int = 20,
) -> DenoiseFn:
    """Guide by linear measurements with the pseudo-inverse of the operator.

    D' = D + sigma^2 J^T A^T (r^2 A A^T + noise^2)^-1 (y - A D) with J = dD/dx and r^2 = sigma^2
    spread^2 / (sigma^2 + spread^2). Exact for Gaussian data of standard deviation `spread`, and
    near the end for any data.

    Args:
        denoise: The denoiser.
        operator: A, linear, from a batch of clean data to a batch of measurements. Its transpose is
            computed by differentiation.
        y: One measurement, or one for each item.
        spread: Standard deviation of the data.
        noise: Standard deviation of the noise of the measurements.
        orthonormal: A A^T is the identity on the measurements (masks, permutations). Otherwise the
            inverse is computed by conjugate gradients.
        iterations: Largest number of their steps; the result is exact for as many distinct singular
            values.

    Returns:
        The guided denoiser.

    Raises:
        TypeError: If operator is not a function, or y is not a tensor.
        ValueError: If spread or noise is out of range.

    References:
        Song et al. (2023), "Pseudoinverse-guided diffusion models for inverse problems", ICLR.
    """
    check_spread(spread, noise)
    check_whole('iterations', iterations)
    check_measurement(operator, y)
    return _PseudoInverse(denoise, operator, y, spread, noise, orthonormal, iterations)


def check_spread(spread: float, noise: float) -> None:
    """Raise a ValueError unless spread > 0 and noise >= 0.

    Args:
        spread: Standard deviation of the data.
        noise: Standard deviation of the noise.
    """
    if not check_number('spread', spread) > 0 or not check_number('noise', noise) >= 0:
        raise ValueError(
            f'spread must be > 0 and noise >= 0, standard deviations; got {spread} and {noise}'
        )


def check_measurement(operator: Any, y: Any) -> None:
    """Raise a TypeError unless operator is a function and y a tensor.

    Args:
        operator: The operator.
        y: The measurement.
    """
    check_function('operator', operator, 'from a batch of clean data to a batch of measurements')
    if not isinstance(y, Tensor):
        raise TypeError(
            f'y must be a tensor, one measurement or one for each item; got {show_value(y)}'
        )


@dataclass(frozen=True)
class _PseudoInverse(_Measured):
    denoise: DenoiseFn
    operator: Operator
    y: Tensor
    spread: float
    noise: float
    orthonormal: bool
    iterations: int

    def __call__(self, x: Tensor, sigma: Tensor, **cond: Any) -> Tensor:
        sigma_ = append_dims(sigma, x.ndim)
        variance = sigma_**2 * self.spread**2 / (sigma_**2 + self.spread**2)
        with torch.enable_grad():
            at = x.detach().requires_grad_()
            denoised = self.denoise(at, sigma, **cond)
        clean = denoised.detach()
        a = Linear(self.operator, clean)
        residual = self.residual(a(clean))
        r2 = append_dims(variance.flatten(), residual.ndim)
        if self.orthonormal:
            solved = residual / (r2 + self.noise**2)
        else:
            solved = conjugate_gradients(
                lambda v: r2 * a(a.transpose(v)) + self.noise**2 * v, residual, self.iterations
            )
        (push,) = torch.autograd.grad(denoised, at, a.transpose(solved))
        return clean + sigma_**2 * push


def posterior_sampling(
    denoise: DenoiseFn,
    operator: Operator,
    y: Tensor,
    scale: float = 1.0,
    spread: float = 1.0,
    noise: float = 0.0,
) -> DenoiseFn:
    """Guide by measurements: D' = D - scale sigma^2 grad |y - A(D)|^2 / (2 (r^2 + noise^2)).

    The gradient is taken with respect to x; r^2 is that of `pseudo_inverse`. The weight is exact
    for A = 1 and Gaussian data of standard deviation `spread`, so that scale 1 is a good start; for
    an A with gain g use 1 / g^2. With scale 0 the denoiser is called unchanged.

    Args:
        denoise: The denoiser.
        operator: A, differentiable, linear or not, from a batch to a batch.
        y: One measurement, or one for each item.
        scale: Guidance strength.
        spread: Standard deviation of the data.
        noise: Standard deviation of the noise of the measurements.

    Returns:
        The guided denoiser.

    References:
        Chung et al. (2022), arXiv:2209.14687.
    """
    check_spread(spread, noise)
    check_number('scale', scale)
    check_measurement(operator, y)
    return _PosteriorSampling(denoise, operator, y, scale, spread, noise)


@dataclass(frozen=True)
class _PosteriorSampling(_Measured):
    denoise: DenoiseFn
    operator: Operator
    y: Tensor
    scale: float
    spread: float
    noise: float

    def __call__(self, x: Tensor, sigma: Tensor, **cond: Any) -> Tensor:
        if self.scale == 0:
            return self.denoise(x, sigma, **cond)
        with torch.enable_grad():
            at = x.detach().requires_grad_()
            denoised = self.denoise(at, sigma, **cond)
            (gradient,) = torch.autograd.grad(
                self.residual(self.operator(denoised)).square().sum() / 2, at
            )
        s2 = append_dims(sigma, x.ndim) ** 2
        return (
            denoised.detach()
            - self.scale
            * s2
            / (s2 * self.spread**2 / (s2 + self.spread**2) + self.noise**2)
            * gradient
        )


@dataclass(frozen=True)
class Linear:
    """A linear operator with its transpose, computed by differentiation.

    Attributes:
        operator: The operator.
        like: A batch like its argument.
    """

    operator: Operator
    like: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return self.operator(x)

    def transpose(self, v: Tensor) -> Tensor:
        """Return A^T v.

        Args:
            v: A batch of measurements.
        """
        with torch.enable_grad():
            at = torch.zeros_like(self.like, requires_grad=True)
            return torch.autograd.grad(self.operator(at), at, v)[0]


def conjugate_gradients(matrix: Operator, b: Tensor, iterations: int) -> Tensor:
    """Solve M v = b for each item of a batch by conjugate gradients.

    Args:
        matrix: M, symmetric and positive semi-definite.
        b: A batch in its range.
        iterations: Largest number of steps.
    """

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum(dim=list(range(1, a.ndim)), keepdim=True)

    v, residual = torch.zeros_like(b), b
    direction, size = residual, dot(b, b)
    least = size * torch.finfo(b.dtype).eps ** 2
    for _ in range(iterations):
        image = matrix(direction)
        step = torch.where(
            size > least, size / dot(direction, image).clamp(min=torch.finfo(b.dtype).tiny), 0.0
        )
        v, residual = v + step * direction, residual - step * image
        new = dot(residual, residual)
        direction = (
            residual
            + torch.where(size > least, new / size.clamp(min=torch.finfo(b.dtype).tiny), 0.0)
            * direction
        )
        size = new
    return v
