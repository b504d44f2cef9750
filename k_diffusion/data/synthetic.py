"""Data without files: images for tests and benchmarks, and sequences and volumes for trials."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..core.random import generator
from .datasets import Dataset
from .opening import DATASETS, DatasetConfig, Request
from .python import TensorData


def icons(n: int, size: int = 64, channels: int = 3, seed: int = 0) -> Tensor:
    """Draw random discs and boxes on white, uint8 [n, C, size, size].

    Args:
        n: Number of images.
        size: Their side.
        channels: Number of channels.
        seed: The seed.
    """
    source = generator(seed, 'icons')
    images = torch.full((n, channels, size, size), 255, dtype=torch.uint8)
    grid = torch.arange(size) / size
    for radius in (0.4, 0.25, 0.15):
        centre = 0.3 + 0.4 * torch.rand(n, 2, generator=source)
        colour = torch.randint(256, (n, channels, 1, 1), dtype=torch.uint8, generator=source)
        down, across = (
            (grid - centre[:, 0, None])[:, :, None].abs(),
            (grid - centre[:, 1, None])[:, None].abs(),
        )
        is_round = torch.rand(n, 1, 1, generator=source) < 0.5
        distance = torch.where(is_round, torch.hypot(down, across), torch.maximum(down, across))
        images = torch.where((distance < radius)[:, None], colour, images)
    return images


def waves(n: int, length: int = 64, channels: int = 2, seed: int = 0) -> Tensor:
    """Return sines of random frequency (2 to 6 periods) and phase, float32 [n, C, length].

    Neighbouring channels are a quarter of a period apart.

    Args:
        n: Number of items.
        length: Their length.
        channels: Number of channels.
        seed: The seed.
    """
    source = generator(seed, 'waves')
    periods, phase = (
        2 + 4 * torch.rand(n, 1, 1, generator=source),
        torch.rand(n, 1, 1, generator=source),
    )
    quarter = torch.arange(channels)[:, None] / 4
    return (2 * math.pi * (periods * torch.arange(length) / length + phase + quarter)).sin()


def blobs(n: int, size: Sequence[int] = (12, 12, 12), channels: int = 1, seed: int = 0) -> Tensor:
    """Return a Gaussian bump from -1 (far away) to 1 (its centre) per item and channel.

    The centre is at 0.3 to 0.7 of each side, the deviation 0.15 to 0.25 of it; float32 [n, C,
    *size].

    Args:
        n: Number of items.
        size: Their sides.
        channels: Number of channels.
        seed: The seed.
    """
    source = generator(seed, 'blobs')
    deviation = 0.15 + 0.1 * torch.rand(n, channels, generator=source)
    value = torch.full([n, channels, *size], 2.0)
    for axis, side in enumerate(size):
        centre = 0.3 + 0.4 * torch.rand(n, channels, generator=source)
        distance = ((torch.arange(side) + 0.5) / side - centre[..., None]) / deviation[..., None]
        shape = [n, channels, *[1] * axis, side, *[1] * (len(size) - axis - 1)]
        value *= (-distance.square() / 2).exp().view(shape)
    return value - 1


@DATASETS.register('synthetic')
@dataclass(kw_only=True)
class SyntheticConfig(DatasetConfig):
    """Sequences (waves) or bumps in any number of dimensions (blobs), of the model's size.

    Attributes:
        kind: 'waves' or 'blobs'.
        n: Number of items.
        seed: The seed.
    """

    pictures: ClassVar[bool] = False

    type: Literal['synthetic'] = 'synthetic'
    kind: Literal['waves', 'blobs'] = 'waves'
    n: int = 4096
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n < 1:
            raise ValueError(f'n must be >= 1; got {self.n}')

    def open(self, request: Request) -> Dataset:
        """Return the items.

        Args:
            request: The sides and channels of the items.
        """
        if self.kind == 'waves' and len(request.sides) != 1:
            raise ValueError(
                f'dataset.kind must be blobs for a model of dims {len(request.sides)}; got waves'
            )
        points = (
            waves(self.n, request.sides[0], request.channels, self.seed)
            if self.kind == 'waves'
            else blobs(self.n, request.sides, request.channels, self.seed)
        )
        data = TensorData(points, {}, 0)
        data.source = f'the synthetic {self.kind}'
        return data
