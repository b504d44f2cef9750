"""Evaluating a denoiser with several conditions, in one call or one after another."""

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

#: The conditions that are removed, with their replacements (`replace_by_null`).
Null: TypeAlias = Mapping[str, Any]


def ask_all(
    denoise: DenoiseFn,
    x: Tensor,
    sigma: Tensor,
    conditions: Sequence[Mapping[str, Any]],
    joined: bool = True,
) -> list[Tensor]:
    """Return D(x | cond) for each of the conditions, each [B, ...].

    Args:
        denoise: The denoiser.
        x: The noisy batch, [B, ...].
        sigma: Its noise levels, [B].
        conditions: The conditions of each estimate.
        joined: Make one call on a larger batch. Otherwise, and for conditions that do not fit into
            one batch (different numbers or strings, tensors of different shapes, trees of different
            structure), the calls follow one another and take the memory of one.
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
        # A denoiser may reuse its output buffer, so an output that outlives the next call is
        # copied.
        answers.append(answer if i == n - 1 else answer.clone())
    return answers


def level_per_item(sigma: Tensor, x: Tensor) -> Tensor:
    """Return noise levels as [B].

    Args:
        sigma: One level, or one for each item.
        x: The batch, [B, ...].
    """
    if sigma.ndim > 1 or sigma.numel() not in (1, len(x)):
        raise ValueError(
            f'sigma must be one noise level, or one for each of the {len(x)} items of x; got '
            f'shape {list(sigma.shape)}'
        )
    return sigma.expand(len(x))


def without(cond: Mapping[str, Any], null: Null, n: int) -> dict[str, Any]:
    """Return the conditions of n items with those named in `null` replaced.

    Args:
        cond: The conditions.
        null: The replacements.
        n: The number of items.

    Raises:
        ValueError: If a condition in null is absent.
    """
    absent = sorted(null.keys() - cond.keys())
    if absent:
        raise ValueError(
            f'the guided denoiser must be called with the condition {absent[0]!r}, towards which '
            'it guides; got no such condition'
        )
    rows = null if isinstance(null, NullRows) else None
    return {
        key: replace_by_null(key, null[key], value, n, rows) if key in null else value
        for key, value in cond.items()
    }


def check_strength(
    scale: float, interval: tuple[float, float] = (0.0, math.inf), nothing: str = '1'
) -> None:
    """Raise a ValueError for a scale that is not a finite number, or an invalid interval.

    Args:
        scale: The scale.
        interval: Noise levels (low, high].
        nothing: The scale that disables guidance, for the message.
    """
    check_number('scale', scale, hint=f'{nothing} disables guidance')
    check_interval('interval', interval)


def check_null(null: Any) -> None:
    """Raise a TypeError unless the replacements are a dict.

    Args:
        null: The replacements of conditions.
    """
    if not isinstance(null, Mapping):
        raise TypeError(
            "null must be a dict of conditions and their replacements, such as {'class_cond': 10}; "
            f'got {show_value(null)}'
        )


class TwoEstimates(DenoiserWrapper, ABC):
    """A guided denoiser made of two estimates.

    With scale 1, and outside the interval, only the denoiser itself is called.
    """

    scale: float
    interval: tuple[float, float]
    per_item = ('null',)

    def select_field(self, name: str, value: Any, items: Tensor, shape: Sequence[int]) -> Any:
        """Return the entries of an option for some items.

        Args:
            name: The option.
            value: Its value.
            items: The numbers of the items.
            shape: The shape of the batch.
        """
        return NullRows(value, items, shape[0])

    def __call__(self, x: Tensor, sigma: Tensor, **cond: Any) -> Tensor:
        if self.does_nothing() or all_outside(sigma, self.interval):
            return self.denoise(x, sigma, **cond)
        return self.pair(x, sigma, **cond)[0]

    def does_nothing(self) -> bool:
        """Return True if the guided estimate is the conditional one."""
        return self.scale == 1

    def pair(self, x: Tensor, sigma: Tensor, **cond: Any) -> tuple[Tensor, Tensor]:
        """Return the guided and the unconditional estimate.

        Outside the interval the conditional estimate is returned twice.

        Args:
            x: The noisy batch, [B, ...].
            sigma: Its noise levels, [B].
            **cond: Its conditions.
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
        """Return the conditional estimate, and the guided minus the conditional one at all levels.

        The interval is ignored: samplers that call this integrate the guidance over the part of a
        step inside the interval.

        Args:
            x: The noisy batch, [B, ...].
            sigma: Its noise levels, [B].
            **cond: Its conditions.
        """
        guided, denoised, _ = self.estimates(x, sigma, **cond)
        return denoised, guided - denoised

    @abstractmethod
    def estimates(self, x: Tensor, sigma: Tensor, **cond: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Return the guided, conditional and unconditional estimates, regardless of the interval.

        Args:
            x: The noisy batch, [B, ...].
            sigma: Its noise levels, [B].
            **cond: Its conditions.
        """


@dataclass(frozen=True)
class TwoConditions(TwoEstimates, ABC):
    """A guided denoiser called with its conditions, and with those in `null` replaced."""

    denoise: DenoiseFn
    null: Null
    scale: float
    interval: tuple[float, float]
    joined: bool

    def estimates(self, x: Tensor, sigma: Tensor, **cond: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Return the guided, the conditional and the unconditional estimate.

        Args:
            x: [B, ...].
            sigma: The noise levels.
            **cond: Conditions.
        """
        uncond, denoised = ask_all(
            self.denoise, x, sigma, [without(cond, self.null, len(x)), cond], self.joined
        )
        return self.guide(x, level_per_item(sigma, x), denoised, uncond), denoised, uncond

    @abstractmethod
    def guide(self, x: Tensor, sigma: Tensor, denoised: Tensor, uncond: Tensor) -> Tensor:
        """Combine the conditional and the unconditional estimate.

        Args:
            x: The noisy batch, [B, ...].
            sigma: Its noise levels, [B].
            denoised: The conditional estimate.
            uncond: The unconditional estimate.
        """


class BothEstimates(DenoiserWrapper, ABC):
    """A wrapper that changes every estimate of a denoiser in the same way.

    It has a `pair` if the denoiser has one.
    """

    @abstractmethod
    def estimates(
        self, ask: Callable[..., tuple[Tensor, ...]], x: Tensor, sigma: Tensor, **cond: Any
    ) -> tuple[Tensor, ...]:
        """Change the one or two estimates of ask(x, sigma, **cond).

        Args:
            ask: The denoiser, or its `pair`, returning a tuple.
            x: The noisy batch, [B, ...].
            sigma: Its noise levels, [B].
            **cond: Its conditions.
        """

    def __call__(self, x: Tensor, sigma: Tensor, **cond: Any) -> Tensor:
        return self.estimates(
            lambda *args, **cond: (self.denoise(*args, **cond),), x, sigma, **cond
        )[0]

    @property
    def pair(self) -> Callable[..., tuple[Tensor, Tensor]]:
        """Return the function for (guided, unconditional), both changed; needs a `pair`."""
        if not hasattr(self.denoise, 'pair'):
            self.__getattr__('pair')  # raises
        ask = self.denoise.pair  # type: ignore[attr-defined]

        def change_pair(x: Tensor, sigma: Tensor, **cond: Any) -> tuple[Tensor, Tensor]:
            guided, unconditional = self.estimates(ask, x, sigma, **cond)
            return guided, unconditional

        return change_pair


def dot_per_item(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner product of each item, [B, 1, ...].

    Args:
        a: A batch.
        b: A batch like it.
    """
    return (a * b).sum(dim=list(range(1, a.ndim)), keepdim=True)


def inside(sigma: Tensor, interval: tuple[float, float], ndim: int) -> Tensor:
    """Return a mask [B, 1, ...] of the items whose noise level is in (low, high].

    Args:
        sigma: The levels, [B].
        interval: (low, high].
        ndim: The number of dimensions of the mask.
    """
    low, high = interval
    return append_dims((sigma > low) & (sigma <= high), ndim)


def all_outside(sigma: Tensor, interval: tuple[float, float]) -> bool:
    """Return True if no item is in the interval, so that one evaluation is enough.

    Always False on devices other than the CPU, where the test would wait.

    Args:
        sigma: The levels, [B].
        interval: (low, high].
    """
    low, high = interval
    return (
        (low, high) != (0.0, math.inf)
        and sigma.is_cpu
        and not bool(((sigma > low) & (sigma <= high)).any())
    )
