"""Samplers of DPM-Solver: second order on a schedule, and fast and adaptive variants."""

from __future__ import annotations

import math
import warnings
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ...core.arguments import check_number, check_whole
from ..coefficients import split_step, to_d
from ..definition import sampler
from ..loop import Callback, Step, Steps
from ..registry import Run
from ..step_size import PIDStepSizeController
from ..watch import Asking
from .dpm_adaptive_per_item import adaptive_per_item
from .dpm_solver import DPMSolver

#: The midpoint rule multiplies errors by sigma / middle. From this factor on, its result is far
#: from the data.
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
    """Take DPM-Solver-2 steps: the slope at the middle of log sigma, optionally with churn.

    2 NFE, 1 for the step to 0. The method diverges with few steps (fewer than 5 from 80 to 0.002),
    and then warns.

    Args:
        s_churn: Amount of churn; 0 disables it.
        s_tmin: Lowest noise level with churn.
        s_tmax: Highest noise level with churn.
        s_noise: Factor of the noise.

    References:
        Lu et al. (2022), arXiv:2206.00927, algorithm 1.
        Karras et al. (2022), arXiv:2206.00364, algorithm 2 (churn).
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
    """Take a DPM-Solver-2 step to sigma_down, then add noise of level sigma_up.

    2 NFE, 1 for the step to 0. The method diverges with few steps (fewer than 7 from 80 to 0.002,
    fewer than 4 from 14.6 to 0.03), and then warns.

    Args:
        eta: Noise strength; 0 disables noise, 1 is that of DDPM.
        s_noise: Factor of the noise.
        down: Rule for sigma_down: 'ddpm', or 'flow' for flow models (`split_step`).

    References:
        Lu et al. (2022), arXiv:2206.00927, algorithm 1.
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
    """Take a step along the slope at the middle of log sigma, which is found along d."""
    if sigma_next > 0:
        middle = math.sqrt(sigma * sigma_next)
        if sigma > FARTHEST * middle:
            warnings.warn(
                f'sample_{name}: the step from {step.sigma:.4g} to {step.sigma_next:.4g} is too '
                'long for the midpoint rule; the result will be far from the data. Use more steps',
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
    """Run DPM-Solver-fast: n model calls in steps of order 3, the rest in a last shorter step.

    The run ends at sigma_min, not at 0.

    Args:
        x: Noise at the level sigma_max, [B, ...].
        sigma_min: Level of the result, above 0.
        sigma_max: Level of x.
        n: Number of model calls.
        eta: Noise strength; 0 disables noise, 1 is that of DDPM.
        s_noise: Factor of the noise.

    Raises:
        ValueError: If the levels are not 0 < sigma_min < sigma_max, or n is not a positive integer.

    References:
        Lu et al. (2022), arXiv:2206.00927, section 3.4.
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
    """Run DPM-Solver-12 or -23 with adaptive steps.

    The run ends at sigma_min, not at 0. The error is that of the whole batch.

    Args:
        x: Noise at the level sigma_max, [B, ...].
        sigma_min: Level of the result, above 0.
        sigma_max: Level of x.
        order: 2 (DPM-Solver-12) or 3 (DPM-Solver-23).
        rtol: Relative tolerance.
        atol: Absolute tolerance.
        h_init: First step in log sigma.
        pcoeff: Proportional coefficient of the step size controller.
        icoeff: Integral coefficient.
        dcoeff: Derivative coefficient.
        accept_safety: Factor of the step size above which a step is accepted.
        eta: Noise strength; 0 disables noise, 1 is that of DDPM.
        s_noise: Factor of the noise.
        return_info: Return (x, {'steps', 'nfe', 'n_accept', 'n_reject'}) instead of x. The callback
            is called after each attempt; where it edits denoised, the step is made again from it.
        max_steps: Largest number of attempts.
        per_item: Give each item its own error and steps, so that it does not depend on its batch
            (eta = 0 only). Levels, times, errors and counts are then given for each item.

    Raises:
        ValueError: If max_steps attempts do not reach sigma_min, the error is not finite, or an
            argument is out of its range.

    References:
        Lu et al. (2022), arXiv:2206.00927, appendix C.
    """
    t_start, t_end = _times(sigma_min, sigma_max)
    check_whole('max_steps', max_steps)
    with tqdm(disable=steps.disable) as bar:
        callback = steps.callback if per_item else _with_levels(steps.callback, x)
        solver = DPMSolver(steps.watch, steps.extra_args, bar.update, callback)
        if per_item:
            if eta or order not in (2, 3):
                raise ValueError(
                    f'per_item must be used with eta=0 and order 2 or 3; got eta={eta}, '
                    f'order={order}. Pass eta=0, or omit per_item'
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
    """Return the times -log sigma of sigma_max and sigma_min."""
    low, high = (
        check_number('sigma_min', sigma_min, infinite=True),
        check_number('sigma_max', sigma_max, infinite=True),
    )
    if not 0 < low < high < math.inf:
        raise ValueError(
            f'sigma_min and sigma_max must satisfy 0 < sigma_min < sigma_max; got {low} and '
            f'{high}. The sampler works in log sigma'
        )
    return -math.log(high), -math.log(low)


def _with_levels(callback: Callback, x: Tensor) -> Callback:
    """Adapt the callback of a sampler to the calls of DPMSolver.

    Adds sigma and sigma_hat, and passes levels, times and errors as 0-d tensors.
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
