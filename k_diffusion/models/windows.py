"""Windows of a grid of tokens, and attention within them, shifted in every other layer.

References:
    Liu et al. (2021), arXiv:2103.14030.
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
    """Cut a grid into patches, as a view: [..., H, W, D] -> [..., H / a, W / b, a, b, D].

    Args:
        x: The grid.
        patch_size: The sides of a patch; as many axes are cut.

    Raises:
        ValueError: If they do not divide the grid.
    """
    dims = len(patch_size)
    first = x.ndim - 1 - dims
    sides = x.shape[first:-1]
    if any(side % size for side, size in zip(sides, patch_size)):
        raise ValueError(
            f'the size of patches or windows must divide the grid, {"x".join(map(str, sides))}; '
            f'got {"x".join(map(str, patch_size))}'
        )
    for axis in reversed(range(dims)):
        x = x.unflatten(first + axis, (-1, patch_size[axis]))
    axes = range(first, first + 2 * dims)
    return x.permute(*range(first), *axes[::2], *axes[1::2], x.ndim - 1)


def from_patches(x: Tensor, dims: int = 2) -> Tensor:
    """Join patches to a grid: [..., H / a, W / b, a, b, D] -> [..., H, W, D].

    Args:
        x: The patches.
        dims: The number of axes of the grid.
    """
    first = x.ndim - 1 - 2 * dims
    pairs = [axis for i in range(first, first + dims) for axis in (i, i + dims)]
    x = x.permute(*range(first), *pairs, x.ndim - 1)
    for axis in range(first, first + dims):
        x = x.flatten(axis, axis + 1)
    return x


def fold_patches(x: Tensor, size: int) -> Tensor:
    """Move patches into channels: [B, C, ...] -> [B, C size^dims, ...], ordered as pixel_unshuffle.

    Args:
        x: The grid.
        size: The side of a patch.
    """
    dims = x.ndim - 2
    x = to_patches(x[..., None], (size,) * dims).squeeze(-1)
    return x.permute(0, 1, *range(2 + dims, 2 + 2 * dims), *range(2, 2 + dims)).flatten(1, 1 + dims)


def unfold_patches(x: Tensor, size: int) -> Tensor:
    """Invert fold_patches.

    Args:
        x: The folded grid.
        size: The side of a patch.
    """
    dims = x.ndim - 2
    x = x.unflatten(1, (-1, *[size] * dims))
    x = x.permute(0, 1, *range(2 + dims, 2 + 2 * dims), *range(2, 2 + dims))
    return from_patches(x[..., None], dims).squeeze(-1)


def window(window_size: int, x: Tensor, dims: int = 2) -> Tensor:
    """Cut a grid into windows: [..., H, W, D] -> [..., H / s, W / s, s, s, D].

    Args:
        window_size: The side s.
        x: The grid.
        dims: The number of axes of the grid.
    """
    return to_patches(x, (window_size,) * dims)


def unwindow(x: Tensor) -> Tensor:
    """Join windows to a grid.

    Args:
        x: The windows.
    """
    return from_patches(x)


def shifted_window(window_size: int, window_shift: int, x: Tensor, dims: int = 2) -> Tensor:
    """Cut a cyclically shifted grid into windows.

    Args:
        window_size: The side of a window.
        window_shift: The shift along each axis.
        x: The grid.
        dims: The number of axes of the grid.
    """
    axes = tuple(range(-1 - dims, -1))
    return window(
        window_size, torch.roll(x, (window_shift,) * dims, dims=axes) if window_shift else x, dims
    )


def shifted_unwindow(window_shift: int, x: Tensor) -> Tensor:
    """Invert shifted_window.

    Args:
        window_shift: The shift along each axis.
        x: The windows.
    """
    x = unwindow(x)
    return torch.roll(x, (-window_shift, -window_shift), dims=(-3, -2)) if window_shift else x


class Rearranged(torch.autograd.Function):
    """Reorders the tokens of x [B, N, D]; the gradient is reordered too, instead of accumulated."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(order, back)
        return x.index_select(1, order)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        order, back = ctx.saved_tensors
        return rearrange(grad, back, order), None, None


