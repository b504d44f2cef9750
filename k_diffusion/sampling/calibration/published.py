"""Published recipes that a fitted solver must beat: a sampler with its options and its noise
levels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...core.protocols import DenoiseFn
from ...core.registry import unknown
from ..registry import SAMPLERS
from .reference_runs import karras_levels


@dataclass(frozen=True)
class Published:
    """A deterministic sampler of one model call a step, by name, and how it is run.

    sigmas: its levels, 0 last. options: its own; afs, with which the first step asks the model
    nothing, is one.
    """

    sampler: str
    sigmas: tuple[float, ...]
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise ValueError(unknown('sampler', self.sampler, SAMPLERS))
        entry = SAMPLERS[self.sampler]
        if entry.stochastic or entry.nfe != 1 or entry.needs_pair or 'sigmas' not in entry.takes:
            raise ValueError(
                f'sampler must be deterministic and make one model call a step; got {self.sampler}'
            )
        odd = sorted(self.options.keys() - entry.options.keys() - {'afs'})
        if odd:
            raise ValueError(f'options must be those of {self.sampler}; got {odd[0]}')

    @property
    def calls(self) -> int:
        """The number of model calls."""
        return len(self.sigmas) - 1 - bool(self.options.get('afs'))

    def run(self, denoise: DenoiseFn, x: Tensor, extra_args: Mapping[str, Any]) -> Tensor:
        """The ends [B, ...] of x [B, ...] at the first level."""
        ends: Tensor = SAMPLERS[self.sampler].function(
            denoise, x, list(self.sigmas), dict(extra_args), disable=True, **self.options
        )
        return ends

    def __str__(self) -> str:
        options = ', '.join(f'{name}={value}' for name, value in self.options.items())
        return f'{self.sampler} ({options})' if options else self.sampler


def published_recipes(calls: int, sigma_min: float, sigma_max: float) -> Iterator[Published]:
    """Those that do best with few calls on one model or another, on levels down to sigma_min.

    iPNDM (Zhang and Chen 2023, arXiv:2204.13902) and exponential Adams-Bashforth on the noise with
    and without an analytic first step, DPM-Solver++(2M) (Lu et al. 2022, arXiv:2211.01095) and
    UniPC (Zhao et al. 2023, arXiv:2302.04867).
    """
    for sampler, order in (('ipndm', 2), ('ipndm', 3), ('zeab', 3), ('zeab', 4)):
        yield Published(sampler, karras_steps(calls, sigma_min, sigma_max), {'order': order})
        yield Published(
            sampler, karras_steps(calls + 1, sigma_min, sigma_max), {'order': order, 'afs': True}
        )
    for levels in (
        karras_steps(calls, sigma_min, sigma_max),
        _exponential_steps(calls, sigma_min, sigma_max),
    ):
        yield Published('dpmpp_2m', levels)
        yield Published('uni_pc', levels)


def karras_steps(n: int, low: float, high: float) -> tuple[float, ...]:
    """n levels of Karras et al. 2022, rho 7, and 0."""
    return (*(karras_levels(n, low, high) if n > 1 else [high]), 0.0)


def _exponential_steps(n: int, low: float, high: float) -> tuple[float, ...]:
    ramp = (
        torch.linspace(0, 1, n, dtype=torch.float64)
        if n > 1
        else torch.zeros(1, dtype=torch.float64)
    )
    return (*(high * (low / high) ** ramp).tolist(), 0.0)


def ends_of(
    recipes: Sequence[Published],
    denoise: DenoiseFn,
    x: Tensor,
    extra_args: Mapping[str, Any],
    batch_size: int,
) -> Tensor:
    """The ends [P, B, ...] of some recipes; NaN where a run left the range of numbers."""
    found = torch.full([len(recipes), *x.shape], float('nan'), dtype=x.dtype, device=x.device)
    for k, recipe in enumerate(recipes):
        for part in (slice(start, start + batch_size) for start in range(0, len(x), batch_size)):
            try:
                found[k, part] = recipe.run(
                    denoise, x[part], {key: value[part] for key, value in extra_args.items()}
                )
            except ValueError:  # not finite
                break
    return found
