"""The data's Gaussian: a mean, and variances in a basis of cosines (images) or of principal
components (vectors).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.arguments import check_number, expands
from ..core.spectral import dct, inverse_dct

#: Frequencies along an axis are taken together in at most so many bands, the low ones singly.
BANDS = 16
#: Longer vectors are taken entry by entry: their principal components would need more data and
#: memory than they are worth.
LONGEST = 256


@dataclass(frozen=True)
class Spectrum:
    """Mean m and variances s^2, each shaped like an item or broadcasting against it.

    basis: 'cosines' (items [C, ...]: the DCT of every channel), a matrix [D, D] whose rows are
    orthonormal (items [D]), or None, where the entries themselves are the coefficients. The mean is
    a plain item, not in the basis.
    """

    mean: Tensor
    variance: Tensor
    basis: Tensor | str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.basis, str) and self.basis != 'cosines':
            raise ValueError(
                f'basis is {self.basis!r}; a spectrum has the basis "cosines", a matrix or None'
            )
        if not bool((self.variance >= 0).all()) or not bool(self.variance.isfinite().all()):
            raise ValueError(
                'a spectrum was given variances that are negative or not finite; each must be a '
                'number of at least 0'
            )

    @classmethod
    def isotropic(cls, std: float, mean: float = 0.0) -> Spectrum:
        """The same mean and standard deviation for every entry, whatever the shape."""
        std, mean = (
            check_number('std', std, 0.0, hint='a standard deviation'),
            check_number('mean', mean),
        )
        return cls(
            torch.tensor(mean, dtype=torch.float64), torch.tensor(std**2, dtype=torch.float64)
        )

    @classmethod
    def of(cls, data: Tensor) -> Spectrum:
        """The spectrum of items [N, ...]: principal components for vectors, cosines for [N, C,
        ...].

        Variances of images are averaged over bands of neighbouring frequencies, and the mean keeps
        the same number of them.
        """
        if not isinstance(data, Tensor):
            raise TypeError(
                'data must be a tensor of items, [N, D] or [N, C, ...]; got a '
                f'{type(data).__name__}'
            )
        if data.ndim < 2 or len(data) < 2:
            raise ValueError(
                f'data has shape {tuple(data.shape)}; a spectrum needs at least two items, [N, D] '
                'or [N, C, ...]'
            )
        data = data.detach().double().cpu()
        mean = data.mean(0)
        if data.ndim == 2:
            return cls._principal(data - mean, mean)
        if data.ndim > 5:
            return cls(mean, (data - mean).square().mean(0))
        low = dct(mean[None])[0]
        for axis, n in enumerate(low.shape[1:], 1):
            low.narrow(axis, min(BANDS, n), max(0, n - BANDS)).zero_()
        variance = dct(data - mean).square().mean(0)
        for axis in range(1, variance.ndim):
            variance = _banded(variance, axis)
        return cls(inverse_dct(low[None])[0], variance, 'cosines')

    @classmethod
    def _principal(cls, offsets: Tensor, mean: Tensor) -> Spectrum:
        if len(mean) > LONGEST:
            return cls(mean, offsets.square().mean(0))
        values, vectors = torch.linalg.eigh(offsets.mT @ offsets / len(offsets))
        return cls(mean, values.clamp_min(0), vectors.mT.contiguous())

    def like(self, x: Tensor) -> Spectrum:
        """The same spectrum in the precision and on the device of x [B, ...], whose items it
        must fit.
        """
        matrix = self.basis if isinstance(self.basis, Tensor) else None
        shapes = [self.mean.shape, self.variance.shape] + (
            [] if matrix is None else [matrix.shape[1:]]
        )
        if not all(expands(shape, x.shape[1:]) for shape in shapes):
            raise ValueError(
                f'the spectrum is of items of shape {tuple(self.variance.shape)} and x holds '
                'items of shape '
                f'{tuple(x.shape[1:])}; make one with Spectrum.of(data) from data like x'
            )
        return dataclasses.replace(
            self,
            mean=self.mean.to(x),
            variance=self.variance.to(x),
            basis=self.basis if matrix is None else matrix.to(x),
        )

    def analyse(self, x: Tensor) -> Tensor:
        """The coefficients of x [B, ...] in the basis, the mean taken away."""
        x = x - self.mean
        if isinstance(self.basis, Tensor):
            return x @ self.basis.mT
        return x if self.basis is None else dct(x)

    def synthesise(self, y: Tensor) -> Tensor:
        """x of the coefficients y [B, ...]."""
        if isinstance(self.basis, Tensor):
            return y @ self.basis + self.mean
        return (y if self.basis is None else inverse_dct(y)) + self.mean

    def denoise(self, x: Tensor, sigma: float) -> Tensor:
        """The denoiser of this Gaussian: m + s^2 / (s^2 + sigma^2) y."""
        return self.synthesise(self.variance / (self.variance + sigma**2) * self.analyse(x))


def bands(n: int) -> list[int]:
    """The band of each of n frequencies: the first few alone, then ever wider ones, BANDS at
    most.
    """
    if n <= BANDS:
        return list(range(n))
    edges, ratio = [0.0, 1.0], 1.0
    while len(edges) <= BANDS:
        ratio = (n / edges[-1]) ** (1 / (BANDS + 1 - len(edges)))
        edges.append(max(edges[-1] + 1, edges[-1] * ratio))
    return [sum(edge <= k + 1e-9 for edge in edges[1:-1]) for k in range(n)]


def _banded(variance: Tensor, axis: int) -> Tensor:
    """Each entry along an axis replaced by the mean of its band."""
    n = variance.shape[axis]
    member = torch.nn.functional.one_hot(torch.tensor(bands(n))).double()
    mean = (variance.movedim(axis, -1) @ member) / member.sum(0)
    return (mean @ member.mT).movedim(-1, axis)
