"""Guidance by gradients: of a noise-aware classifier, or of any loss on the denoised estimate."""

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
    """Guide by a loss: D' = D - scale sigma^2 grad L(D(x, sigma), sigma, **cond).

    The gradient is taken with respect to x. The samples follow the density multiplied by exp(-scale
    L), so the scale is in nats per unit of loss, the same at every noise level. With scale 0 the
    denoiser is called unchanged.

    Args:
        denoise: The denoiser.
        loss: loss(denoised, sigma, **cond) -> [B]. Conditions that only the loss needs are named in
            its attribute `takes`; they are not passed to the denoiser.
        scale: Guidance strength, in nats per unit of loss.
        through: Take the gradient through the network. False halves the cost: sigma^2 grad L is
            replaced by grad L at D, times the remaining variance of a Gaussian of standard
            deviation `spread`; samples then leave the data more easily.
        clamp: Range of D', or None.
        spread: Standard deviation of the data; without `through` 1 by default. With `through` it
            changes the meaning of scale: D' is moved along the gradient by scale posterior standard
            deviations of such a Gaussian, as a root mean square, which depends neither on the unit
            of the loss nor on the number of pixels.

    Returns:
        The guided denoiser.

    Raises:
        ValueError: If spread is not positive, or clamp is not a range.

    References:
        Crowson (2021), CLIP guided diffusion.
        Bansal et al. (2023), arXiv:2302.07121.
        He et al. (2023), arXiv:2311.16424 (without the network).
    """
    check_strength(scale, nothing='0')
    check_function('loss', loss, 'loss(denoised, sigma, **cond) -> [B]')
    if spread is not None and not check_number('spread', spread) > 0:
        raise ValueError(f'spread must be a standard deviation > 0, or None; got {spread}')
    if clamp is not None and not clamp[0] < clamp[1]:
        raise ValueError(f'clamp must be two numbers in ascending order, or None; got {clamp}')
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
    """Return the gradient of a function's values with respect to its argument, item by item.

    Args:
        name: The name of the function in messages.
        values: Its values, [B].
        at: Its argument, [B, ...].

    Raises:
        ValueError: If the values are not [B], or not a function of `at`.
    """
    if not isinstance(values, Tensor) or values.shape != (len(at),):
        raise ValueError(
            f'{name} must return one number for each item, [{len(at)}]; got {show_value(values)}'
        )
    if not values.requires_grad:
        raise ValueError(
            f'{name} must be differentiable with respect to its first argument; got values '
            'without a gradient. Remove detach() and no_grad from it'
        )
    return torch.autograd.grad(values.sum(), at)[0]


def classifier_guidance(
    denoise: DenoiseFn,
    log_prob: Callable[..., Tensor],
    scale: float = 1.0,
    key: str = 'class_cond',
    keep: bool = False,
) -> DenoiseFn:
    """Guide by a classifier: D' = D + scale sigma^2 grad log p(y | x, sigma).

    With scale 0 the classifier is not called.

    Args:
        denoise: The denoiser.
        log_prob: log_prob(x, sigma, y) -> [B], of a classifier trained on noisy x = clean + noise.
        scale: Guidance strength.
        key: The condition y, [B].
        keep: Also pass y to the denoiser.

    Returns:
        The guided denoiser.

    References:
        Dhariwal & Nichol (2021), arXiv:2105.05233, section 4.2.
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
                f'the guided denoiser must be called with the condition {self.key!r}, towards '
                'which '
                'it guides; got no such condition'
            )
        label = cond[self.key] if self.keep else cond.pop(self.key)
        denoised = self.denoise(x, sigma, **cond)
        if self.scale == 0:
            return denoised
        with torch.enable_grad():
            at = x.detach().requires_grad_()
            gradient = gradient_per_item('log_prob', self.log_prob(at, sigma, label), at)
        return denoised + self.scale * append_dims(sigma, x.ndim) ** 2 * gradient
