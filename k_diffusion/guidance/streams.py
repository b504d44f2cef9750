"""Several conditions asked of one denoiser: in one call on a larger batch, or one after another."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ..core.arguments import check_interval, check_number, show_value
from ..core.conditions import DifferentTrees, NullRows, join_trees, replace_by_null
from ..core.protocols import DenoiseFn
from ..core.tensors import append_dims
from ..core.wrapping import DenoiserWrapper, select_items

#: What stands for each condition that is taken away; `replace_by_null` says what a value may be.
Null: TypeAlias = Mapping[str, Any]


def ask_all(
    denoise: DenoiseFn,
    x: Tensor,
    sigma: Tensor,
    conditions: Sequence[Mapping[str, Any]],
    joined: bool = True,
) -> list[Tensor]:
    """D(x | cond) for each of the conditions, each [B, ...].

    Joined, they are one call on a batch as many times as large. Split, the calls follow one another
    and take no more memory than one; so do conditions that no one batch can hold: different numbers
    or strings, tensors of different shapes, trees of different structure.
    """
    n, sigma = len(conditions), level_per_item(sigma, x)
    if joined and n > 1:
        try:
            cond = join_trees([dict(c) for c in conditions], len(x))
        except DifferentTrees:
            pass
        else:
            denoise = select_items(denoise, torch.arange(len(x)).repeat(n), x.shape)
            return list(denoise(x.repeat(n, *[1] * (x.ndim - 1)), sigma.repeat(n), **cond).chunk(n))
    answers = []
    for i, condition in enumerate(conditions):
        answer = denoise(x, sigma, **condition)
        # A denoiser may answer in one buffer again and again: what outlives the next call is
        # copied.
        answers.append(answer if i == n - 1 else answer.clone())
    return answers


def level_per_item(sigma: Tensor, x: Tensor) -> Tensor:
    """Return noise levels as [B]; one level is that of every item."""
    if sigma.ndim > 1 or sigma.numel() not in (1, len(x)):
        raise ValueError(
            f'sigma must be one noise level, or one for each of the {len(x)} items of x; '
            f'got shape {list(sigma.shape)}'
        )
    return sigma.expand(len(x))


def without(cond: Mapping[str, Any], null: Null, n: int) -> dict[str, Any]:
    """The conditions of n items with those that `null` names taken away."""
    absent = sorted(null.keys() - cond.keys())
    if absent:
        raise ValueError(
            f'the guided denoiser was called without {absent[0]!r}, which it is to guide towards; '
            'pass it as a condition'
        )
    rows = null if isinstance(null, NullRows) else None
    return {
        key: replace_by_null(key, null[key], value, n, rows) if key in null else value
        for key, value in cond.items()
    }


def check_strength(
    scale: float, interval: tuple[float, float] = (0.0, math.inf), nothing: str = '1'
) -> None:
    """Refuses a scale that is not a number, and what is no interval of noise levels."""
    check_number('scale', scale, hint=f'{nothing} is no guidance')
    check_interval('interval', interval)


def check_null(null: Any) -> None:
    """Refuse null values that are not named."""
    if not isinstance(null, Mapping):
        raise TypeError(
            "null must be a dict of what stands for no condition, {'class_cond': 10} for example; "
            f'got {show_value(null)}'
        )


class TwoEstimates(DenoiserWrapper, ABC):
    """A guided denoiser made of two estimates: with scale 1, and outside the interval, the
    denoiser is asked alone.
    """

    scale: float
    interval: tuple[float, float]
    per_item = ('null',)

    def select_field(self, name: str, value: Any, items: Tensor, shape: Sequence[int]) -> Any:
        return NullRows(value, items, shape[0])

    def __call__(self, x: Tensor, sigma: Tensor, **cond: Any) -> Tensor:
        if self.does_nothing() or all_outside(sigma, self.interval):
            return self.denoise(x, sigma, **cond)
        return self.pair(x, sigma, **cond)[0]

    def does_nothing(self) -> bool:
        """Return True where the guided estimate is the conditional one."""
        return self.scale == 1

    def pair(self, x: Tensor, sigma: Tensor, **cond: Any) -> tuple[Tensor, Tensor]:
        """(guided, unconditional); outside the interval, where nothing is guided, the
        conditional estimate twice.
        """
        if all_outside(sigma, self.interval):
            denoised = self.denoise(x, sigma, **cond)
            return denoised, denoised
        guided, denoised, unconditional = self.estimates(x, sigma, **cond)
        if self.interval == (0.0, math.inf):
            return guided, unconditional
        acts = inside(sigma, self.interval, x.ndim)
        return torch.where(acts, guided, denoised), torch.where(acts, unconditional, denoised)

    def parts(self, x: Tensor, sigma: Tensor, **cond: Any) -> tuple[Tensor, Tensor]:
        """(conditional, guided - conditional) as if the interval held every level: what samplers
        that integrate the guidance over the part of a step inside the interval ask for.
        """
        guided, denoised, _ = self.estimates(x, sigma, **cond)
        return denoised, guided - denoised

    @abstractmethod
    def estimates(self, x: Tensor, sigma: Tensor, **cond: Any) -> tuple[Tensor, Tensor, Tensor]:
        """(guided, conditional, unconditional), as if the interval held every level."""


@dataclass(frozen=True)
class TwoConditions(TwoEstimates, ABC):
    """A guided denoiser that is asked with its conditions and without those that `null` names."""

    denoise: DenoiseFn
    null: Null
    scale: float
    interval: tuple[float, float]
    joined: bool

    def estimates(self, x: Tensor, sigma: Tensor, **cond: Any) -> tuple[Tensor, Tensor, Tensor]:
        uncond, denoised = ask_all(
            self.denoise, x, sigma, [without(cond, self.null, len(x)), cond], self.joined
        )
        return self.guide(x, level_per_item(sigma, x), denoised, uncond), denoised, uncond

    @abstractmethod
    def guide(self, x: Tensor, sigma: Tensor, denoised: Tensor, uncond: Tensor) -> Tensor:
        """Make the guided estimate of the conditional and the unconditional one; sigma [B]."""


class BothEstimates(DenoiserWrapper, ABC):
    """A wrapper that does the same to every estimate of a denoiser; it has a `pair` where the
    denoiser has one.
    """

    @abstractmethod
    def estimates(
        self, ask: Callable[..., tuple[Tensor, ...]], x: Tensor, sigma: Tensor, **cond: Any
    ) -> tuple[Tensor, ...]:
        """Change the estimates that ask(x, sigma, **cond) gives, one or two."""

    def __call__(self, x: Tensor, sigma: Tensor, **cond: Any) -> Tensor:
        return self.estimates(
            lambda *args, **cond: (self.denoise(*args, **cond),), x, sigma, **cond
        )[0]

    @property
    def pair(self) -> Callable[..., tuple[Tensor, Tensor]]:
        """(guided, unconditional), each changed; only of a denoiser that has a pair."""
        if not hasattr(self.denoise, 'pair'):
            self.__getattr__('pair')  # raises
        ask = self.denoise.pair  # type: ignore[attr-defined]

        def change_pair(x: Tensor, sigma: Tensor, **cond: Any) -> tuple[Tensor, Tensor]:
            guided, unconditional = self.estimates(ask, x, sigma, **cond)
            return guided, unconditional

        return change_pair


def dot_per_item(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner product of each item, [B, 1, ...]."""
    return (a * b).sum(dim=list(range(1, a.ndim)), keepdim=True)


def inside(sigma: Tensor, interval: tuple[float, float], ndim: int) -> Tensor:
    """Which items [B, 1, ...] have their noise level in (low, high]."""
    low, high = interval
    return append_dims((sigma > low) & (sigma <= high), ndim)


def all_outside(sigma: Tensor, interval: tuple[float, float]) -> bool:
    """Whether no item is in the interval, so that one evaluation serves.

    Only on the CPU, where looking costs no wait.
    """
    low, high = interval
    return (
        (low, high) != (0.0, math.inf)
        and sigma.is_cpu
        and not bool(((sigma > low) & (sigma <= high)).any())
    )
