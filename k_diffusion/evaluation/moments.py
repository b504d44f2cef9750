"""Mean and covariance of features, gathered batch by batch and merged over processes."""
from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor


class Moments:
    """n, mean [D] and scatter [D, D] (the sum of (f - mean)(f - mean)^T) of features [N, D], in float64.

    Batches may come in any portions, and moments of parts may be merged, without loss of precision
    (Chan, Golub and LeVeque 1983, doi:10.1080/00031305.1983.10483115).
    """

    def __init__(self) -> None:
        self.n = 0
        self.mean = torch.zeros(0, dtype=torch.float64)
        self.scatter = torch.zeros(0, 0, dtype=torch.float64)

    @classmethod
    def of(cls, features: Tensor | Iterable[Tensor]) -> Moments:
        """Of features [N, D], or of batches of them."""
        moments = cls()
        for batch in [features] if isinstance(features, Tensor) else features:
            moments.update(batch)
        return moments

    def update(self, features: Tensor) -> None:
        """Takes in a batch [N, D]."""
        checked(features, 'features', least=0)
        if len(features):
            features = features.double()
            mean = features.mean(0)
            centred = features - mean
            self._take(len(features), mean, centred.T @ centred)

    def merge(self, other: Moments) -> None:
        """Takes in the moments of other features."""
        if other.n:
            self._take(other.n, other.mean, other.scatter)

    def _take(self, n: int, mean: Tensor, scatter: Tensor) -> None:
        if self.n == 0:
            self.n, self.mean, self.scatter = n, mean.clone(), scatter.clone()
            return
        if mean.shape != self.mean.shape:
            raise ValueError(f'features of {len(mean)} numbers cannot be added to features of {len(self.mean)}; use one extractor')
        total, shift = self.n + n, mean - self.mean
        self.mean = self.mean + shift * (n / total)
        self.scatter = self.scatter + scatter + torch.outer(shift, shift) * (self.n * n / total)
        self.n = total

    @property
    def covariance(self) -> Tensor:
        """The unbiased covariance [D, D]."""
        if self.n < 2:
            raise ValueError(f'the covariance of {self.n} features is not defined; give at least 2')
        return self.scatter / (self.n - 1)

    def state_dict(self) -> dict[str, Any]:
        return {'n': torch.tensor(self.n), 'mean': self.mean, 'scatter': self.scatter}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self.n, self.mean, self.scatter = int(state_dict['n']), state_dict['mean'], state_dict['scatter']


def checked(features: Tensor, name: str, least: int = 2) -> Tensor:
    """Features [N, D] as they are, or a ValueError where they have another shape, are too few, or not finite."""
    if features.ndim != 2:
        raise ValueError(f'{name} has shape {list(features.shape)}; features are [N, D], a row for each picture')
    if len(features) < least:
        raise ValueError(f'{name} holds {len(features)} rows; at least {least} are needed')
    if not features.isfinite().all():
        raise ValueError(f'{name} holds NaN or infinity; check the pictures and the extractor')
    return features


def pair(x: Tensor, y: Tensor, least: int = 2) -> tuple[Tensor, Tensor]:
    """Two sets of features of the same width, checked, in float64."""
    checked(x, 'x', least)
    checked(y, 'y', least)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f'x has features of {x.shape[1]} numbers and y of {y.shape[1]}; use one extractor for both')
    return x.double(), y.to(x.device).double()
