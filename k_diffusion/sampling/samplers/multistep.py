"""Linear multistep methods on past slopes eps = (x - D) / sigma: x' = x + sum w_j eps_j.

The methods differ in the weights: the variable in which the slopes are interpolated.
"""

from __future__ import annotations

import functools
import math
from collections import deque
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ...core.arguments import check_number, is_whole, show_value
from ..coefficients import adams_weights, exponential_weights, integral, lagrange
from ..definition import sampler
from ..loop import Steps
from ..registry import Run
from .exponential_multistep import Past, combine, relative_nodes
from .slopes import power_weights, walk_slopes, weight_table

#: Adams-Bashforth weights for equal steps, by order.
EQUAL_STEPS = {
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}


@functools.lru_cache(4096)
def adams(past: Past, sigma_next: float) -> tuple[float, ...]:
    """Return exact Adams-Bashforth weights in sigma.

    Args:
        past: The levels of the slopes, newest first.
        sigma_next: The level at the end of the step.
    """
    return tuple(adams_weights(past, past[0], sigma_next))


def _check_order(order: int, most: float = math.inf) -> None:
    if not is_whole(order) or order > most:
        rule = '>= 1'
        if most < math.inf:
            rule = f'from 1 to {most:.0f} (lms has exact weights of any order)'
        raise ValueError(
            f'order must be an integer {rule}, the number of slopes used; got {show_value(order)}'
        )


@sampler(
    order=4, family='linear multistep', reference='Liu et al. 2022, arXiv:2202.09778, section 3'
)
def sample_lms(
    steps: Steps, x: Tensor, *, order: int = 4, euler_to_zero: bool = False
) -> Run[Tensor]:
    """Take variable-step Adams-Bashforth steps in sigma on the last `order` slopes.

    The weights are exact. The order rises from 1 over the first steps. The error of the first step
    limits the order that is observed, to about 3.4 for order 4. 1 NFE.

    Args:
        order: Number of slopes.
        euler_to_zero: Make the step to 0 an Euler step, whose end is D, as ComfyUI does.

    References:
        Liu et al. (2022), arXiv:2202.09778, section 3.
    """
    _check_order(order)
    weights = weight_table(adams, steps.sigmas, order, euler_to_zero)
    return walk_slopes(steps, x, weights)


@sampler(
    order=2, family='linear multistep', reference='Zhang & Chen 2022, arXiv:2204.13902, appendix H'
)
def sample_ipndm(
    steps: Steps,
    x: Tensor,
    *,
    order: int = 4,
    euler_to_zero: bool = False,
    backward_start: bool = False,
) -> Run[Tensor]:
    """Take iPNDM steps: Adams-Bashforth weights of equal steps for any steps.

    The Runge-Kutta start of Liu et al. is omitted. Order 2 on smooth schedules for any `order` from
    2, order 1 on irregular ones; the method is nevertheless among the best with few steps. 1 NFE.

    Args:
        order: Number of slopes, 1 to 4.
        euler_to_zero: Make the step to 0 an Euler step, whose end is D.
        backward_start: Make the first step a backward Euler step, which saves a call: see
            `sample_zeab`.

    References:
        Liu et al. (2022), arXiv:2202.09778.
        Zhang & Chen (2022), arXiv:2204.13902, appendix H.
    """
    _check_order(order, 4)
    weights = weight_table(_equal_steps, steps.sigmas, order, euler_to_zero)
    return walk_slopes(steps, x, weights, backward_start)


@sampler(
    order=3, family='linear multistep', reference='Zhang & Chen 2022, arXiv:2204.13902, appendix H'
)
def sample_ipndm_v(
    steps: Steps, x: Tensor, *, order: int = 3, euler_to_zero: bool = False
) -> Run[Tensor]:
    """Take iPNDM steps with the published weights for steps that vary.

    The weights of order 3 are exact on smooth schedules only. 1 NFE.

    Args:
        order: Number of slopes, 1 to 4. The published weights of 4 slopes, the default of other
            programs, have order 2 on smooth schedules, and do not sum to 1 for steps without a
            common ratio.
        euler_to_zero: Make the step to 0 an Euler step, whose end is D.

    References:
        Zhang & Chen (2022), arXiv:2204.13902, appendix H.
    """
    _check_order(order, 4)
    weights = weight_table(_varying, steps.sigmas, order, euler_to_zero)
    return walk_slopes(steps, x, weights)


def _equal_steps(past: Past, sigma_next: float) -> list[float]:
    """Return the weights of equal steps, whatever the steps are."""
    return [(sigma_next - past[0]) * weight for weight in EQUAL_STEPS[len(past)]]


