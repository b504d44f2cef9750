"""Whether samples are copies: the training pictures nearest to each."""
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.images import make_grid
from .moments import pair


@dataclass(frozen=True)
class Neighbours:
    """The nearest training picture of each sample: index [N], distance [N], and ratio [N] of that distance to the next one's."""

    index: Tensor
    distance: Tensor
    ratio: Tensor

    def copies(self, below: float = 1 / 3) -> float:
        """The share of samples at least three times as near to one training picture as to any other."""
        return (self.ratio < below).double().mean().item()


def nearest_neighbours(x: Tensor, y: Tensor, chunk: int = 1024) -> Neighbours:
    """For samples x [N, ...] among training pictures y [M, ...]: as features, or as pictures, whose pixels are compared.

    A ratio far below 1 marks a copy (below 1/3: Yoon et al. 2023, Diffusion probabilistic models generalize when they fail to
    memorize).
    """
    x, y = pair(x.flatten(1), y.flatten(1), least=1)
    if len(y) < 2:
        raise ValueError('one training picture has no second nearest; give at least 2')
    found = [torch.cdist(part, y).topk(2, largest=False) for part in x.split(chunk)]
    distances = torch.cat([part.values for part in found])
    ratio = distances[:, 0] / distances[:, 1].clamp_min(1e-12)
    return Neighbours(torch.cat([part.indices[:, 0] for part in found]), distances[:, 0], ratio)


def neighbour_picture(x: Tensor, y: Tensor, found: Neighbours, pairs: int = 24, columns: int = 6) -> Tensor:
    """The samples most like copies, each beside its nearest training picture: one picture [C, H, W]; the likeliest copy first."""
    most = found.ratio.argsort()[:pairs]
    sides = [torch.cat([x[i], y[found.index[i]]], 2) for i in most.tolist()]
    return make_grid(torch.stack(sides), min(columns, len(sides)), padding=4, fill=1.)
