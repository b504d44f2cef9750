"""Choosing among fits and published recipes on noise used by neither."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...core.protocols import DenoiseFn
from .least_squares import mean_squares
from .published import Published, run_recipes
from .reference_runs import Teacher

#: An item farther than this share of the spread of the data has ended as something else.
ASTRAY = 0.25
#: Added to distances before comparisons, as a share of the spread: an eighth of a grey level of 255
#: for data in [-1, 1].
FLOOR = 1e-3


class Verdict(NamedTuple):
    """The distances of solvers [P] to the converged ends.

    Attributes:
        rms: Root mean square over items.
        median: Median over items.
        astray: Number of items that end as something else.
    """

    rms: Tensor
    median: Tensor
    astray: Tensor

    @classmethod
    def of(cls, ends: Tensor, teacher: Teacher) -> Verdict:
        """Measure the ends of P solvers; a run that overflowed is infinitely far.

        Args:
            ends: [P, B, ...].
            teacher: The converged runs.
        """
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
        """Return the figures of one solver by name.

        Args:
            k: Its index.
            prefix: Put before each name.
        """
        return {f'{prefix}{name}': float(values[k]) for name, values in zip(self._fields, self)}


def judge_recipes(
    recipes: Sequence[Published], denoise: DenoiseFn, teacher: Teacher, batch_size: int
) -> tuple[Verdict, int]:
    """Measure published recipes and find the best one.

    The best is the one whose larger ratio to the least rms and the least median is smallest.

    Args:
        recipes: The recipes.
        denoise: The denoiser.
        teacher: The converged runs.
        batch_size: Number of items in one model call.

    Returns:
        The figures, and the index of the best.
    """
    ends = run_recipes(recipes, denoise, teacher.x, teacher.extra_args, batch_size)
    verdict = Verdict.of(ends, teacher)
    ratios = [
        (values + FLOOR * teacher.std) / (values.min() + FLOOR * teacher.std)
        for values in (verdict.rms, verdict.median)
    ]
    return verdict, int(torch.maximum(*ratios).nan_to_num(math.inf).argmin())


def choose_fit(fits: Verdict, bar: Mapping[str, float], std: float) -> tuple[int, bool]:
    """Return the best fit, and True if it is nearer than the figures in `bar`.

    Nearer means a smaller rms and a smaller median with no more items astray. Among fits that are
    nearer in both, the smallest rms^2 median is the best (few items determine the rms, so that a
    small lead in it is luck); else the smallest of the larger ratios.

    Args:
        fits: The figures of the fits.
        bar: The figures to beat.
        std: The spread of the data; distances below FLOOR of it count as nearer than any bar.
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