def _varying(past: Past, sigma_next: float) -> Sequence[float]:
    """Return the published weights of iPNDM for steps that vary."""
    if len(past) < 3:
        return adams(past, sigma_next)
    h, h_1, h_2 = sigma_next - past[0], past[0] - past[1], past[1] - past[2]
    # exact would be h (2 h + 3 h_1) / (6 h_1 (h_1 + h_2))
    t = (1 - h**2 / (3 * h_1 * (h_1 + h_2))) / 2
    q, q_1 = h / h_1, h_1 / h_2
    weights = h * (1 + q / 2 + t), -h * (q / 2 + t * (1 + q_1)), h * t * q_1
    if len(past) == 3:
        return weights
    h_3 = past[2] - past[3]
    s = (1 - h / (3 * (h + h_1))) / 2 + (1 - h / (2 * (h + h_1))) * h / (6 * (h + h_1 + h_2))
    s *= h * (h + h_1) * (h + h_1 + h_2) / (h_1 * (h_1 + h_2) * (h_1 + h_2 + h_3))
    g = h_1 * (h_1 + h_2) / (h_2 * (h_2 + h_3))
    bend = -(1 + q_1 + g), q_1 + g * (1 + h_2 / h_3), -g * q_1  # exact would be -g h_2 / h_3
    return *(w + h * s * b for w, b in zip(weights, (1.0, *bend))), h * s * bend[2]


@sampler(order=3, family='linear multistep', reference='Zhang & Chen 2022, arXiv:2204.13902')
def sample_deis(
    steps: Steps,
    x: Tensor,
    *,
    order: int = 3,
    euler_to_zero: bool = False,
    clock_range: tuple[float, float] | None = None,
) -> Run[Tensor]:
    """Take DEIS tAB steps: the last `order` slopes interpolated in the time of a VP SDE.

    The SDE is fitted to the schedule. The paper counts the degree of the polynomial, order - 1. 1
    NFE.

    Args:
        order: Number of slopes.
        euler_to_zero: Make the step to 0 an Euler step, whose end is D.
        clock_range: Levels (sigma_min, sigma_max) that the SDE is fitted to in place of the
            schedule's; (0.002, 80) in ComfyUI.

    References:
        Zhang & Chen (2022), arXiv:2204.13902.
    """
    _check_order(order)
    clock = vp_clock(steps.sigmas if clock_range is None else _check_range(clock_range))
    weights = weight_table(functools.partial(_in_time, clock), steps.sigmas, order, euler_to_zero)
    return walk_slopes(steps, x, weights)


def _check_range(clock_range: Any) -> tuple[float, float]:
    """Return the two levels as floats; raise a ValueError unless 0 < low < high."""
    try:
        low, high = (check_number('clock_range', end) for end in clock_range)
    except (TypeError, ValueError):
        low = high = math.nan
    if not 0 < low < high:
        raise ValueError(
            'clock_range must be two noise levels (sigma_min, sigma_max) with '
            f'0 < sigma_min < sigma_max; got {show_value(clock_range)}'
        )
    return low, high


def vp_clock(sigmas: Sequence[float]) -> tuple[float, float]:
    """Return (b, c) of log(1 + sigma^2) = b t + c t^2 / 2, the time t of a VP SDE.

    t is 1 at the highest level and 1e-3 at the lowest one above 0.

    Args:
        sigmas: The noise levels.
    """
    positive = [sigma for sigma in sigmas if sigma > 0] or [1.0]
    high, low, end = math.log1p(max(positive) ** 2), math.log1p(min(positive) ** 2), 1e-3
    c = 2 * (low / end - high) / (end - 1)
    # With a high lowest level the rate of the clock at t = 1, b + c, would be negative.
    if high + c / 2 <= 0:
        c = 0.0
    return high - c / 2, c


@functools.lru_cache(4096)
def _in_time(clock: tuple[float, float], past: Past, sigma_next: float) -> tuple[float, ...]:
    """Return the weights of slopes interpolated in the time of a VP SDE."""
    b, c = clock

    def time(sigma: float) -> float:
        y = math.log1p(sigma**2)
        return (math.sqrt(max(b * b + 2 * c * y, 0.0)) - b) / c if c else y / b

    def weight(row: Sequence[float]) -> float:
        return math.fsum(
            integral(lambda sigma: _polynomial(row, time(sigma)), *piece)
            for piece in _pieces(past[0], sigma_next)
        )

    return tuple(weight(row) for row in lagrange([time(sigma) for sigma in past]))


def _pieces(start: float, end: float) -> list[tuple[float, float]]:
    """Cut an interval of levels where they halve, for a quadrature in sigma.

    A step to 0 has seven pieces.
    """
    cuts = [start]
    while cuts[-1] / 2 > end and len(cuts) < (7 if end == 0 else 60):
        cuts.append(cuts[-1] / 2)
    return list(zip(cuts, [*cuts[1:], end]))


def _polynomial(row: Sequence[float], t: float) -> float:
    """Return the value at t of a polynomial with these coefficients, the constant first."""
    value = 0.0
    for coefficient in reversed(row):
        value = value * t + coefficient
    return value


