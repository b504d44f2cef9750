"""Frechet distance between Gaussians fitted to features: with Inception features, FID.

Heusel et al. 2017, arXiv:1706.08500. |m_x - m_y|^2 + tr S_x + tr S_y - 2 tr (S_x S_y)^1/2, where
the last trace is the nuclear norm (the sum of singular values) of A_x A_y^T for any factors S = A^T
A: no square root of a matrix, and nothing to add to it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..core.random import generator
from .arrays import as_floats, as_pair, whole_number
from .intervals import BLOCKS, jackknife
from .moments import Moments


def fid(x: Any, y: Any, eps: float = 1e-8) -> Tensor:
    """The Frechet distance of features x [N, D] and y [M, D], in float64; gradients flow to both.

    `eps` is not needed any more and has no effect.
    """
    x, y = as_pair(x, y)
    return _distance((x.mean(0), _factor(x)), (y.mean(0), _factor(y)))


def frechet_distance(x: Moments, y: Moments) -> Tensor:
    """The same from moments, when the features themselves are too many to keep."""
    for name, moments in ('x', x), ('y', y):
        if not isinstance(moments, Moments):
            raise TypeError(
                f'{name} must be Moments of features; got a {type(moments).__name__}: take '
                'K.evaluation.Moments.of(features)'
            )
    if x.n and y.n and len(x.mean) != len(y.mean):
        raise ValueError(
            f'x and y must be moments of features of one width; got {len(x.mean)} and '
            f'{len(y.mean)} numbers: '
            'use one extractor for both'
        )
    return _distance((x.mean, _root(x.covariance)), (y.mean, _root(y.covariance)))


def fid_with_error(x: Any, y: Any, blocks: int = BLOCKS) -> tuple[float, float, float]:
    """Return (fid(x, y), the same without the bias of few samples, the standard error of both),
    over the draw of x; y is taken as it is.

    A jackknife over `blocks` parts of x, which takes away what falls as 1 / N (Miller 1974,
    doi:10.1093/biomet/61.1.1). With student_quantile the error gives the interval of fid for the
    mean over draws of as many samples, and that of the second value for the distance of endless
    samples.
    """
    x, y = as_pair(x, y)
    reference = y.mean(0), _factor(y)
    return jackknife(
        lambda rows: _distance((rows.mean(0), _factor(rows)), reference).item(), x, blocks
    )


def fid_infinity(
    x: Any, y: Any, points: int = 10, smallest: float = 0.3, seed: int = 0
) -> tuple[float, float]:
    """(the distance that endless samples x would have, its standard error), y taken as it is.

    The distance of n samples is too large by an amount that falls as 1/n: a line in 1/n through
    `points` sizes from the share `smallest` of x to all of it, evenly spaced in 1/n, ends there
    (Chong and Forsyth 2020, arXiv:1911.07023). Each size is a random part of x; the error is that
    of the line's end and that of the draw of x (of fid_with_error) together.
    """
    x, y = as_pair(x, y)
    whole_number(points, 'points', 3)
    if not 0 < smallest < 1 or len(x) * smallest < 2:
        raise ValueError(
            f'smallest must be a share in (0, 1) that leaves 2 samples; got {smallest} of '
            f'{len(x)}: give more samples'
        )
    order = generator(seed, 'fid infinity')
    sizes = [round(len(x) / u) for u in torch.linspace(1 / smallest, 1, points).tolist()]
    reference = y.mean(0), _factor(y)
    values = []
    for size in sizes:
        part = x[torch.randperm(len(x), generator=order)[:size].to(x.device)]
        values.append(_distance((part.mean(0), _factor(part)), reference).item())
    value, of_line = intercept([1 / size for size in sizes], values)
    return value, math.hypot(of_line, fid_with_error(x, y)[2])


def intercept(u: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """The value at u = 0 of the least squares line, and its standard error."""
    design = torch.stack(
        [torch.ones(len(u), dtype=torch.float64), torch.tensor(u, dtype=torch.float64)], 1
    )
    target = torch.tensor(values, dtype=torch.float64)
    inverse = torch.linalg.inv(design.T @ design)
    line = inverse @ (design.T @ target)
    variance = (target - design @ line).square().sum() / (len(u) - 2)
    return line[0].item(), (variance * inverse[0, 0]).sqrt().item()


def _distance(x: tuple[Tensor, Tensor], y: tuple[Tensor, Tensor]) -> Tensor:
    """From means and factors [K, D] of the covariances."""
    (mean_x, a), (mean_y, b) = x, y
    cross = torch.linalg.svdvals(a @ b.T).sum()
    return (mean_x - mean_y).square().sum() + a.square().sum() + b.square().sum() - 2 * cross


def _factor(features: Tensor) -> Tensor:
    """A [K, D], K at most D, with A^T A the covariance."""
    centred = (features - features.mean(0)) / (len(features) - 1) ** 0.5
    tall = (
        len(centred) > centred.shape[1] and not centred.requires_grad
    )  # (the triangular factor alone knows no derivative)
    return torch.linalg.qr(centred, mode='r')[1] if tall else centred


def _root(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    return values.clamp_min(0).sqrt()[:, None] * vectors.T


def sqrtm_eig(a: Any) -> Tensor:
    """The square root of a symmetric positive semidefinite matrix [..., D, D], by its eigenvectors;
    differentiable.

    (The distance above does without it. Negative eigenvalues, which are rounding errors, count by
    their size.)
    """
    a = as_floats(a, 'a')
    if a.ndim < 2 or a.shape[-1] != a.shape[-2]:
        raise ValueError(f'a must be square matrices [..., D, D]; got the shape {list(a.shape)}')
    if not a.isfinite().all():
        raise ValueError('a must be finite; got NaN or infinity')
    root: Tensor = _SquareRoot.apply(a)
    return root


class _SquareRoot(torch.autograd.Function):
    """Its derivative solves d(a) = d(r) r + r d(r), which stays finite where eigenvalues are
    equal.
    """

    @staticmethod
    def forward(context: Any, a: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(a)
        roots = values.abs().sqrt()
        context.save_for_backward(roots, vectors)
        return (vectors * roots[..., None, :]) @ vectors.mT

    @staticmethod
    def backward(context: Any, *outward: Tensor) -> Tensor:
        roots, vectors = context.saved_tensors
        sums = roots[..., :, None] + roots[..., None, :]
        inner = (vectors.mT @ outward[0] @ vectors) / torch.where(sums == 0, 1.0, sums)
        return vectors @ inner @ vectors.mT
