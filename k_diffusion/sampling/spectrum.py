"""The Gaussian of the data: a mean, and variances in an orthonormal basis.

The basis is cosines for images and principal components for vectors.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.arguments import check_number, expands
from ..core.spectral import dct, inverse_dct

#: Frequencies along an axis are grouped into at most this many bands, the low ones singly.
BANDS = 16
#: Vectors longer than this are treated entry by entry: principal components would need more data
#: and memory than they are worth.
LONGEST = 256


@dataclass(frozen=True)
class Spectrum:
    """A mean m and variances s^2, each shaped like an item or broadcasting against it.

    Attributes:
        mean: The mean, a plain item (not in the basis).
        variance: The variances in the basis, >= 0.
        basis: 'cosines' (items [C, ...], the DCT of every channel); a matrix [D, D] with
            orthonormal rows (items [D]); or None, where the entries are the coefficients.

    Raises:
        ValueError: If the basis is unknown, or a variance is negative or not finite.
    """

    mean: Tensor
    variance: Tensor
    basis: Tensor | str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.basis, str) and self.basis != 'cosines':
            raise ValueError(f"basis must be 'cosines', a matrix or None; got {self.basis!r}")
        if not bool((self.variance >= 0).all()) or not bool(self.variance.isfinite().all()):
            raise ValueError(
                'variance must be >= 0 and finite in every entry; got negative or infinite entries'
            )

    @classmethod
    def isotropic(cls, std: float, mean: float = 0.0) -> Spectrum:
        """Return a Gaussian of any shape with the same mean and standard deviation everywhere.

        Args:
            std: The standard deviation.
            mean: The mean.
        """
        std, mean = (
            check_number('std', std, 0.0, hint='a standard deviation'),
            check_number('mean', mean),
        )
        return cls(
            torch.tensor(mean, dtype=torch.float64), torch.tensor(std**2, dtype=torch.float64)
        )

    @classmethod
    def of(cls, data: Tensor) -> Spectrum:
        """Estimate the spectrum of items: principal components for vectors, cosines for images.

        Variances of images are averaged over bands of neighbouring frequencies. The mean keeps the
        BANDS lowest frequencies of each axis.

        Args:
            data: Items [N, D] or [N, C, ...], at least two.

        Raises:
            TypeError: If data is not a tensor.
            ValueError: If data holds fewer than two items.
        """
        if not isinstance(data, Tensor):
            raise TypeError(
                f'data must be a tensor of items, [N, D] or [N, C, ...]; got {type(data).__name__}'
            )
        if data.ndim < 2 or len(data) < 2:
            raise ValueError(
                'data must hold at least two items, [N, D] or [N, C, ...]; got shape '
                f'{tuple(data.shape)}'
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
            variance = _band(variance, axis)
        return cls(inverse_dct(low[None])[0], variance, 'cosines')

    @classmethod
    def _principal(cls, offsets: Tensor, mean: Tensor) -> Spectrum:
        if len(mean) > LONGEST:
            return cls(mean, offsets.square().mean(0))
        values, vectors = torch.linalg.eigh(offsets.mT @ offsets / len(offsets))
        return cls(mean, values.clamp_min(0), vectors.mT.contiguous())

    def like(self, x: Tensor) -> Spectrum:
        """Return the spectrum in the dtype and on the device of x.

        Args:
            x: A batch [B, ...].

        Raises:
            ValueError: If its items have another shape than x's.
        """
        matrix = self.basis if isinstance(self.basis, Tensor) else None
        shapes = [self.mean.shape, self.variance.shape] + (
            [] if matrix is None else [matrix.shape[1:]]
        )
        if not all(expands(shape, x.shape[1:]) for shape in shapes):
            raise ValueError(
                f'x must hold items of the shape of the spectrum, {tuple(self.variance.shape)}; '
                'got '
                f'{tuple(x.shape[1:])}. Spectrum.of(data) makes a spectrum from data like x'
            )
        return dataclasses.replace(
            self,
            mean=self.mean.to(x),
            variance=self.variance.to(x),
            basis=self.basis if matrix is None else matrix.to(x),
        )

    def analyse(self, x: Tensor) -> Tensor:
        """Return the coefficients of x - m in the basis.

        Args:
            x: A batch [B, ...].
        """
        x = x - self.mean
        if isinstance(self.basis, Tensor):
            return x @ self.basis.mT
        return x if self.basis is None else dct(x)

    def synthesise(self, y: Tensor) -> Tensor:
        """Return the batch x with these coefficients.

        Args:
            y: Coefficients [B, ...].
        """
        if isinstance(self.basis, Tensor):
            return y @ self.basis + self.mean
        return (y if self.basis is None else inverse_dct(y)) + self.mean

    def denoise(self, x: Tensor, sigma: float) -> Tensor:
        """Return the exact denoiser of this Gaussian, m + s^2 / (s^2 + sigma^2) y.

        Args:
            x: A noisy batch [B, ...].
            sigma: Its noise level.
        """
        return self.synthesise(self.variance / (self.variance + sigma**2) * self.analyse(x))


def bands(n: int) -> list[int]:
    """Return the band of each of n frequencies: single ones first, then wider bands, BANDS at most.

    Args:
        n: Number of frequencies.
    """
    if n <= BANDS:
        return list(range(n))
    edges, ratio = [0.0, 1.0], 1.0
    while len(edges) <= BANDS:
        ratio = (n / edges[-1]) ** (1 / (BANDS + 1 - len(edges)))
        edges.append(max(edges[-1] + 1, edges[-1] * ratio))
    return [sum(edge <= k + 1e-9 for edge in edges[1:-1]) for k in range(n)]


def _band(variance: Tensor, axis: int) -> Tensor:
    """Replace each entry along an axis by the mean of its band."""
    n = variance.shape[axis]
    member = torch.nn.functional.one_hot(torch.tensor(bands(n))).double()
    mean = (variance.movedim(axis, -1) @ member) / member.sum(0)
    return (mean @ member.mT).movedim(-1, axis)