@sampler(order=1, family='linear multistep', reference='Permenter & Yuan 2023, arXiv:2306.04848')
def sample_gradient_estimation(
    steps: Steps, x: Tensor, *, ge_gamma: float = 2.0, euler_to_zero: bool = False
) -> Run[Tensor]:
    """Take Euler steps along ge_gamma eps + (1 - ge_gamma) eps_p, eps_p of the step before.

    ge_gamma = 3/2 is ipndm of order 2; any other value has order 1. 1 NFE.

    Args:
        ge_gamma: Weight of the newest slope.
        euler_to_zero: Make the step to 0 an Euler step, whose end is D.

    References:
        Permenter & Yuan (2023), arXiv:2306.04848.
    """
    gains = {1: (1.0,), 2: (ge_gamma, 1 - ge_gamma)}
    weights = weight_table(
        lambda past, sigma_next: [(sigma_next - past[0]) * gain for gain in gains[len(past)]],
        steps.sigmas,
        2,
        euler_to_zero,
    )
    return walk_slopes(steps, x, weights)


def check_power(order: int, rho: float) -> None:
    """Raise a ValueError unless order is a positive integer and rho positive and finite.

    Args:
        order: Number of slopes.
        rho: The root.
    """
    if not is_whole(order):
        raise ValueError(
            'order must be an integer >= 1 (3 or 4 are usual), the number of slopes used; got '
            f'{show_value(order)}'
        )
    if not 0 < rho < math.inf:
        raise ValueError(
            f'rho must be > 0 and finite (7 is the usual value); got {show_value(rho)}'
        )


@sampler(order=3, family='linear multistep')
def sample_rab(steps: Steps, x: Tensor, *, order: int = 3, rho: float = 7.0) -> Run[Tensor]:
    """Take Adams-Bashforth steps with exact weights in sigma^(1/rho) on the last `order` slopes.

    k-diffusion's own. Intended for few steps, with `afs`. rho = 1 is lms; a large rho interpolates
    in log sigma. The weights are finite at sigma = 0. The order rises from 1 over the first steps,
    whose error hides an order above 3. 1 NFE.

    Args:
        order: Number of slopes.
        rho: The root, positive.
    """
    check_power(order, rho)
    weights = weight_table(functools.partial(power_weights, rho=rho), steps.sigmas, order)
    return walk_slopes(steps, x, weights)


@functools.lru_cache(4096)
def _in_log_sigma(past: Past, sigma_next: float) -> tuple[float, ...]:
    """Return the integrals of l_j(log sigma) over sigma from past[0] to sigma_next > 0."""
    h = math.log(past[0] / sigma_next)
    return tuple(sigma_next * b for b in exponential_weights(relative_nodes(past, sigma_next), -h))


@sampler(
    order=3,
    family='linear multistep',
    reference='Lu et al. 2022, arXiv:2206.00927, proposition 3.1',
)
def sample_zeab(
    steps: Steps, x: Tensor, *, order: int = 3, backward_start: bool = False
) -> Run[Tensor]:
    """Take exponential Adams-Bashforth steps on the noise estimate, interpolated in log sigma.

    The multistep form of DPM-Solver on the last `order` slopes. `exp_ab` is the same on the data
    estimate; `lms` interpolates the noise in sigma. The step to 0 is an Euler step, whose end is D.
    The order rises from 1 over the first steps, whose error hides an order above 3. 1 NFE.

    Args:
        order: Number of slopes.
        backward_start: Make the first step a backward Euler step, which saves its model call:
            x' = x + (sigma' - sigma) (x' - D) / sigma', with D the answer at sigma' to x sigma' /
            sigma. Far from the data D hardly depends on x. Unlike the formula of `afs` it does not
            assume data of mean 0. k-diffusion's own.

    References:
        Lu et al. (2022), arXiv:2206.00927, proposition 3.1.
    """
    _check_order(order)
    weights = weight_table(_in_log_sigma, steps.sigmas, order, euler_to_zero=True)
    return walk_slopes(steps, x, weights, backward_start)


@functools.lru_cache(4096)
def _in_flow_time(past: Past, sigma_next: float) -> tuple[float, ...]:
    """Return exact Adams-Bashforth weights in t = sigma / (1 + sigma)."""

    def since(sigma: float) -> float:
        return (sigma - past[0]) / ((1 + sigma) * (1 + past[0]))

    return tuple(adams_weights([since(sigma) for sigma in past], 0.0, since(sigma_next)))


@sampler(
    order=3,
    family='linear multistep',
    reference='Hairer, Norsett & Wanner 1993, doi:10.1007/978-3-540-78862-1, section III.5',
)
def sample_vab(steps: Steps, x: Tensor, *, order: int = 3) -> Run[Tensor]:
    """Take Adams-Bashforth steps in flow time on the last `order` velocities.

    With t = sigma / (1 + sigma), y = (1 - t) x and v = eps - D the flow is dy/dt = v. The weights
    are exact. The order rises from 1 over the first steps, whose error hides an order above 3. 1
    NFE.

    Args:
        order: Number of values.

    References:
        Hairer, Norsett & Wanner (1993), doi:10.1007/978-3-540-78862-1, section III.5.
    """
    _check_order(order)
    weights = weight_table(_in_flow_time, steps.sigmas, order)
    history: deque[Tensor] = deque(maxlen=order)
    for step in steps:
        denoised = yield from step.ask(x)
        history.appendleft((x - denoised).div_(step.sigma).sub_(denoised))
        end = 1 + step.sigma_next
        x = combine(
            x, end / (1 + step.sigma), [end * weight for weight in weights[step.i]], history
        )
        x = yield x
    return x
