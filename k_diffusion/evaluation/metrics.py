"""The measures of sample quality by name, each from features of samples and of a reference set."""
from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor

from ..core.registry import Registry
from .frechet import fid, fid_infinity
from .intervals import bootstrap
from .kernel import cmmd, kid_with_error
from .manifold import density_coverage, precision_recall

FEW = 10_000    # below so many samples the Frechet distance cannot be compared with published ones


@dataclass(frozen=True)
class Metric:
    """What is measured: (samples [N, D], reference [M, D]) -> values by name, and in words."""

    name: str
    function: Callable[[Tensor, Tensor, int], dict[str, float]]
    meaning: str


#: name -> Metric
METRICS: Registry[Metric] = Registry('metric')


def metric(name: str, meaning: str) -> Callable[[Callable[[Tensor, Tensor, int], dict[str, float]]], Metric]:
    """Enters a function (samples, reference, bootstrap replicates) -> values by name in METRICS."""
    def enter(function: Callable[[Tensor, Tensor, int], dict[str, float]]) -> Metric:
        return METRICS.register(name)(Metric(name, function, meaning))
    return enter


@metric('fid', 'Frechet distance; with Inception features, FID')
def _fid(x: Tensor, y: Tensor, replicates: int) -> dict[str, float]:
    values = {'fid': fid(x, y).item()}
    if replicates:
        stderr, (low, high) = bootstrap(lambda rows: fid(rows, y).item(), x, replicates)
        values |= {'fid_stderr': stderr, 'fid_low': low, 'fid_high': high}
    return values


@metric('fid_infinity', 'the Frechet distance that endless samples would have')
def _fid_infinity(x: Tensor, y: Tensor, replicates: int) -> dict[str, float]:
    value, stderr = fid_infinity(x, y)
    return {'fid_infinity': value, 'fid_infinity_stderr': stderr}


@metric('kid', 'kernel distance, not biased by small sets; with Inception features, KID')
def _kid(x: Tensor, y: Tensor, replicates: int) -> dict[str, float]:
    value, stderr = kid_with_error(x, y)
    return {'kid': value, 'kid_stderr': stderr}


@metric('precision_recall', 'the share of samples like the data, and of data like the samples')
def _precision_recall(x: Tensor, y: Tensor, replicates: int) -> dict[str, float]:
    return dict(zip(('precision', 'recall'), precision_recall(*_as_many(x, y))))


@metric('density_coverage', 'the same, less moved by single odd pictures')
def _density_coverage(x: Tensor, y: Tensor, replicates: int) -> dict[str, float]:
    return dict(zip(('density', 'coverage'), density_coverage(*_as_many(x, y))))


@metric('floor', 'the Frechet distance that as many real pictures have to the rest of the reference set: what perfect samples score')
def _floor(x: Tensor, y: Tensor, replicates: int) -> dict[str, float]:
    if len(y) < 2 * len(x):
        raise ValueError(f'floor compares {len(x):,} pictures of the reference set with the rest of it, and it has {len(y):,}; '
                         'measure it with fewer samples (-n)')
    return {'floor': fid(y[:len(x)], y[len(x):]).item()}


@metric('cmmd', 'Gaussian kernel distance of unit-length embeddings, times 1000; with CLIP features, CMMD')
def _cmmd(x: Tensor, y: Tensor, replicates: int) -> dict[str, float]:
    return {'cmmd': cmmd(x, y).item()}


def _as_many(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """As many of one as of the other: these shares depend on the numbers, and are comparable at equal ones."""
    n = min(len(x), len(y))
    return x[:n], y[:n]


def measure(samples: Tensor, reference: Tensor, names: Iterable[str] = ('fid', 'kid'), replicates: int = 0) -> dict[str, float]:
    """The values of metrics, named in METRICS, of features samples [N, D] against reference [M, D].

    replicates: of the bootstrap, which gives the Frechet distance a standard error and a 95 % interval; 0: none.
    """
    values: dict[str, float] = {}
    for name in names:
        values |= METRICS[name].function(samples, reference, replicates)
    return values


def caution(n: int) -> str | None:
    """A sentence where n samples are too few for a Frechet distance that can be compared with others."""
    if n >= FEW:
        return None
    return (f'{n:,} samples are fewer than {FEW:,}, so the Frechet distance is biased upward: compare it only at equal numbers, '
            'or look at fid_infinity and kid')
