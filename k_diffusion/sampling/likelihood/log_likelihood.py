"""The likelihood of data under a denoiser, by the probability flow.

References:
    Song et al. (2021), arXiv:2011.13456, section 4.3.
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
    x: Tensor,
    sigma_min: float | Tensor,
    sigma_max: float | Tensor,
    extra_args: ExtraArgs = None,
    atol: float = 1e-4,
    rtol: float = 1e-4,
    *,
    steps: int | None = None,
    probes: int = 1,
    trace: Literal['probes', 'exact'] = 'probes',
    chunk: int = 64,
    seed: int | Sequence[int] | None = None,
    data_mean: float | Tensor = 0.0,
    data_std: float | Tensor = 0.0,
    dtype: torch.dtype | None = None,
    max_evaluations: int = 10_000,
    disable: bool | None = True,
) -> tuple[Tensor, dict[str, Any]]:
    """Compute log p(x) in nats, the density of the data with noise of level sigma_min.

    log p(x) = log N(x(sigma_max); data_mean, sigma_max^2 + data_std^2) + the integral of tr d(x -
    D)/dx over ln sigma, up to the errors of solver and probes.

    By default an adaptive solver in sigma takes steps that suit each item, with the same probes in
    all of them. With `steps` the grid is even in ln sigma (32 steps are usual), for u = (x -
    data_mean) / sqrt(sigma^2 + data_std^2), which is constant for Gaussian data of that mean and
    deviation. The probes are then orthogonal in turn, which reduces their error at the same cost.

    Args:
        model: The denoiser.
        x: Samples at the level sigma_min, [B, ...].
        sigma_min: The lowest level, > 0.
        sigma_max: The highest level.
        extra_args: Conditions of the model.
        atol: Absolute tolerance of the adaptive solver.
        rtol: Relative tolerance of the adaptive solver.
        steps: Number of steps of a fixed grid, of 4 model calls each, with probes that change.
        probes: Number of probes per model call; two or more give a standard error.
        trace: 'probes', or 'exact' for as many backward passes as an item has elements.
        chunk: Number of these passes computed at a time.
        seed: Seed of the probes: one for each item, or one for the batch. None draws one from
            torch's global generator.
        data_mean: Mean of the data, a number or like an item.
        data_std: Standard deviation of the data, a number or like an item.
        dtype: Dtype of the integration; by default that of x, at least float32.
        max_evaluations: Largest number of model calls.
        disable: Disable the progress bar; None disables it outside a terminal.

    Returns:
        log p(x) [B] in nats, and a dict: `fevals`, the number of model calls; `stderr` [B], the
            standard error from the probes (None with one probe, 0 for the exact trace); `interval`,
            the ends ([B], [B]) of its 95 % interval by Student's t (None with one probe), which is
            wider than 2 stderr if few independent values carry the error; `latent`, x at sigma_max.

    Raises:
        ValueError: If an argument is out of its range, the model output is not finite, or the
            solver needs more than max_evaluations calls.
    """
    low, high = _levels(sigma_min, sigma_max, ascending=True)
    if trace not in ('probes', 'exact'):
        raise ValueError(f"trace must be 'probes' or 'exact'; got {trace!r}")
    divergence = ExactTrace(chunk) if trace == 'exact' else Probes(probes, seed)
    flow = ProbabilityFlow(
        model, x, extra_args, data_mean, data_std, dtype, 'log_likelihood', divergence
    )
    latent, integrals = _integrate(flow, low, high, steps, atol, rtol, max_evaluations, disable)
    value = flow.log_prior(latent, high) + integrals.mean(1)
    # the standard error, and the ends of the interval from the value
    error: tuple[Tensor, Tensor, Tensor] | None = None
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
    """Lead x along the probability flow from the level sigma to sigma_next.

    It leads from an image to its noise, or back. invert(model, invert(model, x, low, high), high,
    low) is x, up to the error of the solver.

    Args:
        model: The denoiser.
        x: A batch at the level sigma, [B, ...].
        sigma: The level of x, > 0.
        sigma_next: The level of the result, > 0.
        extra_args: Conditions of the model.
        atol: Absolute tolerance of the adaptive solver.
        rtol: Relative tolerance of the adaptive solver.
        steps: Number of steps of a fixed grid, of 4 model calls each.
        data_mean: Mean of the data, a number or like an item.
        data_std: Standard deviation of the data, a number or like an item.
        dtype: Dtype of the integration; by default that of x, at least float32.
        max_evaluations: Largest number of model calls.
        disable: Disable the progress bar; None disables it outside a terminal.

    Returns:
        x at the level sigma_next, in its own dtype.
    """
    start, end = _levels(sigma, sigma_next)
    flow = ProbabilityFlow(model, x, extra_args, data_mean, data_std, dtype, 'invert')
    return _integrate(flow, start, end, steps, atol, rtol, max_evaluations, disable)[0].to(
        x.dtype if dtype is None else dtype
    )


def _integrate(
    flow: ProbabilityFlow,
    start: float,
    end: float,
    steps: int | None,
    atol: float,
    rtol: float,
    most: int,
    disable: bool | None,
) -> Parts:
    """Integrate the flow by the adaptive solver, or on a grid of `steps`."""
    if steps is None:
        result = flow.adaptive(start, end, atol, rtol, most, disable)
    else:
        result = flow.fixed(start, end, steps, disable)
    flow.watch.check()
    return result


def _levels(
    sigma: float | Tensor, sigma_next: float | Tensor, ascending: bool = False
) -> tuple[float, float]:
    """Return both levels as floats; raise a ValueError unless they form a range."""
    start = check_number('sigma_min', sigma, infinite=True)
    end = check_number('sigma_max', sigma_next, infinite=True)
    finite = min(start, end) > 0 and max(start, end) < math.inf
    if ascending:
        if not (finite and start < end):
            raise ValueError(
                'sigma_min and sigma_max must satisfy 0 < sigma_min < sigma_max < inf; got '
                f'{start} and {end}'
            )
    elif not (finite and start != end):
        raise ValueError(
            f'sigma and sigma_next must be different levels > 0; got {start} and {end}'
        )
    return start, end
