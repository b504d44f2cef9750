"""The samplers of DPM-Solver: second order on a schedule, with and without the ancestral split;
fast and adaptive between two levels.
"""

from __future__ import annotations

import math
import warnings
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ...core.arguments import check_number, check_whole
from ..coefficients import split_step, to_d
from ..loop import Asking, Callback, Step, Steps
from ..registry import Run, sampler
from ..step_size import PIDStepSizeController
from .dpm_adaptive_per_item import adaptive_per_item
from .dpm_solver import DPMSolver

#: The midpoint rule multiplies errors by sigma / middle; from here on its result is far from the
#: data.
FARTHEST = 32.0


@sampler(
    order=2,
    nfe=2,
    noise='independent',
    family='DPM-Solver',
    reference='Lu et al. 2022, arXiv:2206.00927, algorithm 1',
)
def sample_dpm_2(
    steps: Steps,
    x: Tensor,
    *,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
) -> Run[Tensor]:
    """DPM-Solver-2: the slope at the middle of log sigma, optionally with churn.

    2 NFE, but 1 for the step to 0.

    Diverges in few steps (fewer than 5 from 80 to 0.002), and then warns.
    """
    for step in steps.walk(repeats=s_churn > 0):
        x, sigma_hat = step.churn(x, s_churn, s_tmin, s_tmax, s_noise)
        d = yield from step.ask_slope(x, sigma_hat)
        x = yield from _midpoint('dpm_2', step, x, d, sigma_hat, step.sigma_next)
        x = yield x
    return x


@sampler(
    order=2,
    nfe=2,
    stochastic=True,
    noise='path',
    family='DPM-Solver',
    reference='Lu et al. 2022, arXiv:2206.00927, algorithm 1',
)
def sample_dpm_2_ancestral(
    steps: Steps,
    x: Tensor,
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
    down: Literal['ddpm', 'flow'] = 'ddpm',
) -> Run[Tensor]:
    """A DPM-Solver-2 step to sigma_down, then noise of sigma_up. 2 NFE, but 1 for the step to 0.

    Diverges in few steps (fewer than 7 from 80 to 0.002, than 4 from 14.6 to 0.03), and then warns.
    down: how sigma_down is found, 'ddpm' or, for flow models, 'flow' (`split_step`).
    """
    for step in steps:
        sigma_down, sigma_up = split_step(step.sigma, step.sigma_next, eta, down)
        denoised = yield from step.ask(x, borrow=True)
        d = to_d(x, step.sigma, denoised)
        x = yield from _midpoint('dpm_2_ancestral', step, x, d, step.sigma, sigma_down)
        x = step.add_noise(x, s_noise * sigma_up)
        x = yield x
    return x


def _midpoint(
    name: str, step: Step, x: Tensor, d: Tensor, sigma: float, sigma_next: float
) -> Asking[Tensor]:
    """A step from sigma to sigma_next along the slope at the middle of log sigma, found along d."""
    if sigma_next > 0:
        middle = math.sqrt(sigma * sigma_next)
        if sigma > FARTHEST * middle:
            warnings.warn(
                f'sample_{name}: the step from {step.sigma:.4g} to {step.sigma_next:.4g} is too '
                'long for the '
                'midpoint rule, whose result will be far from the data; give more steps',
                stacklevel=2,
            )
        d = yield from step.ask_slope(torch.add(x, d, alpha=middle - sigma), middle)
    return torch.add(x, d, alpha=sigma_next - sigma)


@sampler(
    order=2,
    noise='path',
    family='DPM-Solver',
    reference='Lu et al. 2022, arXiv:2206.00927, section 3.4',
)
def sample_dpm_fast(
    steps: Steps,
    x: Tensor,
    sigma_min: float | Tensor,
    sigma_max: float | Tensor,
    n: int,
    *,
    eta: float = 0.0,
    s_noise: float = 1.0,
) -> Run[Tensor]:
    """DPM-Solver-fast: n model calls in all, in steps of order 3 with the rest at the end; ends
    at sigma_min, not at 0.
    """
    t_start, t_end = _times(sigma_min, sigma_max)
    with tqdm(total=n, disable=steps.disable) as bar:
        solver = DPMSolver(
            steps.watch, steps.extra_args, bar.update, _with_levels(steps.callback, x)
        )
        return (yield from solver.fast(x, t_start, t_end, n, eta, s_noise, steps.noise_sampler))


