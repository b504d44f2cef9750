"""Many solvers that differ a little, run side by side from the same noises: what a fit by finite
differences needs.
"""

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
    """The solvers of one base with n model calls, as functions of their parameters theta [T]
    (float64).

    theta: the logarithms of the n steps in log sigma, then the corrections, n rows of
    CORRECTIONS[base].
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
        self.spectrum_given, self.spectrum = spectrum, spectrum.like(self.x)
        self.variances, self.where = distinct(spectrum)
        #: the step in which each parameter first matters, and whether it is free (step i has i + 1
        #: values).
        self.first = [*range(n), *[i for i in range(1, n + 1) for _ in range(CORRECTIONS[base])]]
        self.free = [True] * n + [
            k % (1 + HISTORY) <= i + 1 for i in range(1, n + 1) for k in range(CORRECTIONS[base])
        ]

    def start(self, sigmas: Sequence[float]) -> Tensor:
        """theta of the base itself on the levels sigma_max, ..., sigma_n."""
        steps = [math.log(math.log(high / low)) for high, low in itertools.pairwise(sigmas)]
        return torch.cat(
            [
                torch.tensor(steps, dtype=torch.float64),
                torch.zeros(self.n * CORRECTIONS[self.base], dtype=torch.float64),
            ]
        )

    def levels(self, theta: Tensor) -> list[float]:
        """The levels of a solver, sigma_max first and 0 last."""
        falls = theta[: self.n].exp().cumsum(0)
        return [self.teacher.sigma_max, *(self.teacher.sigma_max * (-falls).exp()).tolist(), 0.0]

    def corrections(self, theta: Tensor) -> list[list[float]]:
        return theta[self.n :].view(self.n, CORRECTIONS[self.base]).tolist()

    @torch.no_grad()
    def run(
        self, thetas: Sequence[Tensor], first: Sequence[int] | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """For each model call its levels [P] and D [P, B, ...], and last the ends [P, B, ...] with
        levels 0.

        first: the step from which each solver differs from solver 0, ascending; what two have in
        common is computed once.
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
                _grown(denoised, P),
            )
            active = _count(first, i + 1)
            y, *history = (_grown(value, active) for value in (y, new, *history[: HISTORY - 1]))
            y = self._combined(y, history, rows[:active])
        yield (
            torch.zeros(P, dtype=torch.float64),
            leave(self.base, self.spectrum, y.flatten(0, 1)).view_as(y),
        )

    def ends(self, thetas: Sequence[Tensor]) -> Tensor:
        """The ends [P, B, ...] of some solvers."""
        *_, (_, ends) = self.run(thetas)
        return ends

    def _first_feature(self) -> Tensor:
        sigma = self.x.new_tensor(self.teacher.sigma_max)
        denoised = self.spectrum.denoise(self.x, self.teacher.sigma_max)
        return feature(
            self.base, self.spectrum, enter(self.base, self.spectrum, self.x), denoised, sigma
        )

    def _features(self, y: Tensor, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
        """D and F of the solvers y [P, B, ...], the model called on portions of at most
        batch_size items.
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

    def _combined(self, y: Tensor, history: Sequence[Tensor], rows: Sequence[Row]) -> Tensor:
        y = self._stacked([row.a for row in rows]) * y
        for j, past in enumerate(history[: len(rows[0].weights)]):
            y.addcmul_(self._stacked([row.weights[j] for row in rows]), past)
        return y

    def _stacked(self, values: Sequence[Number]) -> Tensor:
        """One number, or tensor over the variances, per solver, shaped to multiply y [P, B,
        ...].
        """
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
    """How many solvers differ from solver 0 by this step (which counts itself)."""
    return max(1, sum(begins <= step for begins in first))


def _grown(values: Tensor, count: int) -> Tensor:
    """values [A, ...] with solver 0 repeated, so that there are `count`."""
    missing = count - len(values)
    return (
        values
        if missing <= 0
        else torch.cat([values, values[:1].expand(missing, *values.shape[1:])])
    )
