"""Attention of each token of a grid to the tokens around it, exact, and without a kernel of its
own.

Neighbourhood attention (Hassani et al., 2023, arXiv 2204.07143): a token sees the kernel_size x
kernel_size tokens around it (kernel_size along each axis, of grids of one axis or three, too); near
a border that square is moved inside, so that every token sees as many. The queries are taken in
square tiles; the queries of a tile share the keys that any of them sees, and a small mask hides
from each the keys that only others see. Time and memory are linear in the number of tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .attention import attend

TILE = (
    8  # the longest side of a tile of queries; the fastest of 4, 7, 8 and 14 on a CPU, for kernel 7
)

TILE_SIDES = {1: TILE**2, 2: TILE, 3: 4}  # so many queries a tile with other numbers of axes too

WORTHWHILE = 0.4  # tiles are cut where they pair at most this share of all tokens with each other


class Tiles(NamedTuple):
    """One axis cut into n tiles of T queries, which share S keys: positions [n, T] and [n, S],
    and who sees whom [n, T, S].
    """

    queries: Tensor
    keys: Tensor
    seen: Tensor


def neighborhood_attention(
    q: Tensor, k: Tensor, v: Tensor, kernel_size: int, scale: float | None = None
) -> Tensor:
    """q, k, v [B, H, W, heads, D] -> the same; scale multiplies q . k, 1 / sqrt(D) by default.

    Grids may have one axis or three in place of H, W.
    """
    sides = q.shape[1:-2]
    check_kernel_size(kernel_size, *sides)
    axes = [tiles(side, kernel_size, q.device, len(sides)) for side in sides]
    if math.prod([axis.seen.numel() for axis in axes]) > WORTHWHILE * math.prod(sides) ** 2:
        return _dense(q, k, v, kernel_size, scale)
    queries, keys = (
        _places([axis.queries for axis in axes], sides),
        _places([axis.keys for axis in axes], sides),
    )
    mask = pair_axes([axis.seen for axis in axes]).repeat(q.shape[-2], 1, 1)[None]
    y = attend(_take(q, queries), _take(k, keys), _take(v, keys), mask, scale=scale)
    return _untile(y, [axis.queries.shape for axis in axes], q.shape)


def _dense(q: Tensor, k: Tensor, v: Tensor, kernel_size: int, scale: float | None) -> Tensor:
    """The same on a grid so small that tiles would see most of it anyway."""
    mask = _grid_mask(q.shape[1:-2], kernel_size, q.device)
    flat_q, flat_k, flat_v = (x.flatten(1, -3).transpose(1, 2) for x in (q, k, v))
    return attend(flat_q, flat_k, flat_v, mask, scale=scale).transpose(1, 2).reshape(q.shape)


def neighborhood_mask(
    height: int, width: int, kernel_size: int, device: torch.device | str | None = None
) -> Tensor:
    """Who sees whom, for dense attention: bool [H W, H W], rows are queries.

    What neighborhood_attention is equal to.
    """
    check_kernel_size(kernel_size, height, width)
    return _grid_mask((height, width), kernel_size, device)


def _grid_mask(sides: Sequence[int], kernel_size: int, device: torch.device | str | None) -> Tensor:
    places = [torch.arange(n, device=device) for n in sides]
    return pair_axes(
        [_sees(place[:, None], place, len(place), kernel_size)[None] for place in places]
    )[0]


def check_kernel_size(kernel_size: int, *sides: int) -> None:
    """Refuses a neighbourhood without a centre, or larger than a grid of these sides."""
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(
            f'kernel_size is {kernel_size}; it must be an odd number, so that a neighbourhood has '
            'a centre'
        )
    if sides and kernel_size > min(sides):
        raise ValueError(
            f'kernel_size is {kernel_size} on a grid of {"x".join(map(str, sides))} tokens; it '
            f'must be at most {min(sides)}'
        )


def tiles(
    length: int, kernel_size: int, device: torch.device | str | None = None, dims: int = 2
) -> Tiles:
    """Cuts an axis, of `dims`, into equal tiles; the last one may hang over the end, where its
    queries repeat the last.
    """
    n = -(-length // TILE_SIDES[dims])
    tile = -(-length // n)
    span = min(length, tile + kernel_size - 1)
    queries = torch.arange(n * tile, device=device).clamp(max=length - 1).view(n, tile)
    starts = (torch.arange(n, device=device) * tile - kernel_size // 2).clamp(0, length - span)
    keys = starts[:, None] + torch.arange(span, device=device)
    return Tiles(queries, keys, _sees(queries[:, :, None], keys[:, None], length, kernel_size))


def _sees(query: Tensor, key: Tensor, length: int, kernel_size: int) -> Tensor:
    first = (query - kernel_size // 2).clamp(0, length - kernel_size)
    return (key >= first) & (key < first + kernel_size)


def pair_axes(axes: Sequence[Tensor]) -> Tensor:
    """Of truth values [n, T, S] along each axis, those of the grid: [n n, T T, S S], true where
    all axes are.
    """
    pairs = axes[0]
    for axis in axes[1:]:
        pairs = (
            (pairs[:, None, :, None, :, None] & axis[None, :, None, :, None, :])
            .flatten(4)
            .flatten(2, 3)
            .flatten(0, 1)
        )
    return pairs


def _places(axes: Sequence[Tensor], sides: Sequence[int]) -> Tensor:
    """[n, T] of each axis -> [n n, T T], the places in the flattened grid."""
    places = axes[0]
    for axis, side in zip(axes[1:], sides[1:]):
        places = (places[:, None, :, None] * side + axis[None, :, None, :]).flatten(0, 1).flatten(1)
    return places


def _take(x: Tensor, places: Tensor) -> Tensor:
    """x [B, ..., heads, D] at places [n, T] -> [B, heads n, T, D]."""
    taken = x.flatten(1, -3).transpose(1, 2).index_select(2, places.flatten())
    return taken.unflatten(2, places.shape).flatten(1, 2)


def _untile(y: Tensor, axes: Sequence[torch.Size], shape: torch.Size) -> Tensor:
    """y [B, heads n n, T T, D] -> [B, H, W, heads, D], without what hangs over; so with other
    numbers of axes.
    """
    batch, *sides, heads, d = shape
    dims = len(axes)
    y = y.reshape(batch, heads, *(n for n, _ in axes), *(tile for _, tile in axes), d)
    y = y.permute(0, *(axis for i in range(2, 2 + dims) for axis in (i, i + dims)), 1, 2 + 2 * dims)
    y = y.reshape(batch, *(n * tile for n, tile in axes), heads, d)
    return y[tuple(slice(side) for side in (batch, *sides))]
