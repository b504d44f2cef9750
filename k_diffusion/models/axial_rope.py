"""Positions on a grid, and rotary embeddings of both coordinates with learned frequencies.

References:
    Su et al. (2021), arXiv:2104.09864; axial with learned frequencies: Crowson et al. (2024),
    arXiv:2401.11605.
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
    """Return the centres of equal parts of an interval.

    Args:
        start: Its start.
        stop: Its end.
        num: The number of parts.
        dtype: The dtype.
        device: The device.
    """
    edges = torch.linspace(start, stop, num + 1, dtype=dtype, device=device)
    return (edges[:-1] + edges[1:]) / 2


def combine_axes(*axes: Tensor) -> Tensor:
    """Return all combinations of positions along axes: [H] and [W] -> [H, W, 2].

    Args:
        *axes: The positions along each axis.
    """
    return torch.stack(torch.meshgrid(*axes, indexing='ij'), dim=-1)


def make_grid(h_pos: Tensor, w_pos: Tensor) -> Tensor:
    """Return all pairs (y, x): [H] and [W] -> [H W, 2].

    Args:
        h_pos: The positions along the height.
        w_pos: The positions along the width.
    """
    return combine_axes(h_pos, w_pos).flatten(0, 1)


def make_positions(sides: Sequence[int], device: torch.device | str | None = None) -> Tensor:
    """Return the centres of the pixels of a grid, [..., dims], with its longest side as [-1, 1].

    Args:
        sides: The sides, for any number of axes.
        device: The device.
    """
    reach = [side / max(sides) for side in sides]
    return combine_axes(*(centers(-r, r, side, device=device) for r, side in zip(reach, sides)))


def bounding_box(
    h: int, w: int, pixel_aspect_ratio: float = 1.0
) -> tuple[float, float, float, float]:
    """Return y_min, y_max, x_min, x_max of an image whose longer side is [-1, 1].

    Args:
        h: Pixels along the height.
        w: Pixels along the width.
        pixel_aspect_ratio: Height of a pixel divided by its width.
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
    """Return the positions (y, x) of an image's pixels, [H W, 2].

    Args:
        h: Pixels along the height.
        w: Pixels along the width.
        pixel_aspect_ratio: Height of a pixel divided by its width.
        align_corners: Space the positions from edge to edge; False takes the centres of pixels.
        dtype: The dtype.
        device: The device.
    """
    y_min, y_max, x_min, x_max = bounding_box(h, w, pixel_aspect_ratio)
    spread = torch.linspace if align_corners else centers
    return make_grid(
        spread(y_min, y_max, h, dtype=dtype, device=device),
        spread(x_min, x_max, w, dtype=dtype, device=device),
    )


def freqs_pixel(max_freq: float = 10.0) -> Init:
    """Return an initialiser of frequencies: pi to pi max_freq / 2, evenly along the last axis.

    Args:
        max_freq: The highest frequency in units of pi / 2.
    """

    def init(shape: Sequence[int]) -> Tensor:
        return torch.linspace(math.pi, max_freq * math.pi / 2, shape[-1]).expand(shape)

    return init


def freqs_pixel_log(max_freq: float = 10.0) -> Init:
    """Return an initialiser of the logarithms of frequencies, evenly along the last axis.

    They go from log(pi) to log(pi max_freq / 2).

    Args:
        max_freq: The highest frequency in units of pi / 2.
    """

    def init(shape: Sequence[int]) -> Tensor:
        return torch.linspace(
            math.log(math.pi), math.log(max_freq * math.pi / 2), shape[-1]
        ).expand(shape)

    return init


def rotate_half(x: Tensor) -> Tensor:
    """Rotate each pair of neighbouring features (a, b) by a right angle: (-b, a).

    Args:
        x: [..., D].
    """
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([-b, a], dim=-1).flatten(-2)


def apply_rotary_emb(freqs: Tensor, t: Tensor, start_index: int = 0, scale: float = 1.0) -> Tensor:
    """Rotate the pairs of features from start_index on.

    Args:
        freqs: An angle for each rotated feature.
        t: [..., D].
        start_index: The first rotated feature.
        scale: A factor on the rotated features.

    Raises:
        ValueError: If there are more angles than features.
    """
    left, middle, right = t.tensor_split((start_index, start_index + freqs.shape[-1]), dim=-1)
    if middle.shape[-1] != freqs.shape[-1]:
        raise ValueError(
            f'freqs must have at most {t.shape[-1] - start_index} angles, for the features of t '
            f'from {start_index} on; got {freqs.shape[-1]}'
        )
    rotated = (middle * freqs.cos() + rotate_half(middle) * freqs.sin()) * scale
    return torch.cat([left, rotated.to(t.dtype), right], dim=-1)


class AxialRoPE(nn.Module):
    """Rotates dim features of each head, half by the height and half by the width of their token.

    The frequencies are learned.

    Args:
        dim: The rotated features per head, a multiple of 4.
        n_heads: The number of heads.
        start_index: The first rotated feature.
        freqs_init: Initialises the log frequencies from a shape.
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
                'dim must be a multiple of 4, pairs for the height and pairs for the width; '
                f'got {dim}'
            )
        self.start_index = start_index
        self.freqs_h = nn.Parameter(freqs_init([n_heads, dim // 4]).clone())
        self.freqs_w = nn.Parameter(freqs_init([n_heads, dim // 4]).clone())

    def get_freqs(self, pos: Tensor) -> Tensor:
        """Return the angles of positions: [..., 2] -> [..., heads, dim], each angle twice.

        Args:
            pos: The positions.
        """
        angles = torch.cat(
            [pos[..., None, :1] * self.freqs_h.exp(), pos[..., None, 1:] * self.freqs_w.exp()],
            dim=-1,
        )
        return angles.repeat_interleave(2, dim=-1)

    def forward(self, x: Tensor, pos: Tensor) -> Tensor:
        """Rotate x [B, heads, N, D].

        Args:
            x: Queries or keys.
            pos: Their positions, [N, 2].
        """
        return apply_rotary_emb(self.get_freqs(pos).movedim(-2, -3), x, self.start_index)
