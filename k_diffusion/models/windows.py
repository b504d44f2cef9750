"""Square windows of a grid of tokens, and attention within them, shifted for every other layer (Liu et al., 2021, arXiv 2103.14030)."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..layers.attention import attend
from ..layers.fused import fusible


def to_patches(x: Tensor, patch_size: Sequence[int]) -> Tensor:
    """[..., H, W, D] -> [..., H / a, W / b, a, b, D] for patches of a x b; a view."""
    a, b = patch_size
    if x.shape[-3] % a or x.shape[-2] % b:
        raise ValueError(f'a grid of {x.shape[-3]}x{x.shape[-2]} cannot be cut into pieces of {a}x{b}; choose sizes that divide it')
    return x.unflatten(-3, (-1, a)).unflatten(-2, (-1, b)).transpose(-4, -3)


def from_patches(x: Tensor) -> Tensor:
    """[..., H / a, W / b, a, b, D] -> [..., H, W, D]."""
    return x.transpose(-4, -3).flatten(-3, -2).flatten(-4, -3)


def window(window_size: int, x: Tensor) -> Tensor:
    """[..., H, W, D] -> [..., H / s, W / s, s, s, D]."""
    return to_patches(x, (window_size, window_size))


def unwindow(x: Tensor) -> Tensor:
    """The grid that these are the windows of."""
    return from_patches(x)


def shifted_window(window_size: int, window_shift: int, x: Tensor) -> Tensor:
    """The windows of the grid moved down and right by window_shift; what leaves it enters at the other side."""
    return window(window_size, torch.roll(x, (window_shift, window_shift), dims=(-3, -2)) if window_shift else x)


def shifted_unwindow(window_shift: int, x: Tensor) -> Tensor:
    """The inverse of shifted_window."""
    x = unwindow(x)
    return torch.roll(x, (-window_shift, -window_shift), dims=(-3, -2)) if window_shift else x


class Rearranged(torch.autograd.Function):
    """x [B, N, D] with its tokens in another order; `back` undoes it, so that the gradient is moved too, and not added up."""

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


def window_order(height: int, width: int, window_size: int, window_shift: int,
                 device: torch.device | str | None = None) -> tuple[Tensor, Tensor]:
    """The order that puts the tokens of a grid window after window, and the one that puts them back: a copy where rolling makes three."""
    places = torch.arange(height * width, device=device)
    order = shifted_window(window_size, window_shift, places.view(height, width, 1)).flatten()
    back = torch.empty_like(order)
    back[order] = places
    return order, back


def make_shifted_window_masks(n_h_w: int, n_w_w: int, w_h: int, w_w: int, shift: int,
                              device: torch.device | str | None = None) -> Tensor:
    """Who may attend to whom in n_h_w x n_w_w shifted windows of w_h x w_w: bool [n_h_w, n_w_w, w_h, w_w, w_h, w_w].

    In the first row and the first column of windows, what came from the other side of the grid is kept apart.
    """
    def together(n: int, w: int) -> Tensor:
        # As numbers: torch's compiler fails at comparing truth values with each other.
        wrapped = (torch.arange(n * w, device=device) < shift).long().view(n, w)
        return wrapped[:, :, None] == wrapped[:, None, :]

    return together(n_h_w, w_h)[:, None, :, None, :, None] & together(n_w_w, w_w)[None, :, None, :, None, :]


def shifted_mask(n_h: int, n_w: int, s_h: int, s_w: int, window_shift: int,
                 device: torch.device | str | None = None) -> Tensor | None:
    """make_shifted_window_masks for attention over windows in turn, [n_h n_w, 1, s_h s_w, s_h s_w]; None without a shift."""
    if not window_shift:
        return None
    mask = make_shifted_window_masks(n_h, n_w, s_h, s_w, window_shift, device)
    return mask.flatten(4).flatten(2, 3).flatten(0, 1)[:, None]


def attend_in_windows(q: Tensor, k: Tensor, v: Tensor, window_shift: int, scale: float | None = None) -> Tensor:
    """Attention within each window: q, k, v [B, n, n', s, s, heads, D], of a grid shifted by window_shift -> the same."""
    n_h, n_w, s_h, s_w = q.shape[1:5]
    mask = shifted_mask(n_h, n_w, s_h, s_w, window_shift, q.device)
    q_seq, k_seq, v_seq = (x.flatten(3, 4).flatten(0, 2).transpose(1, 2) for x in (q, k, v))
    return attend(q_seq, k_seq, v_seq, mask, scale=scale).transpose(1, 2).reshape(q.shape)


def apply_window_attention(window_size: int, window_shift: int, q: Tensor, k: Tensor, v: Tensor,
                           scale: float | None = None) -> Tensor:
    """Attention within the shifted windows of a grid: q, k, v [B, heads, H, W, D] -> the same."""
    q, k, v = (shifted_window(window_size, window_shift, x).movedim(1, -2) for x in (q, k, v))
    return shifted_unwindow(window_shift, attend_in_windows(q, k, v, window_shift, scale).movedim(-2, 1))
