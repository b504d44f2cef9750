"""Mean and covariance of features, accumulated over batches and processes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from .arrays import as_features, as_tensor


class Moments:
    """n, mean [D] and scatter [D, D] (the sum of (f - mean)(f - mean)^T) of features, in float64.

    Batches may have any sizes, and moments of parts may be merged, without loss of precision.

    References:
        Chan, Golub & LeVeque (1983), doi:10.1080/00031305.1983.10483115.
    """

    def __init__(self) -> None:
        self.n = 0
        self.mean = torch.zeros(0, dtype=torch.float64)
        self.scatter = torch.zeros(0, 0, dtype=torch.float64)

    @classmethod
    def of(cls, features: Any) -> Moments:
        """Return the moments of features [N, D], or of batches of them.

        Args:
            features: A tensor, an array or a list of rows; or an iterable of batches.
        """
        moments = cls()
        for batch in [features] if _is_one_batch(features) else features:
            moments.update(batch)
        return moments

    def update(self, features: Any) -> None:
        """Add a batch.

        Args:
            features: [N, D].
        """
        features = as_features(features, 'features', least=0).double()
        if len(features):
            mean = features.mean(0)
            centred = features - mean
            self._take(len(features), mean, centred.T @ centred)

    def merge(self, other: Moments) -> None:
        """Add the moments of other features.

        Args:
            other: The moments.
        """
        if other.n:
            self._take(other.n, other.mean, other.scatter)

    def _take(self, n: int, mean: Tensor, scatter: Tensor) -> None:
        if self.n == 0:
            self.n, self.mean, self.scatter = n, mean.clone(), scatter.clone()
            return
        if mean.shape != self.mean.shape:
            raise ValueError(
                f'features must have the width {len(self.mean)} of those before; '
                f'got {len(mean)}. Use one extractor'
            )
        total, shift = self.n + n, mean - self.mean
        self.mean = self.mean + shift * (n / total)
        self.scatter = self.scatter + scatter + torch.outer(shift, shift) * (self.n * n / total)
        self.n = total

    @property
    def covariance(self) -> Tensor:
        """Return the unbiased covariance [D, D]."""
        if self.n < 2:
            raise ValueError(f'features must have at least 2 rows for a covariance; got {self.n}')
        return self.scatter / (self.n - 1)

    def state_dict(self) -> dict[str, Any]:
        """Return n, mean and scatter."""
        return {'n': torch.tensor(self.n), 'mean': self.mean, 'scatter': self.scatter}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore n, mean and scatter.

        Args:
            state_dict: The result of `state_dict`.
        """
        self.n, self.mean, self.scatter = (
            int(state_dict['n']),
            state_dict['mean'],
            state_dict['scatter'],
        )


def _is_one_batch(features: Any) -> bool:
    """Return True for features, False for batches of them.

    A list whose first part is a row of numbers is one batch.
    """
    if isinstance(features, (list, tuple)) and features:
        return as_tensor(features[0], 'features').ndim < 2
    return (
        hasattr(features, '__array__')
        or not isinstance(features, Iterable)
        or isinstance(features, (str, bytes, Mapping))
    )
