"""Heun's method, of second order: the trapezoid rule in sigma."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from ...core.arguments import is_whole, show_value
from ..definition import sampler
from ..loop import Steps
from ..registry import Run


@sampler(
    order=2,
    nfe=2,
    noise='independent',
    family='Heun',
    reference='Karras et al. 2022, arXiv:2206.00364, algorithm 2',
)
def sample_heun(
    steps: Steps,
    x: Tensor,
    *,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
    euler_below: float = 0.0,
    lower_order_final: int = 0,
) -> Run[Tensor]:
    """Take Heun steps in sigma, optionally with churn.

    2 NFE, 1 for the step to 0 and for other Euler steps.

    Args:
        s_churn: Amount of churn; 0 disables it.
        s_tmin: Lowest noise level with churn.
        s_tmax: Highest noise level with churn.
        s_noise: Factor of the noise.
        euler_below: Steps that end at or below this level are Euler steps, because the second slope
            divides the error of the model by that level.
        lower_order_final: Number of last steps that are Euler steps. Steps between equal levels do
            not count.

    Raises:
        ValueError: If lower_order_final is not an integer >= 0.

    References:
        Karras et al. (2022), arXiv:2206.00364, algorithm 2.
    """
    if not is_whole(lower_order_final, 0):
        raise ValueError(
            'lower_order_final must be an integer >= 0, the number of last Euler steps; got '
            f'{show_value(lower_order_final)}'
        )
    final = set(sorted({*steps.sigmas})[1 : lower_order_final + 1])  # where the last steps begin
    for step in steps.walk(repeats=s_churn > 0):
        x, sigma_hat = step.churn(x, s_churn, s_tmin, s_tmax, s_noise)
        d = yield from step.ask_slope(x, sigma_hat)
        h = step.sigma_next - sigma_hat
        if step.sigma_next > euler_below and step.sigma not in final:
            x_2 = torch.add(x, d, alpha=h)
            d = (d + (yield from step.ask_slope(x_2, step.sigma_next))) / 2
        x = torch.add(x, d, alpha=h)
        x = yield x
    return x


@sampler(order=1, nfe=3, family='Heun')
def sample_heunpp2(steps: Steps, x: Tensor) -> Run[Tensor]:
    """Take Heun++ steps: weighted slopes at the current and the next two levels of the schedule.

    d = (1 - w_1 - w_2) d_0 + w_1 d_1 + w_2 d_2 with w_k = sigma_{i+k} / (3 sigma_0). The last step
    but one takes (1 - w_1) d_0 + w_1 d_1 with w_1 = sigma_{i+1} / (2 sigma_0); the last step is
    Euler's. The weights do not depend on the step size, so the order is 1. 3 NFE, then 2 and 1 in
    the last two steps.

    Not published in a paper; kept under the name that image programs use.
    """
    knots = list(dict.fromkeys(steps.sigmas))
    for step in steps:
        ahead = knots[knots.index(step.sigma_next) : -1][:2]  # levels of the further slopes
        slopes, weights = [(yield from step.ask_slope(x))], []
        x_k = x
        for sigma, sigma_next in itertools.pairwise([step.sigma, *ahead]):
            x_k = torch.add(x_k, slopes[-1], alpha=sigma_next - sigma)
            slopes.append((yield from step.ask_slope(x_k, sigma_next)))
            weights.append(sigma_next / (len(ahead) + 1) / knots[0])
        for weight, d in zip([1 - sum(weights), *weights], slopes):
            x = torch.add(x, d, alpha=weight * (step.sigma_next - step.sigma))
        x = yield x
    return x
