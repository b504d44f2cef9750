"""Square windows of a grid of tokens, and attention within them, shifted for every other layer
(Liu et al., 2021, arXiv 2103.14030).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..layers.attention import attend
from ..layers.fused import fusible
from ..layers.neighborhood import pair_axes


def to_patches(x: Tensor, patch_size: Sequence[int]) -> Tensor:
    """[..., H, W, D] -> [..., H / a, W / b, a, b, D] for patches of a x b; a view.

    As many axes are cut as there are sides.
    """
    dims = len(patch_size)
    first = x.ndim - 1 - dims
    sides = x.shape[first:-1]
    if any(side % size for side, size in zip(sides, patch_size)):
        raise ValueError(
            f'a grid of {"x".join(map(str, sides))} cannot be cut into pieces of '
            f'{"x".join(map(str, patch_size))}; '
            'choose sizes that divide it'
        )
    for axis in reversed(range(dims)):
        x = x.unflatten(first + axis, (-1, patch_size[axis]))
    axes = range(first, first + 2 * dims)
    return x.permute(*range(first), *axes[::2], *axes[1::2], x.ndim - 1)


def from_patches(x: Tensor, dims: int = 2) -> Tensor:
    """[..., H / a, W / b, a, b, D] -> [..., H, W, D]; so with other numbers of axes."""
    first = x.ndim - 1 - 2 * dims
    pairs = [axis for i in range(first, first + dims) for axis in (i, i + dims)]
    x = x.permute(*range(first), *pairs, x.ndim - 1)
    for axis in range(first, first + dims):
        x = x.flatten(axis, axis + 1)
    return x


def fold_patches(x: Tensor, size: int) -> Tensor:
    """[B, C, ...] with patches of `size` a side as channels, [B, C size^dims, ...], in the order
    of pixel_unshuffle.
    """
    dims = x.ndim - 2
    x = to_patches(x[..., None], (size,) * dims).squeeze(-1)
    return x.permute(0, 1, *range(2 + dims, 2 + 2 * dims), *range(2, 2 + dims)).flatten(1, 1 + dims)


def unfold_patches(x: Tensor, size: int) -> Tensor:
    """The inverse of fold_patches."""
    dims = x.ndim - 2
    x = x.unflatten(1, (-1, *[size] * dims))
    x = x.permute(0, 1, *range(2 + dims, 2 + 2 * dims), *range(2, 2 + dims))
    return from_patches(x[..., None], dims).squeeze(-1)


def window(window_size: int, x: Tensor, dims: int = 2) -> Tensor:
    """[..., H, W, D] -> [..., H / s, W / s, s, s, D]; so with other numbers of axes."""
    return to_patches(x, (window_size,) * dims)


def unwindow(x: Tensor) -> Tensor:
    """The grid that these are the windows of."""
    return from_patches(x)


def shifted_window(window_size: int, window_shift: int, x: Tensor, dims: int = 2) -> Tensor:
    """The windows of the grid moved by window_shift along each axis; what leaves it enters at
    the other side.
    """
    axes = tuple(range(-1 - dims, -1))
    return window(
        window_size, torch.roll(x, (window_shift,) * dims, dims=axes) if window_shift else x, dims
    )


def shifted_unwindow(window_shift: int, x: Tensor) -> Tensor:
    """The inverse of shifted_window."""
    x = unwindow(x)
    return torch.roll(x, (-window_shift, -window_shift), dims=(-3, -2)) if window_shift else x


class Rearranged(torch.autograd.Function):
    """x [B, N, D] with its tokens in another order; `back` undoes it, so that the gradient is
    moved too, and not added up.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(order, back)
        return x.index_select(1, order)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        order, back = ctx.saved_tensors
        return rearranged(grad, back, order), None, None


def rearranged(x: Tensor, order: Tensor, back: Tensor) -> Tensor:
    """x [B, N, D] with its tokens in this order, and `back` that which undoes it."""
    if not fusible():
        return x.index_select(1, order)
    y: Tensor = Rearranged.apply(x, order, back)
    return y


def window_order(
    sides: Sequence[int],
    window_size: int,
    window_shift: int,
    device: torch.device | str | None = None,
) -> tuple[Tensor, Tensor]:
    """The order that puts the tokens of a grid window after window, and the one that puts them
    back: a copy where rolling makes several.
    """
    places = torch.arange(math.prod(sides), device=device)
    order = shifted_window(window_size, window_shift, places.view(*sides, 1), len(sides)).flatten()
    back = torch.empty_like(order)
    back[order] = places
    return order, back


def make_shifted_window_masks(
    n_h_w: int, n_w_w: int, w_h: int, w_w: int, shift: int, device: torch.device | str | None = None
) -> Tensor:
    """Who may attend to whom in n_h_w x n_w_w shifted windows of w_h x w_w: bool [n_h_w, n_w_w,
    w_h, w_w, w_h, w_w].

    In the first row and the first column of windows, what came from the other side of the grid is
    kept apart.
    """
    rows, columns = _together(n_h_w, w_h, shift, device), _together(n_w_w, w_w, shift, device)
    return rows[:, None, :, None, :, None] & columns[None, :, None, :, None, :]


def _together(n: int, w: int, shift: int, device: torch.device | str | None) -> Tensor:
    """Along one axis of n shifted windows of w tokens: who came from the same side of the grid,
    bool [n, w, w].
    """
    # As numbers: torch's compiler fails at comparing truth values with each other.
    wrapped = (torch.arange(n * w, device=device) < shift).long().view(n, w)
    return wrapped[:, :, None] == wrapped[:, None, :]


def shifted_mask(
    counts: Sequence[int],
    window_size: int,
    window_shift: int,
    device: torch.device | str | None = None,
) -> Tensor | None:
    """make_shifted_window_masks for attention over windows in turn, [windows, 1, tokens, tokens];
    None without a shift.

    `counts` are the windows along each axis.
    """
    if not window_shift:
        return None
    return pair_axes([_together(n, window_size, window_shift, device) for n in counts])[:, None]


def attend_in_windows(
    q: Tensor, k: Tensor, v: Tensor, window_shift: int, scale: float | None = None
) -> Tensor:
    """Attention within each window: q, k, v [B, n, n', s, s, heads, D], of a grid shifted by
    window_shift -> the same.
    """
    mask = shifted_mask(q.shape[1:3], q.shape[3], window_shift, q.device)
    q_seq, k_seq, v_seq = (x.flatten(3, 4).flatten(0, 2).transpose(1, 2) for x in (q, k, v))
    return attend(q_seq, k_seq, v_seq, mask, scale=scale).transpose(1, 2).reshape(q.shape)


def apply_window_attention(
    window_size: int, window_shift: int, q: Tensor, k: Tensor, v: Tensor, scale: float | None = None
) -> Tensor:
    """Attention within the shifted windows of a grid: q, k, v [B, heads, H, W, D] -> the same."""
    q, k, v = (shifted_window(window_size, window_shift, x).movedim(1, -2) for x in (q, k, v))
    return shifted_unwindow(
        window_shift, attend_in_windows(q, k, v, window_shift, scale).movedim(-2, 1)
    )
