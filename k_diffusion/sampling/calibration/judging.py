"""Choosing among fits and published recipes by noises that neither has seen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...core.protocols import DenoiseFn
from .least_squares import mean_squares
from .published import Published, ends_of
from .reference_runs import Teacher

#: From this share of the spread of the data on, an item has ended as something else.
ASTRAY = 0.25
#: Added to distances before they are compared, as a share of the spread: an eighth of a grey level
#: of 255, of data in [-1, 1].
FLOOR = 1e-3


class Verdict(NamedTuple):
    """Of some solvers [P]: the rms and the median of the distances to the converged ends, and
    how many items end as something else.
    """

    rms: Tensor
    median: Tensor
    astray: Tensor

    @classmethod
    def of(cls, ends: Tensor, teacher: Teacher) -> Verdict:
        """That on ends [P, B, ...]; a run that left the range of numbers is infinitely far."""
        squares = torch.cat(
            [mean_squares((end - teacher.ends).flatten(1)[None]) for end in ends]
        ).cpu()
        squares = squares.nan_to_num(math.inf)
        return cls(
            squares.mean(1).sqrt(),
            squares.median(1).values.sqrt(),
            (squares > (ASTRAY * teacher.std) ** 2).sum(1),
        )

    def scores(self, k: int, prefix: str = '') -> dict[str, float]:
        """The figures of one of the solvers by name."""
        return {f'{prefix}{name}': float(values[k]) for name, values in zip(self._fields, self)}


def judge_recipes(
    recipes: Sequence[Published], denoise: DenoiseFn, teacher: Teacher, batch_size: int
) -> tuple[Verdict, int]:
    """The figures of published recipes, and which is the best: whose larger ratio to the least
    of either is the smallest.
    """
    ends = ends_of(recipes, denoise, teacher.x, teacher.extra_args, batch_size)
    verdict = Verdict.of(ends, teacher)
    ratios = [
        (values + FLOOR * teacher.std) / (values.min() + FLOOR * teacher.std)
        for values in (verdict.rms, verdict.median)
    ]
    return verdict, int(torch.maximum(*ratios).nan_to_num(math.inf).argmin())


def choose_fit(fits: Verdict, bar: Mapping[str, float], std: float) -> tuple[int, bool]:
    """Which fit is the best, and whether it is nearer than the figures `bar` by both rms and
    median, with no more items astray.

    Among those that are nearer by both, rms^2 median decides (few items make the rms, so that a
    small lead in it is luck), else the larger of the two ratios. std: the spread of the data; what
    is below its FLOOR counts as nearer than any bar.
    """
    floor = FLOOR * std
    ratios = [
        (values + floor) / (bar[name] + floor)
        for name, values in (('rms', fits.rms), ('median', fits.median))
    ]
    nearer = (
        (fits.rms < max(bar['rms'], floor))
        & (fits.median < max(bar['median'], floor))
        & (fits.astray <= bar['astray'])
    )
    score = (
        (ratios[0] ** 2 * ratios[1]).masked_fill(~nearer, math.inf)
        if bool(nearer.any())
        else torch.maximum(*ratios)
    )
    best = int(score.nan_to_num(math.inf).argmin())
    return best, bool(nearer[best])
