"""Places on a grid, and rotary embeddings of both coordinates with learned frequencies (after Su
et al., 2021, arXiv 2104.09864).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

Init = Callable[[Sequence[int]], Tensor]


def centers(
    start: float,
    stop: float,
    num: int,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """The middles of num equal pieces of [start, stop]."""
    edges = torch.linspace(start, stop, num + 1, dtype=dtype, device=device)
    return (edges[:-1] + edges[1:]) / 2


def combine_axes(*axes: Tensor) -> Tensor:
    """All combinations of the places along each axis: [H] and [W] -> [H, W, 2]."""
    return torch.stack(torch.meshgrid(*axes, indexing='ij'), dim=-1)


def make_grid(h_pos: Tensor, w_pos: Tensor) -> Tensor:
    """All pairs (y, x): [H] and [W] -> [H W, 2]."""
    return combine_axes(h_pos, w_pos).flatten(0, 1)


def make_positions(sides: Sequence[int], device: torch.device | str | None = None) -> Tensor:
    """The centres of the pixels of a grid of any number of axes, [..., dims], where the longest
    side is [-1, 1].
    """
    reach = [side / max(sides) for side in sides]
    return combine_axes(*(centers(-r, r, side, device=device) for r, side in zip(reach, sides)))


def bounding_box(
    h: int, w: int, pixel_aspect_ratio: float = 1.0
) -> tuple[float, float, float, float]:
    """y_min, y_max, x_min, x_max of an image whose longer side is [-1, 1]; the aspect ratio is a
    pixel's height to its width.
    """
    height, width = h * pixel_aspect_ratio, w
    y, x = min(height / width, 1.0), min(width / height, 1.0)
    return -y, y, -x, x


def make_axial_pos(
    h: int,
    w: int,
    pixel_aspect_ratio: float = 1.0,
    align_corners: bool = False,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """The places (y, x) of an image's pixels, [H W, 2]: their centres, or with align_corners
    from edge to edge.
    """
    y_min, y_max, x_min, x_max = bounding_box(h, w, pixel_aspect_ratio)
    spread = torch.linspace if align_corners else centers
    return make_grid(
        spread(y_min, y_max, h, dtype=dtype, device=device),
        spread(x_min, x_max, w, dtype=dtype, device=device),
    )


def freqs_pixel(max_freq: float = 10.0) -> Init:
    """Initial frequencies: pi to pi max_freq / 2, evenly spaced along the last axis of the
    shape.
    """

    def init(shape: Sequence[int]) -> Tensor:
        return torch.linspace(math.pi, max_freq * math.pi / 2, shape[-1]).expand(shape)

    return init


def freqs_pixel_log(max_freq: float = 10.0) -> Init:
    """Initial logarithms of frequencies: those of pi to pi max_freq / 2, evenly spaced along the
    last axis of the shape.
    """

    def init(shape: Sequence[int]) -> Tensor:
        return torch.linspace(
            math.log(math.pi), math.log(max_freq * math.pi / 2), shape[-1]
        ).expand(shape)

    return init


def rotate_half(x: Tensor) -> Tensor:
    """Each pair of neighbouring features (a, b) turned by a right angle: (-b, a)."""
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([-b, a], dim=-1).flatten(-2)


def apply_rotary_emb(freqs: Tensor, t: Tensor, start_index: int = 0, scale: float = 1.0) -> Tensor:
    """Turns the pairs of features of t from start_index on by the angles freqs (an angle for
    each feature), times scale.
    """
    left, middle, right = t.tensor_split((start_index, start_index + freqs.shape[-1]), dim=-1)
    if middle.shape[-1] != freqs.shape[-1]:
        raise ValueError(
            f'freqs has {freqs.shape[-1]} angles for the features of t from {start_index} on, and '
            't has '
            f'{t.shape[-1]} features in all; give it at most {t.shape[-1] - start_index} angles'
        )
    turned = (middle * freqs.cos() + rotate_half(middle) * freqs.sin()) * scale
    return torch.cat([left, turned.to(t.dtype), right], dim=-1)


class AxialRoPE(nn.Module):
    """Turns dim features of each head, half by the height, half by the width of their token; the
    frequencies are learned.
    """

    def __init__(
        self,
        dim: int,
        n_heads: int,
        start_index: int = 0,
        freqs_init: Init = freqs_pixel_log(max_freq=10.0),  # noqa: B008
    ) -> None:
        super().__init__()
        if dim % 4:
            raise ValueError(
                f'dim is {dim}; it must be a multiple of 4: pairs for the height and pairs for '
                'the width'
            )
        self.start_index = start_index
        self.freqs_h = nn.Parameter(freqs_init([n_heads, dim // 4]).clone())
        self.freqs_w = nn.Parameter(freqs_init([n_heads, dim // 4]).clone())

    def get_freqs(self, pos: Tensor) -> Tensor:
        """pos [..., 2] -> angles [..., heads, dim], each twice."""
        angles = torch.cat(
            [pos[..., None, :1] * self.freqs_h.exp(), pos[..., None, 1:] * self.freqs_w.exp()],
            dim=-1,
        )
        return angles.repeat_interleave(2, dim=-1)

    def forward(self, x: Tensor, pos: Tensor) -> Tensor:
        """x [B, heads, N, D] at pos [N, 2]."""
        return apply_rotary_emb(self.get_freqs(pos).movedim(-2, -3), x, self.start_index)