def rearrange(x: Tensor, order: Tensor, back: Tensor) -> Tensor:
    """Reorder the tokens of x [B, N, D].

    Args:
        x: The tokens.
        order: The order.
        back: The inverse of the order.
    """
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
    """Return the order of a grid's tokens window by window, and its inverse.

    Reordering takes one copy, where cyclic shifts take several.

    Args:
        sides: The sides of the grid.
        window_size: The side of a window.
        window_shift: The shift along each axis.
        device: The device.
    """
    places = torch.arange(math.prod(sides), device=device)
    order = shifted_window(window_size, window_shift, places.view(*sides, 1), len(sides)).flatten()
    back = torch.empty_like(order)
    back[order] = places
    return order, back


def make_shifted_window_masks(
    n_h_w: int, n_w_w: int, w_h: int, w_w: int, shift: int, device: torch.device | str | None = None
) -> Tensor:
    """Return the mask of attention in shifted windows: bool [n_h_w, n_w_w, w_h, w_w, w_h, w_w].

    In the first row and the first column of windows, tokens from opposite sides of the grid are
    separated.

    Args:
        n_h_w: Windows along the height.
        n_w_w: Windows along the width.
        w_h: The height of a window.
        w_w: The width of a window.
        shift: The shift.
        device: The device.
    """
    rows, columns = _together(n_h_w, w_h, shift, device), _together(n_w_w, w_w, shift, device)
    return rows[:, None, :, None, :, None] & columns[None, :, None, :, None, :]


def _together(n: int, w: int, shift: int, device: torch.device | str | None) -> Tensor:
    """Return which tokens of n shifted windows share a side of the axis, bool [n, w, w]."""
    # As integers, because torch's compiler fails at comparing booleans with each other.
    is_wrapped = (torch.arange(n * w, device=device) < shift).long().view(n, w)
    return is_wrapped[:, :, None] == is_wrapped[:, None, :]


def shifted_mask(
    counts: Sequence[int],
    window_size: int,
    window_shift: int,
    device: torch.device | str | None = None,
) -> Tensor | None:
    """Return make_shifted_window_masks as [windows, 1, tokens, tokens]; None without a shift.

    Args:
        counts: The windows along each axis.
        window_size: The side of a window.
        window_shift: The shift along each axis.
        device: The device.
    """
    if not window_shift:
        return None
    return pair_axes([_together(n, window_size, window_shift, device) for n in counts])[:, None]


def attend_in_windows(
    q: Tensor, k: Tensor, v: Tensor, window_shift: int, scale: float | None = None
) -> Tensor:
    """Attend within each window of a grid shifted by window_shift.

    Args:
        q: [B, n, n', s, s, heads, D].
        k: Likewise.
        v: Likewise.
        window_shift: The shift along each axis.
        scale: The factor on the scores; by default D^-1/2.
    """
    mask = shifted_mask(q.shape[1:3], q.shape[3], window_shift, q.device)
    q_seq, k_seq, v_seq = (x.flatten(3, 4).flatten(0, 2).transpose(1, 2) for x in (q, k, v))
    return attend(q_seq, k_seq, v_seq, mask, scale=scale).transpose(1, 2).reshape(q.shape)


def apply_window_attention(
    window_size: int, window_shift: int, q: Tensor, k: Tensor, v: Tensor, scale: float | None = None
) -> Tensor:
    """Attend within the shifted windows of a grid.

    Args:
        window_size: The side of a window.
        window_shift: The shift along each axis.
        q: [B, heads, H, W, D].
        k: Likewise.
        v: Likewise.
        scale: The factor on the scores; by default D^-1/2.
    """
    q, k, v = (shifted_window(window_size, window_shift, x).movedim(1, -2) for x in (q, k, v))
    return shifted_unwindow(
        window_shift, attend_in_windows(q, k, v, window_shift, scale).movedim(-2, 1)
    )
