"""Frechet distance between Gaussians fitted to features: with Inception features, FID.

Heusel et al. 2017, arXiv:1706.08500. |m_x - m_y|^2 + tr S_x + tr S_y - 2 tr (S_x S_y)^1/2, where the last trace is the nuclear
norm (the sum of singular values) of A_x A_y^T for any factors S = A^T A: no square root of a matrix, and nothing to add to it.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..core.random import generator
from .moments import Moments, pair


def fid(x: Tensor, y: Tensor, eps: float = 1e-8) -> Tensor:
    """The Frechet distance of features x [N, D] and y [M, D], in float64; gradients flow to both.

    `eps` is not needed any more and has no effect.
    """
    x, y = pair(x, y)
    return _distance((x.mean(0), _factor(x)), (y.mean(0), _factor(y)))


def frechet_distance(x: Moments, y: Moments) -> Tensor:
    """The same from moments, when the features themselves are too many to keep."""
    return _distance((x.mean, _root(x.covariance)), (y.mean, _root(y.covariance)))


def fid_infinity(x: Tensor, y: Tensor, points: int = 10, smallest: float = 0.3, seed: int = 0) -> tuple[float, float]:
    """(the distance that endless samples x would have, its standard error), y taken as it is.

    The distance of n samples is too large by an amount that falls as 1/n: a line in 1/n through `points` sizes from the share
    `smallest` of x to all of it, evenly spaced in 1/n, ends there (Chong and Forsyth 2020, arXiv:1911.07023). Each size is a
    random part of x; the error is the line fit's own.
    """
    x, y = pair(x, y)
    if points < 3 or not 0 < smallest < 1 or len(x) * smallest < 2:
        raise ValueError(f'{points} points from {smallest} of {len(x)} samples on give no line; take 3 points or more, and more samples')
    order = generator(seed, 'fid infinity')
    sizes = [round(len(x) / u) for u in torch.linspace(1 / smallest, 1, points).tolist()]
    reference = y.mean(0), _factor(y)
    values = []
    for size in sizes:
        part = x[torch.randperm(len(x), generator=order)[:size].to(x.device)]
        values.append(_distance((part.mean(0), _factor(part)), reference).item())
    return intercept([1 / size for size in sizes], values)


def intercept(u: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """The value at u = 0 of the least squares line, and its standard error."""
    design = torch.stack([torch.ones(len(u), dtype=torch.float64), torch.tensor(u, dtype=torch.float64)], 1)
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
    tall = len(centred) > centred.shape[1] and not centred.requires_grad    # (the triangular factor alone knows no derivative)
    return torch.linalg.qr(centred, mode='r')[1] if tall else centred


def _root(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    return values.clamp_min(0).sqrt()[:, None] * vectors.T


def sqrtm_eig(a: Tensor) -> Tensor:
    """The square root of a symmetric positive semidefinite matrix [..., D, D], by its eigenvectors; differentiable.

    (The distance above does without it. Negative eigenvalues, which are rounding errors, count by their size.)
    """
    if a.ndim < 2 or a.shape[-1] != a.shape[-2]:
        raise ValueError(f'sqrtm_eig got a tensor of shape {list(a.shape)}; it takes square matrices [..., D, D]')
    root: Tensor = _SquareRoot.apply(a)
    return root


class _SquareRoot(torch.autograd.Function):
    """Its derivative solves d(a) = d(r) r + r d(r), which stays finite where eigenvalues are equal."""

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
        inner = (vectors.mT @ outward[0] @ vectors) / torch.where(sums == 0, 1., sums)
        return vectors @ inner @ vectors.mT
