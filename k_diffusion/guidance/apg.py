"""Adaptive projected guidance: classifier-free guidance without the part of its push that
oversaturates.
"""

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
    """D' = D_c + (scale - 1) (push without its part along D_c, plus eta times that part), push =
    D_c - D_u.

    D_c = D(x | cond), D_u = D(x | null). `norm`: the longest push per item, as a root mean square
    (None: any). `momentum` adds that multiple of the pushes before, negative as a rule (the paper:
    -0.5 to -0.75); the memory begins anew where sigma rises, that is with each new sample. With
    scale 1 the denoiser is called as it is; eta 1 and nothing else is classifier-free guidance.
    Sadat et al. (2024), arXiv 2410.02416, section 4.
    """
    check_strength(scale, interval)
    check_null(null)
    for name, value in ('eta', eta), ('momentum', momentum):
        check_number(name, value)
    if norm is not None and not check_number('norm', norm) > 0:
        raise ValueError(f'norm is {norm}; it must be above 0, or None for no bound')
    return _AdaptiveProjected(denoise, null, scale, interval, joined, eta, norm, momentum)


@dataclass(frozen=True)
class _AdaptiveProjected(TwoConditions):
    eta: float
    norm: float | None
    momentum: float
    memory: list[tuple[Tensor, Tensor]] = field(
        default_factory=list, repr=False
    )  # (push, sigma) of the last call

    def guide(self, x: Tensor, sigma: Tensor, denoised: Tensor, uncond: Tensor) -> Tensor:
        push = self._remembered(denoised - uncond, sigma)
        if self.norm is not None:
            rms = (dot_per_item(push, push) / push[0].numel()).sqrt()
            push = push * (self.norm / rms.clamp(min=1e-12)).clamp(max=1.0)
        along = denoised * (
            dot_per_item(push, denoised) / dot_per_item(denoised, denoised).clamp(min=1e-12)
        )
        return torch.add(denoised, push - along + self.eta * along, alpha=self.scale - 1)

    def _remembered(self, push: Tensor, sigma: Tensor) -> Tensor:
        if not self.momentum:
            return push
        if self.memory and self.memory[0][0].shape == push.shape:
            last, at = self.memory[0]
            push = push + self.momentum * torch.where(
                append_dims(sigma > at, push.ndim), 0.0, last.to(push)
            )
        self.memory[:] = [(push.detach(), sigma)]
        return push
