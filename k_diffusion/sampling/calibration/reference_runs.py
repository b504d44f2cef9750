"""Converged runs of the probability flow: their ends and the estimates along the way."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ...core.protocols import DenoiseFn
from ...core.tensors import append_dims, mean_per_item
from ..samplers.multistep import sample_zeab

KNOTS = 48
#: Number of steps between two knots: in the first runs, and at most.
COARSEST, FINEST = 2, 32
#: Runs that move by more than this share of the move before have converged as far as possible.
STALLED = 0.7


class Teacher:
    """Converged runs from x [B, ...] at sigma_max: their ends, and D along the paths.

    Steps are halved until nine of ten ends move by less than `tolerance` times the spread of the
    data, or the moves no longer shrink. A warning is given if that needs more than 1,536 steps. The
    attribute `change` is the last move of the ends, as a share of the spread.

    Args:
        denoise: The denoiser.
        x: Noise at the level sigma_max.
        sigma_min: The level from which the runs step to 0.
        sigma_max: The first level.
        extra_args: Conditions, with an entry for each item.
        tolerance: The largest move of converged ends, as a share of the spread.
        batch_size: Number of items in one model call.
        callback: Called after each set of runs.
        tested: Number of items, the first ones, that decide about convergence; the others use the
            same steps.

    Raises:
        ValueError: If the levels are not 0 < sigma_min < sigma_max < inf.
    """

    def __init__(
        self,
        denoise: DenoiseFn,
        x: Tensor,
        sigma_min: float,
        sigma_max: float,
        extra_args: Mapping[str, Any] | None = None,
        tolerance: float = 1e-3,
        batch_size: int = 256,
        callback: Callable[[], Any] | None = None,
        tested: int | None = None,
    ) -> None:
        if not 0 < sigma_min < sigma_max < math.inf:
            raise ValueError(
                'sigma_min and sigma_max must satisfy 0 < sigma_min < sigma_max < inf; got '
                f'{sigma_min} and {sigma_max}'
            )
        self.x, self.extra_args, self.sigma_min, self.sigma_max = (
            x,
            dict(extra_args or {}),
            sigma_min,
            sigma_max,
        )
        self.levels = karras_levels(KNOTS + 1, sigma_min, sigma_max)
        self.log_snr = torch.tensor(
            [-math.log(sigma) for sigma in self.levels], dtype=torch.float64
        )
        first = slice(0, len(x) if tested is None else tested)
        self.change, finer, before = math.inf, COARSEST, torch.zeros_like(x[first])
        while True:
            self.ends, self.denoised = self._run_all(denoise, first, finer, batch_size)
            self.std = self.ends.double().std().item()
            distance = mean_per_item((self.ends - before).square()).double().sqrt().quantile(
                0.9
            ).item() / max(self.std, 1e-12)
            stalled, self.change = (
                distance > STALLED * self.change,
                math.inf if finer == COARSEST else distance,
            )
            before = self.ends
            if callback is not None:
                callback()
            if finer == FINEST or self.change < tolerance or stalled:
                break
            finer *= 2
        if first.stop < len(x):
            ends, denoised = self._run_all(denoise, slice(first.stop, None), finer, batch_size)
            self.ends, self.denoised = (
                torch.cat([self.ends, ends]),
                torch.cat([self.denoised, denoised], 1),
            )
        if not self.change < tolerance:
            warnings.warn(
                f'the converged runs still moved by {self.change:.1e} of the spread of the data '
                'from '
                f'{KNOTS * finer // 2} to {KNOTS * finer} steps; the calibration cannot be more '
                'accurate than that',
                stacklevel=2,
            )

    def _run_all(
        self, denoise: DenoiseFn, items: slice, finer: int, batch_size: int
    ) -> tuple[Tensor, Tensor]:
        """Return the ends of some items, and D at the knots [K, B, ...]."""
        begin, end, _ = items.indices(len(self.x))
        runs = [
            self._run(denoise, slice(start, min(start + batch_size, end)), finer)
            for start in range(begin, end, batch_size)
        ]
        return torch.cat([end for end, _ in runs]), torch.cat([path for _, path in runs], 1)

    def _run(self, denoise: DenoiseFn, part: slice, finer: int) -> tuple[Tensor, Tensor]:
        """Return the ends of a part of the items, and D at the knots [K, b, ...].

        `finer` is the number of steps between two knots.
        """
        estimates: list[Tensor] = []
        lambdas = torch.cat(
            [
                torch.linspace(0, 1, finer + 1, dtype=torch.float64)[:-1] * (b - a) + a
                for a, b in zip(self.log_snr[:-1], self.log_snr[1:])
            ]
        )
        sigmas = [*(-lambdas).exp().tolist(), self.levels[-1], 0.0]

        def keep(info: dict[str, Any]) -> None:
            if info['i'] % finer == 0:
                estimates.append(info['denoised'].clone())

        here = {key: value[part] for key, value in self.extra_args.items()}
        end = sample_zeab(denoise, self.x[part], sigmas, here, keep, disable=True)
        return end, torch.stack(estimates)

    def estimates(self, sigmas: Tensor) -> Tensor:
        """Return D [P, B, ...] on the paths at P levels, by cubic interpolation.

        Args:
            sigmas: The levels [P], float64.
        """
        where = (-sigmas.log()).clamp(self.log_snr[0], self.log_snr[-1])
        first = (torch.searchsorted(self.log_snr, where, right=True) - 2).clamp(
            0, len(self.log_snr) - 4
        )
        nodes = self.log_snr[first[:, None] + torch.arange(4)]
        estimates = torch.zeros_like(self.denoised[:1])
        for j in range(4):  # cubic interpolation
            weight = torch.stack(
                [(where - nodes[:, k]) / (nodes[:, j] - nodes[:, k]) for k in range(4) if k != j]
            ).prod(0)
            estimates = (
                estimates
                + append_dims(weight.to(self.ends), self.denoised.ndim)
                * self.denoised[(first + j).to(self.ends.device)]
            )
        return estimates

    def part(self, items: slice) -> Teacher:
        """Return the runs of some of the items.

        Args:
            items: Their indices.
        """
        copy = object.__new__(Teacher)
        copy.__dict__ = {
            **self.__dict__,
            'x': self.x[items],
            'ends': self.ends[items],
            'denoised': self.denoised[:, items],
            'extra_args': {key: value[items] for key, value in self.extra_args.items()},
        }
        return copy


def karras_levels(n: int, low: float, high: float) -> list[float]:
    """Return n levels from high to low, evenly spaced in sigma^(1/7).

    Args:
        n: Number of levels.
        low: The last level.
        high: The first level.

    References:
        Karras et al. (2022), arXiv:2206.00364.
    """
    ramp = torch.linspace(0, 1, n, dtype=torch.float64)
    return ((high ** (1 / 7) + ramp * (low ** (1 / 7) - high ** (1 / 7))) ** 7).tolist()
