"""Detection of copies: the training images nearest to each sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.images import make_grid
from .arrays import as_pair, as_pictures, as_tensor, whole_number


@dataclass(frozen=True)
class Neighbours:
    """The nearest training image of each sample.

    Attributes:
        index: Its index, [N].
        distance: Its distance, [N].
        ratio: That distance divided by the one of the next nearest, [N].
    """

    index: Tensor
    distance: Tensor
    ratio: Tensor

    def copies(self, below: float = 1 / 3) -> float:
        """Return the share of samples three times as near to one training image as to any other.

        Args:
            below: The ratio below which a sample counts.
        """
        return (self.ratio < below).double().mean().item()


def nearest_neighbours(x: Any, y: Any, chunk: int = 1024) -> Neighbours:
    """Find the nearest training image of each sample, by features or by pixels.

    A ratio far below 1 marks a copy (below 1/3 in the reference).

    Args:
        x: Samples [N, ...].
        y: Training images [M, ...].
        chunk: Number of rows computed at once.

    References:
        Yoon et al. (2023), "Diffusion Probabilistic Models Generalize when They Fail to Memorize".
    """
    whole_number(chunk, 'chunk')
    x, y = _items(x, 'x'), _items(y, 'y')
    if x.shape[1:] != y.shape[1:]:
        raise ValueError(
            f'x and y must hold items of one shape; got {list(x.shape[1:])} and {list(y.shape[1:])}'
        )
    x, y = as_pair(x.flatten(1), y.flatten(1), least=1)
    if len(y) < 2:
        raise ValueError(
            f'y must hold at least 2 training images, the nearest and the next; got {len(y)}'
        )
    pairs = [torch.cdist(part, y).topk(2, largest=False) for part in x.split(chunk)]
    distances = torch.cat([part.values for part in pairs])
    ratio = distances[:, 0] / distances[:, 1].clamp_min(1e-12)
    return Neighbours(torch.cat([part.indices[:, 0] for part in pairs]), distances[:, 0], ratio)


def neighbour_picture(
    x: Any, y: Any, neighbours: Neighbours, pairs: int = 24, columns: int = 6
) -> Tensor:
    """Draw the samples most like copies, each beside its nearest training image, as [C, H, W].

    The likeliest copy comes first.

    Args:
        x: Samples [N, C, H, W].
        y: Training images [M, C, H, W].
        neighbours: The result of nearest_neighbours.
        pairs: Largest number of pairs.
        columns: Number of columns.

    Raises:
        TypeError: If neighbours is not such a result.
        ValueError: If the shapes do not fit it.
    """
    whole_number(columns, 'columns')
    x, y = as_pictures(x, 'x'), as_pictures(y, 'y')
    if not isinstance(neighbours, Neighbours):
        raise TypeError(
            f'neighbours must be a result of nearest_neighbours; got {type(neighbours).__name__}'
        )
    if (
        x.shape[1:] != y.shape[1:]
        or len(x) != len(neighbours.ratio)
        or len(y) <= int(neighbours.index.max())
    ):
        raise ValueError(
            'x and y must be the images that neighbours was computed from; got shapes '
            f'{list(x.shape)} and {list(y.shape)} with {len(neighbours.ratio)} neighbours'
        )
    most = neighbours.ratio.argsort()[: whole_number(pairs, 'pairs')]
    sides = [torch.cat([x[i], y[neighbours.index[i]]], 2) for i in most.tolist()]
    return make_grid(torch.stack(sides), min(columns, len(sides)), padding=4, fill=1.0)


def _items(value: Any, name: str) -> Tensor:
    """Return images in [-1, 1], or features."""
    x = as_tensor(value, name)
    if x.ndim < 2:
        raise ValueError(
            f'{name} must be images [N, C, H, W] or features [N, D]; got shape {list(x.shape)}'
        )
    return as_pictures(x, name) if x.ndim == 4 else x
