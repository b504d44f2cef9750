"""Guidance by gradients: of a classifier that knows noise, or of any loss on the denoised
estimate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.arguments import check_function, check_number, show_value
from ..core.protocols import DenoiseFn
from ..core.tensors import append_dims
from ..core.wrapping import DenoiserWrapper
from .streams import check_strength


def loss_guidance(
    denoise: DenoiseFn,
    loss: Callable[..., Tensor],
    scale: float,
    through: bool = True,
    clamp: tuple[float, float] | None = None,
    spread: float | None = None,
) -> DenoiseFn:
    """D' = D - scale sigma^2 grad L(D(x, sigma), sigma, **cond), the gradient taken with respect to
    x.

    The data is drawn as if its density were multiplied by exp(-scale L), so that the scale is in
    nats per unit of loss, the same at every noise level. `loss` gives [B]. Conditions that the loss
    alone needs are named in its attribute `takes`, and are not passed on to the denoiser.

    through: whether the gradient goes through the network. Without (half the cost), sigma^2 grad L
    becomes grad L at D, times the variance a Gaussian of standard deviation `spread` (1 by default)
    would still have; samples leave the data more easily. clamp: the range D' is kept in, or None.
    With scale 0 the denoiser is called as it is. spread, with through: instead of the above, D' is
    moved by scale posterior standard deviations of such a Gaussian, as a root mean square, along
    the gradient: a strength that depends neither on the loss's unit nor on the number of pixels.

    Crowson's CLIP guidance; Bansal et al. (2023), arXiv 2302.07121; without the network: He et al.
    (2023), arXiv 2311.16424.
    """
    check_strength(scale, nothing='0')
    check_function('loss', loss, 'loss(denoised, sigma, **cond) -> [B]')
    if spread is not None and not check_number('spread', spread) > 0:
        raise ValueError(f'spread is {spread}; it must be a standard deviation above 0, or None')
    if clamp is not None and not clamp[0] < clamp[1]:
        raise ValueError(
            f'clamp is {clamp}; it must hold two numbers, the lower one first, or be None'
        )
    return _LossGuided(denoise, loss, scale, through, clamp, spread)


@dataclass(frozen=True)
class _LossGuided(DenoiserWrapper):
    denoise: DenoiseFn
    loss: Callable[..., Tensor]
    scale: float
    through: bool
    clamp: tuple[float, float] | None
    spread: float | None

    def __call__(self, x: Tensor, sigma: Tensor, **cond: Any) -> Tensor:
        takes = getattr(self.loss, 'takes', ())
        own = {key: cond.pop(key) for key in takes if key in cond}
        if self.scale == 0:
            return self.denoise(x, sigma, **cond)
        with torch.enable_grad():
            at = x.detach().requires_grad_()
            denoised = self.denoise(at, sigma, **cond)
            if not self.through:
                at = denoised = denoised.detach().requires_grad_()
            gradient = gradient_per_item('loss', self.loss(denoised, sigma, **own), at)
        guided = denoised.detach() - self.scale * self._step(gradient, append_dims(sigma, x.ndim))
        return guided if self.clamp is None else guided.clamp(*self.clamp)

    def _step(self, gradient: Tensor, sigma: Tensor) -> Tensor:
        spread = 1.0 if self.spread is None else self.spread
        variance = sigma**2 * spread**2 / (sigma**2 + spread**2)
        if not self.through:
            return variance * gradient
        if self.spread is None:
            return sigma**2 * gradient
        rms = gradient.square().mean(dim=list(range(1, gradient.ndim)), keepdim=True).sqrt()
        return variance.sqrt() * gradient / rms.clamp(min=torch.finfo(gradient.dtype).tiny)


def gradient_per_item(name: str, values: Any, at: Tensor) -> Tensor:
    """Return the gradient of a function's values [B] with respect to `at`, item by item.

    Raises:
        ValueError: It gave something else than [B], or no function of `at`.
    """
    if not isinstance(values, Tensor) or values.shape != (len(at),):
        raise ValueError(
            f'{name} must give one number for each item, [{len(at)}]; got {show_value(values)}'
        )
    if not values.requires_grad:
        raise ValueError(
            f'{name} must be differentiable with respect to its first argument; '
            'got values without a gradient: check that nothing in it detaches or runs under no_grad'
        )
    return torch.autograd.grad(values.sum(), at)[0]


def classifier_guidance(
    denoise: DenoiseFn,
    log_prob: Callable[..., Tensor],
    scale: float = 1.0,
    key: str = 'class_cond',
    keep: bool = False,
) -> DenoiseFn:
    """D' = D + scale sigma^2 grad log p(y | x, sigma), y the condition `key` [B].

    log_prob(x, sigma, y) gives [B]: of a classifier trained on noisy x = clean + noise. keep:
    whether the denoiser itself is also told y. With scale 0 the classifier is not asked. Dhariwal &
    Nichol (2021), arXiv 2105.05233, section 4.2.
    """
    check_strength(scale, nothing='0')
    if scale != 0:
        check_function('log_prob', log_prob, 'log_prob(x, sigma, y) -> [B]')
    return _ClassifierGuided(denoise, log_prob, scale, key, keep)


@dataclass(frozen=True)
class _ClassifierGuided(DenoiserWrapper):
    denoise: DenoiseFn
    log_prob: Callable[..., Tensor]
    scale: float
    key: str
    keep: bool

    def __call__(self, x: Tensor, sigma: Tensor, **cond: Any) -> Tensor:
        if self.key not in cond:
            raise ValueError(
                f'the guided denoiser was called without {self.key!r}, which it is to guide '
                'towards; pass it as a condition'
            )
        label = cond[self.key] if self.keep else cond.pop(self.key)
        denoised = self.denoise(x, sigma, **cond)
        if self.scale == 0:
            return denoised
        with torch.enable_grad():
            at = x.detach().requires_grad_()
            gradient = gradient_per_item('log_prob', self.log_prob(at, sigma, label), at)
        return denoised + self.scale * append_dims(sigma, x.ndim) ** 2 * gradient
