"""Frechet distance between Gaussians fitted to features; with Inception features, FID.

The distance is |m_x - m_y|^2 + tr S_x + tr S_y - 2 tr (S_x S_y)^1/2. The last trace is the nuclear
norm (the sum of singular values) of A_x A_y^T for any factors S = A^T A, so that no matrix square
root and no regularisation are needed.

References:
    Heusel et al. (2017), arXiv:1706.08500.
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
    """Compute the Frechet distance of features in float64, with gradients to both.

    Args:
        x: Features [N, D].
        y: Features [M, D].
        eps: Accepted for old callers, and ignored.
    """
    x, y = as_pair(x, y)
    return _distance((x.mean(0), _factor(x)), (y.mean(0), _factor(y)))


def frechet_distance(x: Moments, y: Moments) -> Tensor:
    """Compute the Frechet distance from moments, for features too many to keep.

    Args:
        x: Moments of features.
        y: Moments of features of the same width.

    Raises:
        TypeError: If an argument is not Moments.
        ValueError: If the widths differ.
    """
    for name, moments in ('x', x), ('y', y):
        if not isinstance(moments, Moments):
            raise TypeError(
                f'{name} must be Moments of features; got {type(moments).__name__}. Use '
                'K.evaluation.Moments.of(features)'
            )
    if x.n and y.n and len(x.mean) != len(y.mean):
        raise ValueError(
            f'x and y must be moments of features of one width; got {len(x.mean)} and '
            f'{len(y.mean)}. Use one extractor for both'
        )
    return _distance((x.mean, _root(x.covariance)), (y.mean, _root(y.covariance)))


def fid_with_error(x: Any, y: Any, blocks: int = BLOCKS) -> tuple[float, float, float]:
    """Return fid(x, y), the value without the bias of few samples, and the standard error of both.

    The errors are over the draw of x; y is fixed. A jackknife over parts of x removes the part of
    the bias that falls as 1 / N. With student_quantile the error gives the interval of fid for the
    mean over draws of as many samples, and that of the second value for the distance of infinitely
    many samples.

    Args:
        x: Features [N, D].
        y: Features [M, D].
        blocks: Number of parts.

    References:
        Miller (1974), doi:10.1093/biomet/61.1.1.
    """
    x, y = as_pair(x, y)
    reference = y.mean(0), _factor(y)
    return jackknife(
        lambda rows: _distance((rows.mean(0), _factor(rows)), reference).item(), x, blocks
    )


def fid_infinity(
    x: Any, y: Any, points: int = 10, smallest: float = 0.3, seed: int = 0
) -> tuple[float, float]:
    """Extrapolate the distance of infinitely many samples; return it and its standard error.

    The bias of the distance of n samples falls as 1/n. A line in 1/n is fitted through `points`
    sizes, evenly spaced in 1/n, each a random part of x. The error combines that of the line and
    that of the draw of x (of fid_with_error); y is fixed.

    Args:
        x: Features [N, D].
        y: Features [M, D].
        points: Number of sizes.
        smallest: The smallest size, as a share of x.
        seed: Seed of the random parts.

    References:
        Chong & Forsyth (2020), arXiv:1911.07023.
    """
    x, y = as_pair(x, y)
    whole_number(points, 'points', 3)
    if not 0 < smallest < 1 or len(x) * smallest < 2:
        raise ValueError(
            f'smallest must be a share in (0, 1) that leaves 2 samples; got {smallest} of '
            f'{len(x)}. Use more samples'
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
    """Return the value at u = 0 of the least squares line, and its standard error.

    Args:
        u: The abscissae.
        values: The values.
    """
    design = torch.stack(
        [torch.ones(len(u), dtype=torch.float64), torch.tensor(u, dtype=torch.float64)], 1
    )
    target = torch.tensor(values, dtype=torch.float64)
    inverse = torch.linalg.inv(design.T @ design)
    line = inverse @ (design.T @ target)
    variance = (target - design @ line).square().sum() / (len(u) - 2)
    return line[0].item(), (variance * inverse[0, 0]).sqrt().item()


def _distance(x: tuple[Tensor, Tensor], y: tuple[Tensor, Tensor]) -> Tensor:
    """Return the distance from means and factors [K, D] of the covariances."""
    (mean_x, a), (mean_y, b) = x, y
    cross = torch.linalg.svdvals(a @ b.T).sum()
    return (mean_x - mean_y).square().sum() + a.square().sum() + b.square().sum() - 2 * cross


def _factor(features: Tensor) -> Tensor:
    """Return A [K, D], K at most D, with A^T A the covariance."""
    centred = (features - features.mean(0)) / (len(features) - 1) ** 0.5
    # qr(mode='r') has no derivative.
    tall = len(centred) > centred.shape[1] and not centred.requires_grad
    return torch.linalg.qr(centred, mode='r')[1] if tall else centred


def _root(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    return values.clamp_min(0).sqrt()[:, None] * vectors.T


def sqrtm_eig(a: Any) -> Tensor:
    """Return the square root of a symmetric positive semidefinite matrix, by its eigenvectors.

    It is differentiable. The distance above does not need it. Negative eigenvalues, which are
    rounding errors, are replaced by their magnitude.

    Args:
        a: Matrices [..., D, D].

    Raises:
        ValueError: If they are not square or not finite.
    """
    a = as_floats(a, 'a')
    if a.ndim < 2 or a.shape[-1] != a.shape[-2]:
        raise ValueError(f'a must be square matrices [..., D, D]; got shape {list(a.shape)}')
    if not a.isfinite().all():
        raise ValueError('a must be finite; got NaN or infinity')
    root: Tensor = _SquareRoot.apply(a)
    return root


class _SquareRoot(torch.autograd.Function):
    """Its derivative solves d(a) = d(r) r + r d(r), which is finite for equal eigenvalues."""

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
