"""Exact attention of each token of a grid to the tokens around it, without a custom kernel.

A token sees the kernel_size x kernel_size tokens around it (kernel_size along each axis; grids may
also have one axis or three). Near a border that square is shifted inside, so that every token sees
as many. The queries are taken in square tiles. The queries of a tile share the keys that any of
them sees, and a small mask hides from each query the keys that only others see. Time and memory are
linear in the number of tokens.

References:
    Hassani et al. (2023), arXiv:2204.07143.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .attention import attend

# The longest side of a tile of queries; the fastest of 4, 7, 8 and 14 on a CPU, for kernel 7.
TILE = 8
# The side of a tile by the number of axes; tiles have about the same number of queries.
TILE_SIDES = {1: TILE**2, 2: TILE, 3: 4}
# Tiles are used where they pair at most this share of all tokens with each other.
WORTHWHILE = 0.4


class Tiles(NamedTuple):
    """One axis cut into n tiles of T queries, which share S keys.

    Attributes:
        queries: Positions [n, T].
        keys: Positions [n, S].
        visible: True where a query sees a key, [n, T, S].
    """

    queries: Tensor
    keys: Tensor
    visible: Tensor


def neighborhood_attention(
    q: Tensor, k: Tensor, v: Tensor, kernel_size: int, scale: float | None = None
) -> Tensor:
    """Return the attention of each token to its neighbourhood, in the shape of q.

    Args:
        q: [B, H, W, heads, D]; grids may have one axis or three in place of H, W.
        k: Like q.
        v: Like q.
        kernel_size: Side of the neighbourhood, odd.
        scale: Factor of q . k; 1 / sqrt(D) by default.
    """
    sides = q.shape[1:-2]
    check_kernel_size(kernel_size, *sides)
    axes = [tiles(side, kernel_size, q.device, len(sides)) for side in sides]
    if math.prod([axis.visible.numel() for axis in axes]) > WORTHWHILE * math.prod(sides) ** 2:
        return _dense(q, k, v, kernel_size, scale)
    queries, keys = (
        _places([axis.queries for axis in axes], sides),
        _places([axis.keys for axis in axes], sides),
    )
    mask = pair_axes([axis.visible for axis in axes]).repeat(q.shape[-2], 1, 1)[None]
    y = attend(_take(q, queries), _take(k, keys), _take(v, keys), mask, scale=scale)
    return _untile(y, [axis.queries.shape for axis in axes], q.shape)


def _dense(q: Tensor, k: Tensor, v: Tensor, kernel_size: int, scale: float | None) -> Tensor:
    """Compute the attention on a grid so small that tiles would see most of it."""
    mask = _grid_mask(q.shape[1:-2], kernel_size, q.device)
    flat_q, flat_k, flat_v = (x.flatten(1, -3).transpose(1, 2) for x in (q, k, v))
    return attend(flat_q, flat_k, flat_v, mask, scale=scale).transpose(1, 2).reshape(q.shape)


def neighborhood_mask(
    height: int, width: int, kernel_size: int, device: torch.device | str | None = None
) -> Tensor:
    """Return the mask [H W, H W] with which dense attention equals neighborhood_attention.

    Rows are queries; True where a query sees a key.

    Args:
        height: H.
        width: W.
        kernel_size: Side of the neighbourhood.
        device: The device of the mask.
    """
    check_kernel_size(kernel_size, height, width)
    return _grid_mask((height, width), kernel_size, device)


def _grid_mask(sides: Sequence[int], kernel_size: int, device: torch.device | str | None) -> Tensor:
    places = [torch.arange(n, device=device) for n in sides]
    return pair_axes(
        [_sees(place[:, None], place, len(place), kernel_size)[None] for place in places]
    )[0]


def check_kernel_size(kernel_size: int, *sides: int) -> None:
    """Raise a ValueError for an even kernel_size, or one larger than a side of the grid.

    Args:
        kernel_size: Side of the neighbourhood.
        *sides: Sides of the grid.
    """
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(
            f'kernel_size must be odd, so that a neighbourhood has a centre; got {kernel_size}'
        )
    if sides and kernel_size > min(sides):
        raise ValueError(
            f'kernel_size must be at most {min(sides)} on a grid of {"x".join(map(str, sides))} '
            f'tokens; got {kernel_size}'
        )


def tiles(
    length: int, kernel_size: int, device: torch.device | str | None = None, dims: int = 2
) -> Tiles:
    """Cut an axis into equal tiles.

    The last tile may extend beyond the end, where its queries repeat the last one.

    Args:
        length: Length of the axis.
        kernel_size: Side of the neighbourhood.
        device: The device of the result.
        dims: Number of axes of the grid.
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
    """Combine truth values [n, T, S] along each axis to those of the grid, [n n, T T, S S].

    Args:
        axes: The truth values of each axis.
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
    """Return positions [n n, T T] in the flattened grid from positions [n, T] of each axis."""
    places = axes[0]
    for axis, side in zip(axes[1:], sides[1:]):
        places = (places[:, None, :, None] * side + axis[None, :, None, :]).flatten(0, 1).flatten(1)
    return places


def _take(x: Tensor, places: Tensor) -> Tensor:
    """Return x [B, ..., heads, D] at positions [n, T], as [B, heads n, T, D]."""
    rows = x.flatten(1, -3).transpose(1, 2).index_select(2, places.flatten())
    return rows.unflatten(2, places.shape).flatten(1, 2)


def _untile(y: Tensor, axes: Sequence[torch.Size], shape: torch.Size) -> Tensor:
    """Convert y [B, heads n n, T T, D] to [B, H, W, heads, D], without the part beyond the end."""
    batch, *sides, heads, d = shape
    dims = len(axes)
    y = y.reshape(batch, heads, *(n for n, _ in axes), *(tile for _, tile in axes), d)
    y = y.permute(0, *(axis for i in range(2, 2 + dims) for axis in (i, i + dims)), 1, 2 + 2 * dims)
    y = y.reshape(batch, *(n * tile for n, tile in axes), heads, d)
    return y[tuple(slice(side) for side in (batch, *sides))]
