"""Kernel distances between features: KID and CMMD, which are unbiased for small sets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..core.random import generator
from .arrays import as_floats, as_pair, whole_number

Kernel = Callable[[Tensor, Tensor], Tensor]


def polynomial_kernel(x: Any, y: Any) -> Tensor:
    """Return (x . y / D + 1)^3 between rows: [N, D], [M, D] -> [N, M].

    Args:
        x: Features.
        y: Features of the same width.
    """
    x, y = as_floats(x, 'x'), as_floats(y, 'y')
    if min(x.ndim, y.ndim) < 2 or x.shape[-1] != y.shape[-1] or x.shape[-1] < 1:
        raise ValueError(
            'x and y must be features [N, D] and [M, D] of one width; got shapes '
            f'{list(x.shape)} and {list(y.shape)}'
        )
    dtype = torch.promote_types(x.dtype, y.dtype)
    return _cubic(x.to(dtype), y.to(dtype))


def _cubic(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.mT / x.shape[-1] + 1) ** 3


def squared_mmd(x: Any, y: Any, kernel: Kernel = polynomial_kernel) -> Tensor:
    """Return the unbiased estimate of the squared maximum mean discrepancy.

    It can be negative, and is 0 on average if both sets come from one distribution.

    Args:
        x: Features [N, D].
        y: Features [M, D].
        kernel: A function of rows.

    References:
        Gretton et al. (2012), "A Kernel Two-Sample Test", JMLR 13, eq. 3.
    """
    x, y = as_pair(x, y)
    n, m = len(x), len(y)
    kxx, kyy = kernel(x, x), kernel(y, y)
    within = (kxx.sum() - kxx.trace()) / (n * (n - 1)) + (kyy.sum() - kyy.trace()) / (m * (m - 1))
    return within - 2 * kernel(x, y).mean()


def kid(x: Any, y: Any, max_size: int = 5000) -> Tensor:
    """Compute the kernel inception distance as the mean over parts of about max_size rows.

    Of the n rows of a set, part i of `parts` holds those from round(i n / parts) to round((i + 1) n
    / parts), as in the original k-diffusion.

    Args:
        x: Features [N, D].
        y: Features [M, D].
        max_size: Number of rows of a part.

    References:
        Binkowski et al. (2018), arXiv:1801.01401.
    """
    x, y = as_pair(x, y)
    whole_number(max_size, 'max_size', 2)
    parts = -(-max(len(x), len(y)) // max_size)
    if min(len(x), len(y)) < 2 * parts:
        raise ValueError(
            'x and y must have similar sizes to form parts of max_size='
            f'{max_size}; got {len(x)} and {len(y)}. Use more of the smaller set'
        )
    cuts = [[round(i * len(features) / parts) for i in range(1, parts)] for features in (x, y)]
    return torch.stack(
        [squared_mmd(a, b) for a, b in zip(x.tensor_split(cuts[0]), y.tensor_split(cuts[1]))]
    ).mean()


def kid_subsets(
    x: Any, y: Any, subsets: int = 100, size: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Return the mean over random subsets of both, and the standard deviation over subsets.

    This is the KID of published tables.

    Args:
        x: Features [N, D].
        y: Features [M, D].
        subsets: Number of subsets.
        size: Their size.
        seed: Seed of the draws.
    """
    x, y = as_pair(x, y)
    whole_number(subsets, 'subsets', 2)
    size = min(whole_number(size, 'size', 2), len(x), len(y))
    source = generator(seed, 'kid subsets')
    values = [squared_mmd(_some(x, size, source), _some(y, size, source)) for _ in range(subsets)]
    estimates = torch.stack(values)
    return estimates.mean().item(), estimates.std().item()


def kid_with_error(x: Any, y: Any, blocks: int = 20) -> tuple[float, float]:
    """Return squared_mmd(x, y) of all rows and its standard error by a jackknife over both sets.

    The kernel matrix is never stored whole, and all pairs count, so that this is the most precise
    estimate here.

    Args:
        x: Features [N, D].
        y: Features [M, D].
        blocks: Number of parts of each set.
    """
    x, y = as_pair(x, y, least=4)
    blocks = min(whole_number(blocks, 'blocks', 2), len(x) // 2, len(y) // 2)
    xs, ys = x.tensor_split(blocks), y.tensor_split(blocks)
    xx, yy, xy = (_block_sums(a, b) for a, b in ((xs, xs), (ys, ys), (xs, ys)))
    own_x, own_y = (
        torch.stack([((part.square().sum(1) / part.shape[1] + 1) ** 3).sum() for part in parts])
        for parts in (xs, ys)
    )
    sizes_x, sizes_y = (
        torch.tensor([len(part) for part in parts], device=x.device) for parts in (xs, ys)
    )

    def estimate(keep: Tensor) -> Tensor:
        n, m = sizes_x[keep].sum(), sizes_y[keep].sum()
        within_x, within_y, between = (k[keep][:, keep].sum() for k in (xx, yy, xy))
        return (
            (within_x - own_x[keep].sum()) / (n * (n - 1))
            + (within_y - own_y[keep].sum()) / (m * (m - 1))
            - 2 * between / (n * m)
        )

    everything = torch.ones(blocks, dtype=torch.bool, device=x.device)
    without = torch.stack(
        [estimate(torch.arange(blocks, device=x.device) != i) for i in range(blocks)]
    )
    return estimate(everything).item(), ((blocks - 1) * without.var(correction=0)).sqrt().item()


def cmmd(x: Any, y: Any, sigma: float = 10.0, scale: float = 1000.0, chunk: int = 2048) -> Tensor:
    """Compute CMMD: the squared discrepancy of unit-length embeddings under a Gaussian kernel.

    The kernel is exp(-|a - b|^2 / (2 sigma^2)), with each image's kernel with itself included.
    Intended for CLIP embeddings.

    Args:
        x: Features [N, D].
        y: Features [M, D].
        sigma: Width of the kernel, > 0.
        scale: Factor of the result.
        chunk: Number of rows computed at once.

    References:
        Jayasumana et al. (2024), arXiv:2401.09603.
    """
    if not sigma > 0:
        raise ValueError(f'sigma must be > 0; got {sigma}')
    whole_number(chunk, 'chunk')
    x, y = (
        features / features.norm(dim=1, keepdim=True).clamp_min(1e-12)
        for features in as_pair(x, y, least=1)
    )

    def mean(a: Tensor, b: Tensor) -> Tensor:
        # 1 - k, by expm1: the kernel is so wide that k itself is 1 to five digits
        sums = [torch.expm1((part @ b.T - 1) / sigma**2).sum() for part in a.split(chunk)]
        return torch.stack(sums).sum() / (len(a) * len(b))

    return scale * (mean(x, x) + mean(y, y) - 2 * mean(x, y))


def _some(x: Tensor, size: int, source: torch.Generator) -> Tensor:
    return x[torch.randperm(len(x), generator=source)[:size].to(x.device)]


def _block_sums(xs: Sequence[Tensor], ys: Sequence[Tensor]) -> Tensor:
    """Return the sums of the kernel over blocks of rows and columns."""
    return torch.stack([torch.stack([_cubic(a, b).sum() for b in ys]) for a in xs])
