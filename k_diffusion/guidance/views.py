"""Views of an image: crops and small shifts as a function of noise level and seed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.arguments import show_value


def views(
    images: Tensor,
    size: int,
    sigma: Tensor,
    n: int = 1,
    power: float = 1.0,
    seed: int = 0,
    jitter: float = 1 / 14,
) -> Tensor:
    """Cut n views of each image, [B, C, H, W] -> [n B, C, size, size], view by view.

    The first view is the whole image, shifted by up to `jitter` of its sides. Each further one is a
    square crop at a random place, with a side of u^power between `size` and the shorter side of the
    image, u uniform. The draws depend on (seed, sigma, view) only: not on the batch, the device or
    a generator.

    Args:
        images: [B, C, H, W].
        size: Side of the views.
        sigma: Noise levels, [B].
        n: Number of views of each image.
        power: A larger power gives smaller crops.
        seed: The seed.
        jitter: Largest shift of the first view, as a share of the sides.

    Raises:
        ValueError: If images has another number of dimensions.
    """
    if not isinstance(images, Tensor) or images.ndim != 4:
        raise ValueError(f'images must be a batch of images [B, C, H, W]; got {show_value(images)}')
    shorter = min(images.shape[2:])
    least = min(size, shorter) / shorter
    out = []
    for view in range(n):
        u = uniform(sigma, seed * 8191 + view, 3).to(images)
        if view == 0:
            share = torch.ones_like(u[:, 0])
            room = torch.full_like(share, 2 * jitter)
        else:
            share = least + (1 - least) * u[:, 0] ** power
            room = (1 - share).clamp(min=2 * jitter)
        out.append(_crop(images, share, (2 * u[:, 1:] - 1) * room[:, None], size))
    return torch.cat(out)


def _crop(images: Tensor, share: Tensor, shift: Tensor, size: int) -> Tensor:
    """Return squares with `share` of the shorter side, scaled to [size, size].

    Their centres are shifted by shift [B, 2], in half sides.
    """
    h, w = images.shape[2:]
    shorter = min(h, w)
    zero = torch.zeros_like(share)
    rows = [
        torch.stack([share * (shorter / w), zero, shift[:, 0]], 1),
        torch.stack([zero, share * (shorter / h), shift[:, 1]], 1),
    ]
    inner = max(size, shorter)  # sampled finely, then shrunk with antialiasing
    grid = F.affine_grid(
        torch.stack(rows, 1), [len(images), images.shape[1], inner, inner], align_corners=False
    )
    picture = F.grid_sample(images, grid, padding_mode='border', align_corners=False)
    return (
        picture
        if inner == size
        else F.interpolate(picture, (size, size), mode='bicubic', antialias=True)
    )


def uniform(sigma: Tensor, seed: int, k: int) -> Tensor:
    """Return numbers [B, k] in [0, 1) as a function of (sigma, seed, column).

    A counter is hashed, so that there is no generator to wait for. The hash is the finaliser of
    SplitMix64 in wrapping 64-bit integers.

    Args:
        sigma: Noise levels, [B].
        seed: The seed.
        k: Number of columns.

    References:
        Steele, Lea & Flood (2014), doi:10.1145/2660193.2660195.
    """
    bits = sigma.to(torch.float32).view(torch.int32).long()[:, None]
    z = (
        bits * -7046029254386353131
        + torch.arange(1, k + 1, device=sigma.device) * -4658895280553007687
        + (seed * 2654435761) % 2**31
    )
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685)):
        z = (z ^ _shift_right(z, shift)) * factor
    z = z ^ _shift_right(z, 31)
    return _shift_right(z, 40).float() / 2**24


def _shift_right(z: Tensor, by: int) -> Tensor:
    """Shift right logically (torch's shift keeps the sign)."""
    return (z >> by) & ((1 << (64 - by)) - 1)
