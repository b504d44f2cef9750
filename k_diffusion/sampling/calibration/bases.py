"""What calibrated solvers start from: three multistep methods in one form, y' = a y + sum b_j F_j.

eab: y = x, F = D, exponential Adams-Bashforth in log sigma. rab: y = x, F = eps = (x - D) / sigma,
interpolated in sigma^(1/7). sei: y and F = Q in the basis of the data's spectrum. The first step is
in all three that of the data's Gaussian, which asks the model nothing, and its F goes into the
history.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

from torch import Tensor

from ...core.tensors import append_dims
from ..coefficients import exponential_weights
from ..samplers.exponential_multistep import nodes_of
from ..samplers.multistep import power_weights
from ..samplers.spectral import gaussian_gain, residual, spectral_weights
from ..spectrum import Spectrum

BASES = ('rab', 'sei', 'eab')
#: How many values the bases interpolate, and the root of sigma that rab does it in.
ORDER, RHO = 3, 7.0
#: How many values a fitted step may use.
HISTORY = 5
#: How many numbers correct a step: one for a and one for each weight; in sei two, so that every
#: frequency has its own.
CORRECTIONS = {'rab': 1 + HISTORY, 'sei': 2 * (1 + HISTORY), 'eab': 1 + HISTORY}

Number: TypeAlias = float | Tensor


class Row(NamedTuple):
    """A step from sigma to sigma_next: y' = a y + sum weights_j F_j, newest first; numbers, or
    tensors over the variances.
    """

    sigma: float
    sigma_next: float
    a: Number
    weights: list[Number]


def base_rows(
    base: str, variances: Tensor, sigmas: Sequence[float], corrections: Sequence[Sequence[float]]
) -> list[Row]:
    """The steps after the first. corrections: for each, what is added to a, as a share of it, and
    to the weights of the last HISTORY values, in units of the step's whole weight; in sei c + d s^2
    / (s^2 + sigma^2), all c before all d.
    """
    rows = []
    for i in range(1, len(sigmas) - 1):
        past = tuple(sigmas[k] for k in range(i, max(i - ORDER, -1), -1))
        a, weights = _exact(base, variances, past, sigmas[i + 1])
        whole = sigmas[i + 1] - sigmas[i] if base == 'rab' else 1 - a
        change, *added = _by_variance(base, variances, sigmas[i], corrections[i - 1])
        given = [*weights, *[0.0] * (HISTORY - len(weights))]
        rows.append(
            Row(
                sigmas[i],
                sigmas[i + 1],
                a * (1 + change),
                [w + c * whole for w, c in zip(given, added)][: i + 1],
            )
        )
    return rows


def _by_variance(
    base: str, variances: Tensor, sigma: float, row: Sequence[float]
) -> Sequence[Number]:
    if base != 'sei':
        return row
    share = variances / (variances + sigma**2)
    return [c + d * share for c, d in zip(row[: 1 + HISTORY], row[1 + HISTORY :])]


def _exact(
    base: str, variances: Tensor, past: tuple[float, ...], sigma_next: float
) -> tuple[Number, list[Number]]:
    if base == 'rab':
        return 1.0, [*power_weights(past, sigma_next, RHO)]
    if base == 'sei':
        a, weights = spectral_weights(variances, past, sigma_next)
        return a, [*weights]
    if sigma_next == 0:
        return 0.0, [1.0]
    h = math.log(past[0] / sigma_next)
    return math.exp(-h), [*exponential_weights(nodes_of(past, sigma_next), h)]


def enter(base: str, spectrum: Spectrum, x: Tensor) -> Tensor:
    """y of x [B, ...]."""
    return spectrum.analyse(x) if base == 'sei' else x


def leave(base: str, spectrum: Spectrum, y: Tensor) -> Tensor:
    """x of y [B, ...]."""
    return spectrum.synthesise(y) if base == 'sei' else y


def feature(base: str, spectrum: Spectrum, y: Tensor, denoised: Tensor, sigma: Tensor) -> Tensor:
    """F of y [B, ...] and D [B, ...] at the levels sigma, [B] or a scalar."""
    sigma = append_dims(sigma, y.ndim) if sigma.ndim else sigma
    if base == 'eab':
        return denoised
    if base == 'rab':
        return (y - denoised) / sigma
    return residual(y, spectrum.analyse(denoised), spectrum.variance, sigma)


def gaussian_step(spectrum: Spectrum, x: Tensor, sigma: float, sigma_next: float) -> Tensor:
    """x led from sigma to sigma_next by the flow of the spectrum's Gaussian."""
    gain = gaussian_gain(spectrum.variance.double(), sigma, sigma_next).to(x)
    return spectrum.synthesise(gain * spectrum.analyse(x))


def distinct(spectrum: Spectrum) -> tuple[Tensor, Tensor]:
    """The different variances of a spectrum, float64 on the CPU, and for each entry which of
    them it has.
    """
    values, which = spectrum.variance.detach().double().cpu().unique(return_inverse=True)
    return values, which
