"""Published recipes that a fitted solver must beat: a sampler with options and noise levels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...core.arguments import saved_calls
from ...core.protocols import DenoiseFn
from ...core.registry import unknown
from ..registry import SAMPLERS
from .reference_runs import karras_levels


@dataclass(frozen=True)
class Published:
    """A deterministic sampler with one model call per step, by name, with its levels and options.

    Attributes:
        sampler: Its name.
        sigmas: The noise levels, 0 last.
        options: Its options, and `afs`. With `afs` or `backward_start` the first step needs no
            model call of its own.

    Raises:
        ValueError: If the sampler or an option is unknown, or it draws noise.
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
                f'sampler must be deterministic with one model call per step; got {self.sampler}'
            )
        odd = sorted(self.options.keys() - entry.options.keys() - {'afs'})
        if odd:
            raise ValueError(f'options must be options of {self.sampler}; got {odd[0]}')

    @property
    def calls(self) -> int:
        """Return the number of model calls."""
        return len(self.sigmas) - 1 - saved_calls(self.options)

    def run(self, denoise: DenoiseFn, x: Tensor, extra_args: Mapping[str, Any]) -> Tensor:
        """Return the ends [B, ...] of x [B, ...] at the first level.

        Args:
            denoise: The denoiser.
            x: Noise at the first level.
            extra_args: Conditions.
        """
        ends: Tensor = SAMPLERS[self.sampler].function(
            denoise, x, list(self.sigmas), dict(extra_args), disable=True, **self.options
        )
        return ends

    def __str__(self) -> str:
        options = ', '.join(f'{name}={value}' for name, value in self.options.items())
        return f'{self.sampler} ({options})' if options else self.sampler


def published_recipes(calls: int, sigma_min: float, sigma_max: float) -> Iterator[Published]:
    """Yield the recipes that are best with few calls on one model or another.

    iPNDM and exponential Adams-Bashforth on the noise, with and without an analytical first step;
    DPM-Solver++(2M); UniPC.

    Args:
        calls: Number of model calls.
        sigma_min: The last level above 0.
        sigma_max: The first level.

    References:
        Zhang & Chen (2023), arXiv:2204.13902.
        Lu et al. (2022), arXiv:2211.01095.
        Zhao et al. (2023), arXiv:2302.04867.
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
    """Return n levels evenly spaced in sigma^(1/7), and 0.

    Args:
        n: Number of levels.
        low: The last level above 0.
        high: The first level.

    References:
        Karras et al. (2022), arXiv:2206.00364.
    """
    return (*(karras_levels(n, low, high) if n > 1 else [high]), 0.0)


def _exponential_steps(n: int, low: float, high: float) -> tuple[float, ...]:
    ramp = (
        torch.linspace(0, 1, n, dtype=torch.float64)
        if n > 1
        else torch.zeros(1, dtype=torch.float64)
    )
    return (*(high * (low / high) ** ramp).tolist(), 0.0)


def run_recipes(
    recipes: Sequence[Published],
    denoise: DenoiseFn,
    x: Tensor,
    extra_args: Mapping[str, Any],
    batch_size: int,
) -> Tensor:
    """Return the ends [P, B, ...] of some recipes; NaN for runs that overflowed.

    Args:
        recipes: The recipes.
        denoise: The denoiser.
        x: Noise at the first level, [B, ...].
        extra_args: Conditions, with an entry for each item.
        batch_size: Number of items in one model call.
    """
    ends = torch.full([len(recipes), *x.shape], float('nan'), dtype=x.dtype, device=x.device)
    for k, recipe in enumerate(recipes):
        for part in (slice(start, start + batch_size) for start in range(0, len(x), batch_size)):
            try:
                ends[k, part] = recipe.run(
                    denoise, x[part], {key: value[part] for key, value in extra_args.items()}
                )
            except ValueError:  # not finite
                break
    return ends
