"""The likelihood of data under a denoiser and its noise, by the probability flow (Song et al.

2021, arXiv:2011.13456, section 4.3).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ...core.arguments import check_number
from ...core.protocols import DenoiseFn
from ..loop import ExtraArgs
from .divergence import ExactTrace, Probes
from .probability_flow import ProbabilityFlow
from .runge_kutta import Parts
from .standard_error import error_of_blocks, error_of_integrals


def log_likelihood(
    model: DenoiseFn,
    x: Tensor,  # [B, ...], a sample at the level sigma_min
    sigma_min: float | Tensor,
    sigma_max: float | Tensor,
    extra_args: ExtraArgs = None,  # conditions, passed to the model
    atol: float = 1e-4,
    rtol: float = 1e-4,
    *,
    steps: int | None = None,  # a fixed grid: 4 model calls per step, probes that change
    probes: int = 1,  # how many per model call; two or more give a standard error
    trace: Literal[
        'probes', 'exact'
    ] = 'probes',  # exact: as many backward passes as an item has elements
    chunk: int = 64,  # how many of them at a time
    seed: int
    | Sequence[int]
    | None = None,  # of the probes: one per item, or one for the batch; None: torch's own
    data_mean: float
    | Tensor = 0.0,  # of the data, a number or like an item: what the noise is laid over
    data_std: float | Tensor = 0.0,
    dtype: torch.dtype | None = None,  # to integrate in; None: x's, float32 at least
    max_evaluations: int = 10_000,  # the most model calls before giving up
    disable: bool | None = True,  # of the progress bar; None hides it off a terminal
) -> tuple[Tensor, dict[str, Any]]:
    """(log p(x) [B] in nats, info): the density of the data with noise of level sigma_min, up to
    the errors of solver and probes.

    log p(x) = log N(x(sigma_max); data_mean, sigma_max^2 + data_std^2) + the integral of tr d(x -
    D)/dx over ln sigma.

    By default an adaptive solver in sigma, which suits its steps to each item, with probes that
    stay the same. With `steps` a grid even in ln sigma (32 steps are usual), for u = (x -
    data_mean) / sqrt(sigma^2 + data_std^2), which stands still for Gaussian data of that mean and
    deviation: less noise from the probes at the same cost, as they are orthogonal in turn.

    info: fevals, the model calls; stderr [B], the standard error that the probes leave (None with
    one probe, 0 for the exact trace); interval, the ends ([B], [B]) of its 95 % interval by
    Student's t (None with one probe), which is wider than 2 stderr where few independent values
    carry the error; latent, x at sigma_max.
    """
    low, high = _levels(sigma_min, sigma_max, ascending=True)
    if trace not in ('probes', 'exact'):
        raise ValueError(f"trace is {trace!r}; it must be 'probes' or 'exact'")
    divergence = ExactTrace(chunk) if trace == 'exact' else Probes(probes, seed)
    flow = ProbabilityFlow(
        model, x, extra_args, data_mean, data_std, dtype, 'log_likelihood', divergence
    )
    latent, integrals = _led(flow, low, high, steps, atol, rtol, max_evaluations, disable)
    value = flow.log_prior(latent, high) + integrals.mean(1)
    error: tuple[Tensor, Tensor, Tensor] | None = (
        None  # the standard error, and the ends from the value
    )
    if trace == 'exact':
        error = (torch.zeros_like(value),) * 3
    elif probes > 1:
        error = (
            error_of_integrals(integrals)
            if steps is None
            else error_of_blocks(torch.stack(flow.blocks))
        )
    info: dict[str, Any] = {
        'fevals': flow.watch.nfe,
        'stderr': None,
        'interval': None,
        'latent': latent,
    }
    if error is not None:
        stderr, below, above = (each.to(value) for each in error)
        info |= {'stderr': stderr, 'interval': (value + below, value + above)}
    return value, info


def invert(
    model: DenoiseFn,
    x: Tensor,
    sigma: float | Tensor,
    sigma_next: float | Tensor,
    extra_args: ExtraArgs = None,
    atol: float = 1e-4,
    rtol: float = 1e-4,
    *,
    steps: int | None = None,
    data_mean: float | Tensor = 0.0,
    data_std: float | Tensor = 0.0,
    dtype: torch.dtype | None = None,
    max_evaluations: int = 10_000,
    disable: bool | None = True,
) -> Tensor:
    """Where the probability flow leads x from the level sigma to sigma_next: from an image to its
    noise, or back.

    invert(model, invert(model, x, low, high), high, low) is x, up to the solver's error. Arguments
    as in log_likelihood.
    """
    start, end = _levels(sigma, sigma_next)
    flow = ProbabilityFlow(model, x, extra_args, data_mean, data_std, dtype, 'invert')
    return _led(flow, start, end, steps, atol, rtol, max_evaluations, disable)[0].to(
        x.dtype if dtype is None else dtype
    )


def _led(
    flow: ProbabilityFlow,
    start: float,
    end: float,
    steps: int | None,
    atol: float,
    rtol: float,
    most: int,
    disable: bool | None,
) -> Parts:
    if steps is None:
        found = flow.adaptive(start, end, atol, rtol, most, disable)
    else:
        found = flow.fixed(start, end, steps, disable)
    flow.watch.check()
    return found


def _levels(
    sigma: float | Tensor, sigma_next: float | Tensor, ascending: bool = False
) -> tuple[float, float]:
    start, end = (
        check_number('sigma_min', sigma, infinite=True),
        check_number('sigma_max', sigma_next, infinite=True),
    )
    if not (
        min(start, end) > 0
        and max(start, end) < math.inf
        and (start < end if ascending else start != end)
    ):
        wanted = (
            'give 0 < sigma_min < sigma_max' if ascending else 'give two different ones above 0'
        )
        raise ValueError(
            f'sigma_min={start} and sigma_max={end} are no range of noise levels; {wanted}'
        )
    return start, end
