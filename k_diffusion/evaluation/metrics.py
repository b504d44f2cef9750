"""Metrics of sample quality by name, from features of samples and of a reference set."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..core.registry import Registry
from .arrays import as_features, whole_number
from .frechet import fid, fid_infinity, fid_with_error
from .intervals import BLOCKS, interval
from .kernel import cmmd, kid_with_error
from .manifold import density_coverage, precision_recall

FEW = 10_000  # with fewer samples the Frechet distance is not comparable with published ones


@dataclass(frozen=True)
class Metric:
    """A metric: (samples [N, D], reference [M, D], blocks) -> values by name.

    Attributes:
        name: Its name.
        function: The function.
        meaning: A description.
    """

    name: str
    function: Callable[[Tensor, Tensor, int], dict[str, float]]
    meaning: str


#: The metrics by name.
METRICS: Registry[Metric] = Registry('metric')


def metric(
    name: str, meaning: str
) -> Callable[[Callable[[Tensor, Tensor, int], dict[str, float]]], Metric]:
    """Register a function (samples, reference, blocks of the jackknife) -> values in METRICS.

    Args:
        name: The name of the metric.
        meaning: A description.

    Returns:
        A decorator.
    """

    def enter(function: Callable[[Tensor, Tensor, int], dict[str, float]]) -> Metric:
        return METRICS.register(name)(Metric(name, function, meaning))

    return enter


@metric('fid', 'Frechet distance; with Inception features, FID')
def _fid(x: Tensor, y: Tensor, blocks: int) -> dict[str, float]:
    if not blocks or len(x) < 4:
        return {'fid': fid(x, y).item()}
    value, unbiased, stderr = fid_with_error(x, y, blocks)
    freedom = min(blocks, len(x) // 2) - 1
    return _with_interval('fid', value, stderr, freedom) | _with_interval(
        'fid_unbiased', unbiased, stderr, freedom
    )


@metric('fid_infinity', 'the Frechet distance of infinitely many samples')
def _fid_infinity(x: Tensor, y: Tensor, blocks: int) -> dict[str, float]:
    value, stderr = fid_infinity(x, y)
    return _with_interval('fid_infinity', value, stderr, min(BLOCKS, len(x) // 2) - 1)


@metric('kid', 'kernel distance, not biased by small sets; with Inception features, KID')
def _kid(x: Tensor, y: Tensor, blocks: int) -> dict[str, float]:
    value, stderr = kid_with_error(x, y)
    return _with_interval('kid', value, stderr, min(BLOCKS, len(x) // 2, len(y) // 2) - 1)


@metric('precision_recall', 'the share of samples like the data, and of data like the samples')
def _precision_recall(x: Tensor, y: Tensor, blocks: int) -> dict[str, float]:
    return dict(zip(('precision', 'recall'), precision_recall(*_as_many(x, y))))


@metric('density_coverage', 'the same, less affected by single outliers')
def _density_coverage(x: Tensor, y: Tensor, blocks: int) -> dict[str, float]:
    return dict(zip(('density', 'coverage'), density_coverage(*_as_many(x, y))))


@metric(
    'floor',
    'the Frechet distance of as many real images to the rest of the reference set: the score of '
    'perfect samples',
)
def _floor(x: Tensor, y: Tensor, blocks: int) -> dict[str, float]:
    if len(y) < 2 * len(x):
        raise ValueError(
            f'floor needs a reference set of at least {2 * len(x):,} images to compare {len(x):,} '
            'of '
            f'them with the rest; got {len(y):,}. Use fewer samples (-n)'
        )
    return {'floor': fid(y[: len(x)], y[len(x) :]).item()}


@metric(
    'cmmd',
    'Gaussian kernel distance of unit-length embeddings, times 1000; with CLIP features, CMMD',
)
def _cmmd(x: Tensor, y: Tensor, blocks: int) -> dict[str, float]:
    return {'cmmd': cmmd(x, y).item()}


def _with_interval(name: str, value: float, stderr: float, freedom: int) -> dict[str, float]:
    """Return a value with its standard error and 95 % interval."""
    low, high = interval(value, stderr, freedom)
    return {name: value, f'{name}_stderr': stderr, f'{name}_low': low, f'{name}_high': high}


def _as_many(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return equal numbers of rows of both sets, for which these shares are comparable."""
    n = min(len(x), len(y))
    return x[:n], y[:n]


def measure(
    samples: Any, reference: Any, names: str | Iterable[str] = ('fid', 'kid'), blocks: int = 0
) -> dict[str, float]:
    """Compute metrics of samples against a reference set.

    Args:
        samples: Features of samples, independent draws, [N, D].
        reference: Features of the reference set, [M, D].
        names: One or several names in METRICS.
        blocks: Number of parts of the jackknife that gives the Frechet distance a standard error,
            an unbiased value and 95 % intervals (20 are usual, at the cost of as many distances); 0
            for none.

    Returns:
        Values by name: NAME, and with an error also NAME_stderr, NAME_low and NAME_high, the 95 %
            interval of NAME. It covers for fid the mean over draws of as many samples; for
            fid_unbiased and fid_infinity the distance of infinitely many samples to this reference;
            for kid, which includes the draw of the reference, the discrepancy of the distributions.
    """
    x, y = as_features(samples, 'samples'), as_features(reference, 'reference')
    if blocks:
        whole_number(blocks, 'blocks', 2)
    values: dict[str, float] = {}
    for name in [names] if isinstance(names, str) else names:
        values |= METRICS[name].function(x, y, blocks)
    return values


def caution(n: int) -> str | None:
    """Return a warning if n samples are too few for a comparable Frechet distance, else None.

    Args:
        n: Number of samples.
    """
    if whole_number(n, 'n', 0) >= FEW:
        return None
    return (
        f'{n:,} samples are fewer than {FEW:,}, so the Frechet distance is biased upward; compare '
        'it at equal numbers only, or use fid_infinity and kid'
    )