@sampler(
    order=3,
    nfe=3,
    noise='path',
    couples_batch=True,
    family='DPM-Solver',
    reference='Lu et al. 2022, arXiv:2206.00927, appendix C',
)
def sample_dpm_adaptive(
    steps: Steps,
    x: Tensor,
    sigma_min: float | Tensor,
    sigma_max: float | Tensor,
    *,
    order: int = 3,
    rtol: float = 0.05,
    atol: float = 0.0078,
    h_init: float = 0.05,
    pcoeff: float = 0.0,
    icoeff: float = 1.0,
    dcoeff: float = 0.0,
    accept_safety: float = 0.81,
    eta: float = 0.0,
    s_noise: float = 1.0,
    return_info: bool = False,
    max_steps: int = 10_000,
    per_item: bool = False,
) -> Run[Any]:
    """DPM-Solver-12 or -23 with adaptive steps; ends at sigma_min, not at 0.

    The error is that of the whole batch.

    return_info: whether to give (x, {'steps', 'nfe', 'n_accept', 'n_reject'}). The callback is
    called after each attempt; where it edits denoised the step is made again from it. max_steps:
    attempts after which a ValueError is raised. per_item: each item by its own error and steps, so
    that it is the same whatever else is in its batch (eta = 0 only; levels, times, errors and
    counts are then given for each).
    """
    t_start, t_end = _times(sigma_min, sigma_max)
    check_whole('max_steps', max_steps)
    with tqdm(disable=steps.disable) as bar:
        callback = steps.callback if per_item else _with_levels(steps.callback, x)
        solver = DPMSolver(steps.watch, steps.extra_args, bar.update, callback)
        if per_item:
            if eta or order not in (2, 3):
                raise ValueError(
                    f'per_item takes no noise and order 2 or 3, and eta is {eta}, order={order}; '
                    'give eta=0, or leave per_item out'
                )
            pids = [
                PIDStepSizeController(abs(h_init), pcoeff, icoeff, dcoeff, order, accept_safety)
                for _ in x
            ]
            x, info = yield from adaptive_per_item(
                solver, x, t_start, t_end, order, rtol, atol, pids, max_steps
            )
            return (x, info) if return_info else x
        x, info = yield from solver.adaptive(
            x,
            t_start,
            t_end,
            order,
            rtol,
            atol,
            h_init,
            pcoeff,
            icoeff,
            dcoeff,
            accept_safety,
            eta,
            s_noise,
            steps.noise_sampler,
            max_steps,
        )
    return (x, info) if return_info else x


def _times(sigma_min: float | Tensor, sigma_max: float | Tensor) -> tuple[float, float]:
    """The times -log sigma from sigma_max to sigma_min."""
    low, high = (
        check_number('sigma_min', sigma_min, infinite=True),
        check_number('sigma_max', sigma_max, infinite=True),
    )
    if not 0 < low < high < math.inf:
        raise ValueError(
            f'sigma_min={low} and sigma_max={high} are no range of noise levels; '
            f'this sampler works in log sigma, so give 0 < sigma_min < sigma_max'
        )
    return -math.log(high), -math.log(low)


def _with_levels(callback: Callback, x: Tensor) -> Callback:
    """The callback of a sampler as DPMSolver calls it: sigma and sigma_hat added, levels, times
    and errors as 0-d tensors.
    """
    if callback is None:
        return None

    def info_callback(info: dict[str, Any]) -> None:
        info = {'sigma': math.exp(-info['t']), 'sigma_hat': math.exp(-info['t_up']), **info}
        callback(
            {
                key: x.new_full((), value) if isinstance(value, float) else value
                for key, value in info.items()
            }
        )

    return info_callback
