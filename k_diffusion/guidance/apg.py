"""Adaptive projected guidance: classifier-free guidance without its oversaturating component."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..core.arguments import check_number
from ..core.protocols import DenoiseFn, GuidedFn
from ..core.tensors import append_dims
from .streams import Null, TwoConditions, check_null, check_strength, dot_per_item


def adaptive_projected(
    denoise: DenoiseFn,
    null: Null,
    scale: float,
    interval: tuple[float, float] = (0.0, math.inf),
    eta: float = 0.0,
    norm: float | None = None,
    momentum: float = 0.0,
    joined: bool = True,
) -> GuidedFn:
    """Guide by the part of D_c - D_u that is orthogonal to D_c.

    With the push D_c - D_u: D' = D_c + (scale - 1) (push - its part along D_c + eta times that
    part). With scale 1 the denoiser is called unchanged; eta 1 without norm and momentum is
    classifier-free guidance.

    Args:
        denoise: The denoiser.
        null: Replacements for the conditions that are removed in D_u, as in `classifier_free`.
        scale: Guidance strength; 1 disables guidance.
        interval: Noise levels (low, high] with guidance.
        eta: Share of the part along D_c that is kept.
        norm: Largest push of an item, as a root mean square; None for no bound.
        momentum: Multiple of the previous pushes that is added, usually negative (-0.5 to -0.75 in
            the paper). The memory is cleared where sigma rises, that is with each new sample.
        joined: Evaluate both estimates in one call on a doubled batch.

    Returns:
        The guided denoiser.

    Raises:
        ValueError: If norm is not positive, or a number is not finite.

    References:
        Sadat et al. (2024), arXiv:2410.02416, section 4.
    """
    check_strength(scale, interval)
    check_null(null)
    for name, value in ('eta', eta), ('momentum', momentum):
        check_number(name, value)
    if norm is not None and not check_number('norm', norm) > 0:
        raise ValueError(f'norm must be > 0, or None for no bound; got {norm}')
    return _AdaptiveProjected(denoise, null, scale, interval, joined, eta, norm, momentum)


@dataclass(frozen=True)
class _AdaptiveProjected(TwoConditions):
    eta: float
    norm: float | None
    momentum: float
    # (push, sigma) of the last call
    memory: list[tuple[Tensor, Tensor]] = field(default_factory=list, repr=False)

    def guide(self, x: Tensor, sigma: Tensor, denoised: Tensor, uncond: Tensor) -> Tensor:
        push = self._add_momentum(denoised - uncond, sigma)
        if self.norm is not None:
            rms = (dot_per_item(push, push) / push[0].numel()).sqrt()
            push = push * (self.norm / rms.clamp(min=1e-12)).clamp(max=1.0)
        along = denoised * (
            dot_per_item(push, denoised) / dot_per_item(denoised, denoised).clamp(min=1e-12)
        )
        return torch.add(denoised, push - along + self.eta * along, alpha=self.scale - 1)

    def _add_momentum(self, push: Tensor, sigma: Tensor) -> Tensor:
        if not self.momentum:
            return push
        if self.memory and self.memory[0][0].shape == push.shape:
            last, at = self.memory[0]
            push = push + self.momentum * torch.where(
                append_dims(sigma > at, push.ndim), 0.0, last.to(push)
            )
        self.memory[:] = [(push.detach(), sigma)]
        return push
