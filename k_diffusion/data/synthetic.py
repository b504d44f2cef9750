"""Pictures that need no files: for tests and benchmarks."""
from __future__ import annotations

import torch
from torch import Tensor

from ..core.random import generator


def icons(n: int, size: int = 64, channels: int = 3, seed: int = 0) -> Tensor:
    """Discs and boxes of random places, sizes and colours over each other on white: uint8 [n, C, size, size]."""
    source = generator(seed, 'icons')
    images = torch.full((n, channels, size, size), 255, dtype=torch.uint8)
    grid = torch.arange(size) / size
    for radius in (0.4, 0.25, 0.15):
        centre = 0.3 + 0.4 * torch.rand(n, 2, generator=source)
        colour = torch.randint(256, (n, channels, 1, 1), dtype=torch.uint8, generator=source)
        down, across = (grid - centre[:, 0, None])[:, :, None].abs(), (grid - centre[:, 1, None])[:, None].abs()
        is_round = torch.rand(n, 1, 1, generator=source) < 0.5
        distance = torch.where(is_round, torch.hypot(down, across), torch.maximum(down, across))
        images = torch.where((distance < radius)[:, None], colour, images)
    return images
