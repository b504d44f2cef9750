"""Attention of each token of a grid to the tokens around it, exact, and without a kernel of its own.

Neighbourhood attention (Hassani et al., 2023, arXiv 2204.07143): a token sees the kernel_size x kernel_size tokens around it;
near a border that square is moved inside, so that every token sees as many. The queries are taken in square tiles; the
queries of a tile share the keys that any of them sees, and a small mask hides from each the keys that only others see.
Time and memory are linear in the number of tokens.
"""
from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .attention import attend

TILE = 8  # the longest side of a tile of queries; the fastest of 4, 7, 8 and 14 on a CPU, for kernel 7

WORTHWHILE = 0.4  # tiles are cut where they pair at most this share of all tokens with each other


class Tiles(NamedTuple):
    """One axis cut into n tiles of T queries, which share S keys: positions [n, T] and [n, S], and who sees whom [n, T, S]."""

    queries: Tensor
    keys: Tensor
    seen: Tensor


def neighborhood_attention(q: Tensor, k: Tensor, v: Tensor, kernel_size: int, scale: float | None = None) -> Tensor:
    """q, k, v [B, H, W, heads, D] -> [B, H, W, heads, D]; scale multiplies q . k, 1 / sqrt(D) by default."""
    height, width = q.shape[1:3]
    check_kernel_size(kernel_size, height, width)
    rows, columns = tiles(height, kernel_size, q.device), tiles(width, kernel_size, q.device)
    if rows.seen.numel() * columns.seen.numel() > WORTHWHILE * (height * width)**2:
        return _dense(q, k, v, kernel_size, scale)
    keys = _places(rows.keys, columns.keys, width)
    queries = _places(rows.queries, columns.queries, width)
    heads = q.shape[3]
    mask = _pairs(rows.seen, columns.seen).repeat(heads, 1, 1)[None]
    y = attend(_take(q, queries), _take(k, keys), _take(v, keys), mask, scale=scale)
    return _untile(y, rows.queries.shape, columns.queries.shape, q.shape)


def _dense(q: Tensor, k: Tensor, v: Tensor, kernel_size: int, scale: float | None) -> Tensor:
    """The same on a grid so small that tiles would see most of it anyway."""
    mask = neighborhood_mask(q.shape[1], q.shape[2], kernel_size, q.device)
    flat_q, flat_k, flat_v = (x.flatten(1, 2).transpose(1, 2) for x in (q, k, v))
    return attend(flat_q, flat_k, flat_v, mask, scale=scale).transpose(1, 2).reshape(q.shape)


def neighborhood_mask(height: int, width: int, kernel_size: int, device: torch.device | str | None = None) -> Tensor:
    """Who sees whom, for dense attention: bool [H W, H W], rows are queries. What neighborhood_attention is equal to."""
    check_kernel_size(kernel_size, height, width)
    rows, columns = (_sees(torch.arange(n, device=device)[:, None], torch.arange(n, device=device), n, kernel_size)
                     for n in (height, width))
    return (rows[:, None, :, None] & columns[None, :, None, :]).flatten(0, 1).flatten(1)


def check_kernel_size(kernel_size: int, *sides: int) -> None:
    """Refuses a neighbourhood without a centre, or larger than a grid of these sides."""
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f'kernel_size is {kernel_size}; it must be an odd number, so that a neighbourhood has a centre')
    if sides and kernel_size > min(sides):
        raise ValueError(f'kernel_size is {kernel_size} on a grid of {"x".join(map(str, sides))} tokens; it must be at most {min(sides)}')


def tiles(length: int, kernel_size: int, device: torch.device | str | None = None) -> Tiles:
    """Cuts an axis into equal tiles; the last one may hang over the end, where its queries repeat the last."""
    n = -(-length // TILE)
    tile = -(-length // n)
    span = min(length, tile + kernel_size - 1)
    queries = torch.arange(n * tile, device=device).clamp(max=length - 1).view(n, tile)
    starts = (torch.arange(n, device=device) * tile - kernel_size // 2).clamp(0, length - span)
    keys = starts[:, None] + torch.arange(span, device=device)
    return Tiles(queries, keys, _sees(queries[:, :, None], keys[:, None], length, kernel_size))


def _sees(query: Tensor, key: Tensor, length: int, kernel_size: int) -> Tensor:
    first = (query - kernel_size // 2).clamp(0, length - kernel_size)
    return (key >= first) & (key < first + kernel_size)


def _pairs(rows: Tensor, columns: Tensor) -> Tensor:
    """[n, T, S] of each axis -> [n n, T T, S S], true where both are."""
    return (rows[:, None, :, None, :, None] & columns[None, :, None, :, None, :]).flatten(4).flatten(2, 3).flatten(0, 1)


def _places(rows: Tensor, columns: Tensor, width: int) -> Tensor:
    """[n, T] of each axis -> [n n, T T], the places in the flattened grid."""
    return (rows[:, None, :, None] * width + columns[None, :, None, :]).flatten(0, 1).flatten(1)


def _take(x: Tensor, places: Tensor) -> Tensor:
    """x [B, H, W, heads, D] at places [n, T] -> [B, heads n, T, D]."""
    taken = x.flatten(1, 2).transpose(1, 2).index_select(2, places.flatten())
    return taken.unflatten(2, places.shape).flatten(1, 2)


def _untile(y: Tensor, rows: torch.Size, columns: torch.Size, shape: torch.Size) -> Tensor:
    """y [B, heads n n, T T, D] -> [B, H, W, heads, D], without what hangs over."""
    batch, height, width, heads, d = shape
    y = y.reshape(batch, heads, rows[0], columns[0], rows[1], columns[1], d).permute(0, 2, 4, 3, 5, 1, 6)
    return y.reshape(batch, rows.numel(), columns.numel(), heads, d)[:, :height, :width]
