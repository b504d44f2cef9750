"""Mean and covariance of features, gathered batch by batch and merged over processes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from .arrays import as_features, as_tensor


class Moments:
    """n, mean [D] and scatter [D, D] (the sum of (f - mean)(f - mean)^T) of features [N, D], in
    float64.

    Batches may come in any portions, and moments of parts may be merged, without loss of precision
    (Chan, Golub and LeVeque 1983, doi:10.1080/00031305.1983.10483115).
    """

    def __init__(self) -> None:
        self.n = 0
        self.mean = torch.zeros(0, dtype=torch.float64)
        self.scatter = torch.zeros(0, 0, dtype=torch.float64)

    @classmethod
    def of(cls, features: Any) -> Moments:
        """Of features [N, D] (a tensor, an array or a list of rows), or of batches of them."""
        moments = cls()
        for batch in [features] if _is_one_batch(features) else features:
            moments.update(batch)
        return moments

    def update(self, features: Any) -> None:
        """Takes in a batch [N, D]."""
        features = as_features(features, 'features', least=0).double()
        if len(features):
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
            raise ValueError(
                f'features must have the {len(self.mean)} numbers of those before; '
                f'got {len(mean)}: use one extractor'
            )
        total, shift = self.n + n, mean - self.mean
        self.mean = self.mean + shift * (n / total)
        self.scatter = self.scatter + scatter + torch.outer(shift, shift) * (self.n * n / total)
        self.n = total

    @property
    def covariance(self) -> Tensor:
        """The unbiased covariance [D, D]."""
        if self.n < 2:
            raise ValueError(f'features must have at least 2 rows for a covariance; got {self.n}')
        return self.scatter / (self.n - 1)

    def state_dict(self) -> dict[str, Any]:
        return {'n': torch.tensor(self.n), 'mean': self.mean, 'scatter': self.scatter}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self.n, self.mean, self.scatter = (
            int(state_dict['n']),
            state_dict['mean'],
            state_dict['scatter'],
        )


def _is_one_batch(features: Any) -> bool:
    """Tell features from batches of them: a list whose first part is a row of numbers is one."""
    if isinstance(features, (list, tuple)) and features:
        return as_tensor(features[0], 'features').ndim < 2
    return (
        hasattr(features, '__array__')
        or not isinstance(features, Iterable)
        or isinstance(features, (str, bytes, Mapping))
    )
