"""Several conditions asked of one denoiser: in one call on a larger batch, or one after another."""
from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..core.protocols import DenoiseFn
from ..core.tensors import append_dims

Null = Mapping[str, Tensor | float | int]


def ask_all(denoise: DenoiseFn, x: Tensor, sigma: Tensor, conditions: Sequence[Mapping[str, Any]], joined: bool = True) -> list[Tensor]:
    """D(x | cond) for each of the conditions, each [B, ...].

    Joined, they are one call on a batch as many times as large, for which their tensors must be of the same shapes; split, the
    calls follow one another and take no more memory than one.
    """
    if not joined or len(conditions) == 1:
        return [denoise(x, sigma, **cond) for cond in conditions]
    n = len(conditions)
    cond = {key: _joined(key, [c[key] for c in conditions]) for key in conditions[0]}
    return list(denoise(x.repeat(n, *[1] * (x.ndim - 1)), sigma.repeat(n), **cond).chunk(n))


def _joined(key: str, values: Sequence[Any]) -> Any:
    if not isinstance(values[0], Tensor):
        return values[0]
    if len({value.shape for value in values}) > 1:
        shapes = ', '.join(str(list(value.shape)) for value in values)
        raise ValueError(f'the condition {key!r} comes in the shapes {shapes}, which cannot be one batch; '
                         'pad them to one length, or ask for them one after another with joined=False')
    return torch.cat(list(values))


def without(cond: Mapping[str, Any], null: Null) -> dict[str, Any]:
    """The conditions with those that `null` names taken away: one value for every item, or a tensor of one item's shape."""
    absent = sorted(null.keys() - cond.keys())
    if absent:
        raise ValueError(f'the guided denoiser was called without {absent[0]!r}, which it is to guide towards; pass it as a condition')
    return {key: _null(key, null[key], value) if key in null else value for key, value in cond.items()}


def _null(key: str, value: Tensor | float | int, like: Any) -> Any:
    if not isinstance(like, Tensor):
        return value
    value = torch.as_tensor(value, dtype=like.dtype, device=like.device)
    if value.ndim and value.shape != like.shape[1:] and value.shape != like.shape:
        raise ValueError(f'what stands for no {key!r} has the shape {list(value.shape)}, and an item of the condition has '
                         f'{list(like.shape[1:])}; give a tensor of that shape, or one number')
    return value.expand_as(like)


def check_strength(scale: float, interval: tuple[float, float] = (0., math.inf), nothing: str = '1') -> None:
    """Refuses a scale that is not a number, and what is no interval of noise levels."""
    if not math.isfinite(scale):
        raise ValueError(f'the guidance scale is {scale}; it must be a finite number ({nothing} is no guidance)')
    low, high = interval
    if not 0 <= low < high:
        raise ValueError(f'the guidance interval is {interval}; it must hold two noise levels, the lower one first')


class TwoEstimates(ABC):
    """A guided denoiser made of two estimates: with scale 1, and outside the interval, the denoiser is asked alone."""

    denoise: DenoiseFn
    scale: float
    interval: tuple[float, float]

    def __call__(self, x: Tensor, sigma: Tensor, **cond: Any) -> Tensor:
        if self.scale == 1 or all_outside(sigma, self.interval):
            return self.denoise(x, sigma, **cond)
        return self.pair(x, sigma, **cond)[0]

    @abstractmethod
    def pair(self, x: Tensor, sigma: Tensor, **cond: Any) -> tuple[Tensor, Tensor]:
        """(guided, unconditional)."""


def inside(sigma: Tensor, interval: tuple[float, float], ndim: int) -> Tensor:
    """Which items [B, 1, ...] have their noise level in (low, high]."""
    low, high = interval
    return append_dims((sigma > low) & (sigma <= high), ndim)


def all_outside(sigma: Tensor, interval: tuple[float, float]) -> bool:
    """Whether no item is in the interval, so that one evaluation serves. Only on the CPU, where looking costs no wait."""
    low, high = interval
    return (low, high) != (0., math.inf) and sigma.is_cpu and not bool(((sigma > low) & (sigma <= high)).any())
