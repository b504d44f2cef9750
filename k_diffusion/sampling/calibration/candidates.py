"""Many similar solvers run side by side from the same noise, for fits by finite differences."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ...core.protocols import DenoiseFn
from ..spectrum import Spectrum
from .bases import (
    CORRECTIONS,
    HISTORY,
    Number,
    Row,
    base_rows,
    distinct,
    enter,
    feature,
    gaussian_step,
    leave,
)
from .reference_runs import Teacher


class Students:
    """The solvers of one base with n model calls, as functions of their parameters theta.

    theta [T] (float64) holds the logarithms of the n steps in log sigma, then the corrections, n
    rows of CORRECTIONS[base].

    Args:
        denoise: The denoiser.
        teacher: Converged runs from the same noise.
        spectrum: The Gaussian of the data.
        base: A name of BASES.
        n: Number of model calls.
        batch_size: Number of items in one model call.
    """

    def __init__(
        self,
        denoise: DenoiseFn,
        teacher: Teacher,
        spectrum: Spectrum,
        base: str,
        n: int,
        batch_size: int,
    ) -> None:
        self.denoise, self.teacher, self.base, self.n, self.batch_size = (
            denoise,
            teacher,
            base,
            n,
            batch_size,
        )
        self.x = teacher.x
        self.data_spectrum, self.spectrum = spectrum, spectrum.like(self.x)
        self.variances, self.where = distinct(spectrum)
        #: the step in which each parameter first matters, and whether it is free (step i has i + 1
        #: values).
        self.first = [*range(n), *[i for i in range(1, n + 1) for _ in range(CORRECTIONS[base])]]
        self.free = [True] * n + [
            k % (1 + HISTORY) <= i + 1 for i in range(1, n + 1) for k in range(CORRECTIONS[base])
        ]

    def start(self, sigmas: Sequence[float]) -> Tensor:
        """Return the theta of the uncorrected base on the levels sigma_max, ..., sigma_n.

        Args:
            sigmas: The noise levels, descending.
        """
        steps = [math.log(math.log(high / low)) for high, low in itertools.pairwise(sigmas)]
        return torch.cat(
            [
                torch.tensor(steps, dtype=torch.float64),
                torch.zeros(self.n * CORRECTIONS[self.base], dtype=torch.float64),
            ]
        )

    def levels(self, theta: Tensor) -> list[float]:
        """Return the levels of a solver, from sigma_max to 0.

        Args:
            theta: Its parameters, [T].
        """
        falls = theta[: self.n].exp().cumsum(0)
        return [self.teacher.sigma_max, *(self.teacher.sigma_max * (-falls).exp()).tolist(), 0.0]

    def corrections(self, theta: Tensor) -> list[list[float]]:
        """Return the corrections of a solver, a row for each step.

        Args:
            theta: Its parameters, [T].
        """
        return theta[self.n :].view(self.n, CORRECTIONS[self.base]).tolist()

    @torch.no_grad()
    def run(
        self, thetas: Sequence[Tensor], first: Sequence[int] | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the levels [P] and D [P, B, ...] of each model call, and last the ends at level 0.

        Args:
            thetas: The parameters of P solvers.
            first: The step from which each solver differs from solver 0, ascending. Steps that two
                have in common are computed once.
        """
        first = [0] * len(thetas) if first is None else first
        tables = [
            base_rows(self.base, self.variances, self.levels(theta), self.corrections(theta))
            for theta in thetas
        ]
        P, active = len(thetas), _count(first, 0)
        steps = [
            gaussian_step(self.spectrum, self.x, self.teacher.sigma_max, table[0].sigma)
            for table in tables[:active]
        ]
        y = enter(self.base, self.spectrum, torch.cat(steps)).view(active, *self.x.shape)
        history = [self._first_feature().expand_as(y)]
        for i in range(self.n):
            rows = [table[i] for table in tables]
            denoised, new = self._features(y, rows[:active])
            yield (
                torch.tensor([row.sigma for row in rows], dtype=torch.float64),
                _pad_with_first(denoised, P),
            )
            active = _count(first, i + 1)
            y, *history = (
                _pad_with_first(value, active) for value in (y, new, *history[: HISTORY - 1])
            )
            y = self._combine(y, history, rows[:active])
        yield (
            torch.zeros(P, dtype=torch.float64),
            leave(self.base, self.spectrum, y.flatten(0, 1)).view_as(y),
        )

    def ends(self, thetas: Sequence[Tensor]) -> Tensor:
        """Return the ends [P, B, ...] of some solvers.

        Args:
            thetas: The parameters of P solvers.
        """
        *_, (_, ends) = self.run(thetas)
        return ends

    def _first_feature(self) -> Tensor:
        sigma = self.x.new_tensor(self.teacher.sigma_max)
        denoised = self.spectrum.denoise(self.x, self.teacher.sigma_max)
        return feature(
            self.base, self.spectrum, enter(self.base, self.spectrum, self.x), denoised, sigma
        )

    def _features(self, y: Tensor, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
        """Return D and F of the solvers y [P, B, ...].

        The model is called on at most batch_size items at a time.
        """
        flat, B = y.flatten(0, 1), len(self.x)
        x = leave(self.base, self.spectrum, flat)
        sigma = x.new_tensor([row.sigma for row in rows]).repeat_interleave(B)
        cond = {
            key: value.repeat(len(rows), *[1] * (value.ndim - 1))
            for key, value in self.teacher.extra_args.items()
        }
        denoised = torch.empty_like(x)
        for part in (
            slice(start, start + self.batch_size) for start in range(0, len(x), self.batch_size)
        ):
            denoised[part] = self.denoise(
                x[part], sigma[part], **{key: value[part] for key, value in cond.items()}
            )
        return denoised.view_as(y), feature(
            self.base, self.spectrum, flat, denoised, sigma
        ).view_as(y)

    def _combine(self, y: Tensor, history: Sequence[Tensor], rows: Sequence[Row]) -> Tensor:
        y = self._stack([row.a for row in rows]) * y
        for j, past in enumerate(history[: len(rows[0].weights)]):
            y.addcmul_(self._stack([row.weights[j] for row in rows]), past)
        return y

    def _stack(self, values: Sequence[Number]) -> Tensor:
        """Stack one number, or tensor over the variances, per solver, to multiply y [P, B, ...]."""
        if not any(isinstance(value, Tensor) for value in values):
            return self.x.new_tensor(values).view(-1, *[1] * self.x.ndim)
        tensors = torch.stack(
            [
                torch.as_tensor(value, dtype=torch.float64).expand_as(self.variances)
                for value in values
            ]
        )
        spread = tensors[:, self.where].to(self.x)
        return spread.view(len(values), *[1] * (self.x.ndim - self.where.ndim), *self.where.shape)


def _count(first: Sequence[int], step: int) -> int:
    """Return how many solvers differ from solver 0 by this step, including solver 0."""
    return max(1, sum(begins <= step for begins in first))


def _pad_with_first(values: Tensor, count: int) -> Tensor:
    """Return values [A, ...] with copies of solver 0 appended, up to `count`."""
    missing = count - len(values)
    return (
        values
        if missing <= 0
        else torch.cat([values, values[:1].expand(missing, *values.shape[1:])])
    )
