"""The spectral exponential integrator: the flow of the data's Gaussian taken exactly, the rest by
extrapolation.

With mean m and variances s^2 of the data in an orthonormal basis, y = x - m there and G = m + s^2 /
(s^2 + sigma^2) y, the residual Q = (D - G) (s^2 + sigma^2) / sigma^2 obeys
    y' = sqrt((s^2 + sigma'^2) / (s^2 + sigma^2)) y + int sqrt((s^2 + sigma'^2) / (s^2 + u^2)) u^2 /
    (s^2 + u^2) Q dlambda,
u = e^-lambda. Where s = 0 this is the data form of DPM-Solver++, where s is large the score form:
each frequency has its own.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

from ..coefficients import gauss_legendre, lagrange
from ..loop import Steps
from ..registry import Run, sampler
from ..spectrum import Spectrum
from .exponential_multistep import Past, nodes_of, past_levels


def gaussian_gain(variance: Tensor, sigma: float, sigma_next: float) -> Tensor:
    """sqrt((s^2 + sigma_next^2) / (s^2 + sigma^2)): what the flow of a centred Gaussian
    multiplies x by.
    """
    return ((variance + sigma_next**2) / (variance + sigma**2)).sqrt()


def spectral_weights(
    variance: Tensor, past: Past, sigma_next: float
) -> tuple[Tensor, list[Tensor]]:
    """(a, [b_j]) of y' = a y + sum b_j Q_j for float64 variances of any shape; the Q_j at the past
    levels, newest first.

    Through one level b = 1 - a, and so it is in the step to sigma 0, which has no end in log sigma.
    """
    a = gaussian_gain(variance, past[0], sigma_next)
    if sigma_next == 0 or len(past) == 1:
        return a, [1 - a]
    h = math.log(past[0] / sigma_next)
    rows = lagrange(nodes_of(past, sigma_next))
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
    """The weights of every step, shaped like the spectrum's variances; each different variance
    is worked out once.
    """
    different, where = spectrum.variance.detach().double().cpu().unique(return_inverse=True)
    pairs = zip(past_levels(sigmas, order), sigmas[1:])
    rows = [
        spectral_weights(different, past if past[0] != sigma_next else past[:1], sigma_next)
        for past, sigma_next in pairs
    ]
    return [(a[where], [weight[where] for weight in weights]) for a, weights in rows]


def residual(y: Tensor, denoised: Tensor, variance: Tensor, sigma: float | Tensor) -> Tensor:
    """Q = (D - G) (s^2 + sigma^2) / sigma^2 for y and D in the spectrum's basis."""
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
    """Multistep of the given order that is exact where the data is Gaussian with this spectrum, at
    any step size. 1 NFE.

    spectrum: Spectrum.of(data), some hundred items; None takes mean 0 and the standard deviation
    `std` everywhere. tele: the first step is the Gaussian's alone and asks the model nothing. A
    schedule of one step to 0 without it gives D.
    """
    if spectrum is not None and not isinstance(spectrum, Spectrum):
        raise TypeError(
            'spectrum must be a Spectrum or None, Spectrum.of(data) makes one; got a '
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
