"""Whether samples are copies: the training pictures nearest to each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.images import make_grid
from .arrays import as_pair, as_pictures, as_tensor, whole_number


@dataclass(frozen=True)
class Neighbours:
    """The nearest training picture of each sample: index [N], distance [N], and ratio [N] of
    that distance to the next one's.
    """

    index: Tensor
    distance: Tensor
    ratio: Tensor

    def copies(self, below: float = 1 / 3) -> float:
        """The share of samples at least three times as near to one training picture as to any
        other.
        """
        return (self.ratio < below).double().mean().item()


def nearest_neighbours(x: Any, y: Any, chunk: int = 1024) -> Neighbours:
    """For samples x [N, ...] among training pictures y [M, ...]: as features, or as pictures, whose
    pixels are compared.

    A ratio far below 1 marks a copy (below 1/3: Yoon et al. 2023, Diffusion probabilistic models
    generalize when they fail to memorize).
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
            f'y must hold at least 2 training pictures, the nearest and the next; got {len(y)}'
        )
    found = [torch.cdist(part, y).topk(2, largest=False) for part in x.split(chunk)]
    distances = torch.cat([part.values for part in found])
    ratio = distances[:, 0] / distances[:, 1].clamp_min(1e-12)
    return Neighbours(torch.cat([part.indices[:, 0] for part in found]), distances[:, 0], ratio)


def neighbour_picture(
    x: Any, y: Any, found: Neighbours, pairs: int = 24, columns: int = 6
) -> Tensor:
    """The samples most like copies, each beside its nearest training picture: one picture [C, H,
    W]; the likeliest copy first.
    """
    whole_number(columns, 'columns')
    x, y = as_pictures(x, 'x'), as_pictures(y, 'y')
    if not isinstance(found, Neighbours):
        raise TypeError(f'found must be what nearest_neighbours gave; got a {type(found).__name__}')
    if x.shape[1:] != y.shape[1:] or len(x) != len(found.ratio) or len(y) <= int(found.index.max()):
        raise ValueError(
            f'x and y must be the pictures of one shape that found was made of; got the shapes '
            f'{list(x.shape)} and '
            f'{list(y.shape)} with {len(found.ratio)} neighbours'
        )
    most = found.ratio.argsort()[: whole_number(pairs, 'pairs')]
    sides = [torch.cat([x[i], y[found.index[i]]], 2) for i in most.tolist()]
    return make_grid(torch.stack(sides), min(columns, len(sides)), padding=4, fill=1.0)


def _items(value: Any, name: str) -> Tensor:
    """Pictures in [-1, 1], of bytes or not, or features."""
    x = as_tensor(value, name)
    if x.ndim < 2:
        raise ValueError(
            f'{name} must be pictures [N, C, H, W] or features [N, D]; got the shape '
            f'{list(x.shape)}'
        )
    return as_pictures(x, name) if x.ndim == 4 else x
