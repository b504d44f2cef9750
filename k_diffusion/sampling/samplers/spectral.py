"""The spectral exponential integrator: exact for the Gaussian of the data, extrapolating the rest.

Let m be the mean and s^2 the variances of the data in an orthonormal basis, y = x - m there and G =
m + s^2 / (s^2 + sigma^2) y. The residual Q = (D - G) (s^2 + sigma^2) / sigma^2 obeys, with u =
e^-lambda,

    y' = sqrt((s^2 + sigma'^2) / (s^2 + sigma^2)) y
         + int sqrt((s^2 + sigma'^2) / (s^2 + u^2)) u^2 / (s^2 + u^2) Q dlambda.

Each frequency has its own form: for s = 0 it is the data form of DPM-Solver++, for large s the
score form. k-diffusion's own.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

from ..coefficients import gauss_legendre, lagrange
from ..definition import sampler
from ..loop import Steps
from ..registry import Run
from ..spectrum import Spectrum
from .exponential_multistep import Past, past_levels, relative_nodes


def gaussian_gain(variance: Tensor, sigma: float, sigma_next: float) -> Tensor:
    """Return sqrt((s^2 + sigma_next^2) / (s^2 + sigma^2)), the factor of x under a Gaussian's flow.

    Args:
        variance: s^2, of any shape.
        sigma: The level at the start.
        sigma_next: The level at the end.
    """
    return ((variance + sigma_next**2) / (variance + sigma**2)).sqrt()


def spectral_weights(
    variance: Tensor, past: Past, sigma_next: float
) -> tuple[Tensor, list[Tensor]]:
    """Return (a, [b_j]) of y' = a y + sum b_j Q_j, with the newest Q_j first.

    Through one level b = 1 - a. So it is in the step to sigma 0, which has no end in log sigma.

    Args:
        variance: The variances in float64, of any shape.
        past: The levels of the Q_j, newest first.
        sigma_next: The level at the end of the step.
    """
    a = gaussian_gain(variance, past[0], sigma_next)
    if sigma_next == 0 or len(past) == 1:
        return a, [1 - a]
    h = math.log(past[0] / sigma_next)
    rows = lagrange(relative_nodes(past, sigma_next))
    weights = [torch.zeros_like(a) for _ in past]
    for node, weight in gauss_legendre(24):
        t = (1 + node) / 2
        u = (past[0] * math.exp(-h * t)) ** 2
        kernel = (
            ((variance + sigma_next**2) / (variance + u)).sqrt()
            * (u / (variance + u))
            * (weight / 2 * h)
        )
        for total, row in zip(weights, rows):
            total.add_(kernel, alpha=math.fsum(c * t**k for k, c in enumerate(row)))
    return a, weights


def spectral_table(
    spectrum: Spectrum, sigmas: Sequence[float], order: int
) -> list[tuple[Tensor, list[Tensor]]]:
    """Return the weights of every step, shaped like the variances of the spectrum.

    The weights are computed once for each distinct variance.

    Args:
        spectrum: The Gaussian of the data.
        sigmas: The noise levels, descending.
        order: Number of residuals.
    """
    different, where = spectrum.variance.detach().double().cpu().unique(return_inverse=True)
    pairs = zip(past_levels(sigmas, order), sigmas[1:])
    rows = [
        spectral_weights(different, past if past[0] != sigma_next else past[:1], sigma_next)
        for past, sigma_next in pairs
    ]
    return [(a[where], [weight[where] for weight in weights]) for a, weights in rows]


def residual(y: Tensor, denoised: Tensor, variance: Tensor, sigma: float | Tensor) -> Tensor:
    """Return Q = (D - G) (s^2 + sigma^2) / sigma^2 in the basis of the spectrum.

    Args:
        y: x minus the mean, in the basis.
        denoised: D minus the mean, in the basis.
        variance: s^2.
        sigma: The noise level.
    """
    return (denoised * (variance + sigma**2) - variance * y) / sigma**2


@sampler(order=3, family='spectral')
def sample_sei(
    steps: Steps,
    x: Tensor,
    *,
    spectrum: Spectrum | None = None,
    order: int = 3,
    std: float = 0.5,
    tele: bool = False,
) -> Run[Tensor]:
    """Take multistep steps that are exact for Gaussian data of the given spectrum at any step size.

    k-diffusion's own. A schedule of one step to 0 without `tele` returns D. 1 NFE.

    Args:
        spectrum: Spectrum.of(data) of some hundred items; None assumes mean 0 and the standard
            deviation `std` everywhere.
        order: Number of residuals.
        std: Standard deviation of the data for spectrum=None.
        tele: Take the first step by the Gaussian alone, without a model call.

    Raises:
        TypeError: If spectrum is not a Spectrum.
    """
    if spectrum is not None and not isinstance(spectrum, Spectrum):
        raise TypeError(
            'spectrum must be a Spectrum, as Spectrum.of(data) returns, or None; got a '
            f'{type(spectrum).__name__}'
        )
    spectrum = (Spectrum.isotropic(std) if spectrum is None else spectrum).like(x)
    table = [
        (a.to(x), [weight.to(x) for weight in weights])
        for a, weights in spectral_table(spectrum, steps.sigmas, order)
    ]
    history: deque[Tensor] = deque(maxlen=order)
    for step in steps:
        a, weights = table[step.i]
        first = not history
        if tele and first:
            denoised = spectrum.denoise(x, step.sigma)
            step.show(x, step.sigma, denoised)
        else:
            denoised = yield from step.ask(x)
        if first and not tele and step.sigma_next == 0:
            x = yield denoised
            continue
        y = spectrum.analyse(x)
        history.appendleft(residual(y, spectrum.analyse(denoised), spectrum.variance, step.sigma))
        y = a * y
        for weight, q in zip(weights, history):
            y.addcmul_(weight, q)
        x = yield spectrum.synthesise(y)
    return x
