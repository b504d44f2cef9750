"""The multistep methods that calibrated solvers start from, as y' = a y + sum b_j F_j.

eab: y = x, F = D, exponential Adams-Bashforth in log sigma. rab: y = x, F = eps = (x - D) / sigma,
interpolated in sigma^(1/7). sei: y and F = Q in the basis of the spectrum of the data. In all three
the first step is that of the Gaussian of the data, which needs no model call; its F becomes the
first of the history.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

from torch import Tensor

from ...core.tensors import append_dims
from ..coefficients import exponential_weights
from ..samplers.exponential_multistep import relative_nodes
from ..samplers.multistep import power_weights
from ..samplers.spectral import gaussian_gain, residual, spectral_weights
from ..spectrum import Spectrum

BASES = ('rab', 'sei', 'eab')
#: Number of values that the bases interpolate, and the root of sigma in which rab interpolates.
ORDER, RHO = 3, 7.0
#: Largest number of values in a fitted step.
HISTORY = 5
#: Number of corrections of a step: one for a and one for each weight; in sei twice as many, so that
#: every frequency has its own.
CORRECTIONS = {'rab': 1 + HISTORY, 'sei': 2 * (1 + HISTORY), 'eab': 1 + HISTORY}

Number: TypeAlias = float | Tensor


class Row(NamedTuple):
    """A step from sigma to sigma_next: y' = a y + sum weights_j F_j, with the newest F_j first.

    a and the weights are numbers, or tensors over the variances.
    """

    sigma: float
    sigma_next: float
    a: Number
    weights: list[Number]


def base_rows(
    base: str, variances: Tensor, sigmas: Sequence[float], corrections: Sequence[Sequence[float]]
) -> list[Row]:
    """Return the steps after the first.

    Args:
        base: A name of BASES.
        variances: The distinct variances of the spectrum, float64.
        sigmas: The noise levels, descending.
        corrections: For each step, the numbers added to a (as a share of it) and to the weights of
            the last HISTORY values (in units of the whole weight of the step). In sei a correction
            is c + d s^2 / (s^2 + sigma^2), with all c before all d.
    """
    rows = []
    for i in range(1, len(sigmas) - 1):
        past = tuple(sigmas[k] for k in range(i, max(i - ORDER, -1), -1))
        a, weights = _exact(base, variances, past, sigmas[i + 1])
        whole = sigmas[i + 1] - sigmas[i] if base == 'rab' else 1 - a
        change, *extra = _by_variance(base, variances, sigmas[i], corrections[i - 1])
        padded_weights = [*weights, *[0.0] * (HISTORY - len(weights))]
        rows.append(
            Row(
                sigmas[i],
                sigmas[i + 1],
                a * (1 + change),
                [w + c * whole for w, c in zip(padded_weights, extra)][: i + 1],
            )
        )
    return rows


def _by_variance(
    base: str, variances: Tensor, sigma: float, row: Sequence[float]
) -> Sequence[Number]:
    """Return the corrections of a row, over the variances for sei."""
    if base != 'sei':
        return row
    share = variances / (variances + sigma**2)
    return [c + d * share for c, d in zip(row[: 1 + HISTORY], row[1 + HISTORY :])]


def _exact(
    base: str, variances: Tensor, past: tuple[float, ...], sigma_next: float
) -> tuple[Number, list[Number]]:
    """Return a and the weights of a step of the base without corrections."""
    if base == 'rab':
        return 1.0, [*power_weights(past, sigma_next, RHO)]
    if base == 'sei':
        a, weights = spectral_weights(variances, past, sigma_next)
        return a, [*weights]
    if sigma_next == 0:
        return 0.0, [1.0]
    h = math.log(past[0] / sigma_next)
    return math.exp(-h), [*exponential_weights(relative_nodes(past, sigma_next), h)]


def enter(base: str, spectrum: Spectrum, x: Tensor) -> Tensor:
    """Convert x [B, ...] to y, the variable in which a base integrates.

    Args:
        base: A name of BASES.
        spectrum: The Gaussian of the data.
        x: A batch.
    """
    return spectrum.analyse(x) if base == 'sei' else x


def leave(base: str, spectrum: Spectrum, y: Tensor) -> Tensor:
    """Convert y [B, ...], the variable of a base, back to x.

    Args:
        base: A name of BASES.
        spectrum: The Gaussian of the data.
        y: A batch in the variable of the base.
    """
    return spectrum.synthesise(y) if base == 'sei' else y


def feature(base: str, spectrum: Spectrum, y: Tensor, denoised: Tensor, sigma: Tensor) -> Tensor:
    """Return F of y and D.

    Args:
        base: A name of BASES.
        spectrum: The Gaussian of the data.
        y: A batch in the variable of the base, [B, ...].
        denoised: D, [B, ...].
        sigma: The noise levels, [B] or a scalar.
    """
    sigma = append_dims(sigma, y.ndim) if sigma.ndim else sigma
    if base == 'eab':
        return denoised
    if base == 'rab':
        return (y - denoised) / sigma
    return residual(y, spectrum.analyse(denoised), spectrum.variance, sigma)


def gaussian_step(spectrum: Spectrum, x: Tensor, sigma: float, sigma_next: float) -> Tensor:
    """Lead x from sigma to sigma_next along the flow of the Gaussian of the spectrum.

    Args:
        spectrum: The Gaussian of the data.
        x: A batch at the level sigma, [B, ...].
        sigma: The first level.
        sigma_next: The last level.
    """
    gain = gaussian_gain(spectrum.variance.double(), sigma, sigma_next).to(x)
    return spectrum.synthesise(gain * spectrum.analyse(x))


def distinct(spectrum: Spectrum) -> tuple[Tensor, Tensor]:
    """Return the distinct variances of a spectrum, and the index of the one of each entry.

    Args:
        spectrum: The Gaussian of the data.

    Returns:
        The variances, float64 on the CPU, and an index for each entry.
    """
    values, which = spectrum.variance.detach().double().cpu().unique(return_inverse=True)
    return values, which
