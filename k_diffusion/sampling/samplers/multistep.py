"""Linear multistep methods: past slopes eps = (x - D) / sigma, extrapolated; x' = x + sum w_j
eps_j.

They differ in the weights alone: which variable the slopes are interpolated in, or none.
"""

from __future__ import annotations

import functools
import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ...core.arguments import check_number, is_whole, show_value
from ..coefficients import adams_weights, exponential_weights, gauss_legendre, integral, lagrange
from ..loop import Step, Steps
from ..registry import Run, sampler
from .exponential_multistep import Past, combine, nodes_of, past_levels

#: Adams-Bashforth for equal steps, by order.
EQUAL_STEPS = {
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}


def walk_slopes(steps: Steps, x: Tensor, weights: Sequence[Sequence[float]]) -> Run[Tensor]:
    """The steps of a table of weights, those of the newest slope first.

    Guidance with an interval is integrated over the part of each step that lies inside
    (`GuidanceShare`).
    """
    order = max(map(len, weights), default=1)
    history: deque[Tensor] = deque(maxlen=order)
    guidance = None if steps.interval is None else GuidanceShare(*steps.interval, min(order, 2))
    for step in steps:
        if guidance is not None and guidance.covers(step):
            slope, added = yield from step.ask_slopes(x)
            history.appendleft(slope)
            x = guidance.add(combine(x, 1.0, weights[step.i], history), step, added)
        else:
            history.appendleft((yield from step.ask_slope(x)))
            x = combine(x, 1.0, weights[step.i], history)
        x = yield x
    return x


class GuidanceShare:
    """What guidance in an interval (low, high] of noise levels adds to the steps of a linear
    multistep method.

    The model's answer jumps at the edges, so its slope is two streams: eps without guidance, smooth
    at all levels, and the slope eps_g = -(D_guided - D) / sigma that guidance adds. The second has
    a history of its own, of `order` values interpolated in sigma^(1/7), and is integrated over the
    part of a step inside the interval, wherever the levels lie.
    """

    def __init__(self, low: float, high: float, order: int) -> None:
        self.low, self.high = low, high
        self.levels: deque[float] = deque(maxlen=order)
        self.slopes: deque[Tensor] = deque(maxlen=order)

    def covers(self, step: Step) -> bool:
        """Whether a part of the step is inside the interval."""
        return step.sigma > self.low and step.sigma_next < self.high

    def add(self, x: Tensor, step: Step, slope: Tensor) -> Tensor:
        """Return x with the integral of eps_g over that part added; slope: eps_g at the step's
        level.
        """
        self.levels.appendleft(step.sigma)
        self.slopes.appendleft(slope)
        past = tuple(self.levels)
        weights = power_weights(past, max(step.sigma_next, self.low), 7.0)
        if step.sigma > self.high:
            weights = [w - above for w, above in zip(weights, power_weights(past, self.high, 7.0))]
        return combine(x, 1.0, weights, self.slopes)


def table_of(
    rule: Callable[[Past, float], Sequence[float]],
    sigmas: Sequence[float],
    order: int,
    euler_to_zero: bool = False,
) -> list[Sequence[float]]:
    """The weights of every step by a rule (past levels, sigma_next) -> weights; none for a step
    between equal levels.

    euler_to_zero: the step to 0 is one of Euler's, whose end is D.
    """
    table: list[Sequence[float]] = []
    for past, sigma_next in zip(past_levels(sigmas, order), sigmas[1:]):
        if past[0] == sigma_next:
            table.append(())
        elif euler_to_zero and sigma_next == 0:
            table.append((-past[0],))
        else:
            table.append(rule(past, sigma_next))
    return table


@functools.lru_cache(4096)
def adams(past: Past, sigma_next: float) -> tuple[float, ...]:
    """Exact Adams-Bashforth in sigma."""
    return tuple(adams_weights(past, past[0], sigma_next))


def _order(order: int, most: float = math.inf) -> None:
    if not is_whole(order) or order > most:
        allowed = (
            '>= 1'
            if most == math.inf
            else f'from 1 to {most:.0f} (lms has exact weights of any order)'
        )
        raise ValueError(
            f'order must be a whole number {allowed}, how many slopes are used; got '
            f'{show_value(order)}'
        )


@sampler(
    order=4, family='linear multistep', reference='Liu et al. 2022, arXiv:2202.09778, section 3'
)
def sample_lms(
    steps: Steps, x: Tensor, *, order: int = 4, euler_to_zero: bool = False
) -> Run[Tensor]:
    """Variable-step Adams-Bashforth in sigma: the last `order` slopes, exact weights. 1 NFE.

    The order rises 1, 2, .. over the first steps, and the error of the very first limits what is
    seen: about 3.4 at order 4. euler_to_zero: the step to 0 is one of Euler's, whose end is D; so
    it is in ComfyUI.
    """
    _order(order)
    weights = table_of(adams, steps.sigmas, order, euler_to_zero)
    return walk_slopes(steps, x, weights)


@sampler(
    order=2, family='linear multistep', reference='Zhang & Chen 2022, arXiv:2204.13902, appendix H'
)
def sample_ipndm(
    steps: Steps, x: Tensor, *, order: int = 4, euler_to_zero: bool = False
) -> Run[Tensor]:
    """iPNDM: the Adams-Bashforth weights of equal steps whatever the steps are. 1 NFE.

    Liu et al. (2022), arXiv:2202.09778, without the Runge-Kutta start, as Zhang & Chen (2022),
    arXiv:2204.13902, appendix H, have it. Order 2 on smooth schedules whatever `order` (1 to 4) is,
    1 on irregular ones; among the best at few steps all the same. euler_to_zero: as in
    `sample_lms`.
    """
    _order(order, 4)
    weights = table_of(
        lambda past, sigma_next: [
            (sigma_next - past[0]) * weight for weight in EQUAL_STEPS[len(past)]
        ],
        steps.sigmas,
        order,
        euler_to_zero,
    )
    return walk_slopes(steps, x, weights)


@sampler(
    order=3, family='linear multistep', reference='Zhang & Chen 2022, arXiv:2204.13902, appendix H'
)
def sample_ipndm_v(
    steps: Steps, x: Tensor, *, order: int = 3, euler_to_zero: bool = False
) -> Run[Tensor]:
    """iPNDM with the published weights for steps that vary, of order 1 to 3; those of order 3 are
    exact on smooth schedules only. 1 NFE.

    order: 4, the widespread default elsewhere, takes the published weights of four slopes. They
    reach order 2 on smooth schedules, and do not add up to 1 where the steps have no common ratio.
    euler_to_zero: as in `sample_lms`.
    """
    _order(order, 4)
    weights = table_of(_varying, steps.sigmas, order, euler_to_zero)
    return walk_slopes(steps, x, weights)


def _varying(past: Past, sigma_next: float) -> Sequence[float]:
    if len(past) < 3:
        return adams(past, sigma_next)
    h, h_1, h_2 = sigma_next - past[0], past[0] - past[1], past[1] - past[2]
    t = (
        1 - h**2 / (3 * h_1 * (h_1 + h_2))
    ) / 2  # exact would be h (2 h + 3 h_1) / (6 h_1 (h_1 + h_2))
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
    """DEIS tAB: the last `order` slopes interpolated in the time of the VP SDE that fits the
    schedule. 1 NFE.

    Zhang & Chen (2022), arXiv:2204.13902; the paper counts the degree of the polynomial, order - 1.
    euler_to_zero: as in `sample_lms`. clock_range: the levels (sigma_min, sigma_max) that the SDE
    fits instead; (0.002, 80) in ComfyUI.
    """
    _order(order)
    clock = vp_clock(steps.sigmas if clock_range is None else _check_range(clock_range))
    weights = table_of(functools.partial(_in_time, clock), steps.sigmas, order, euler_to_zero)
    return walk_slopes(steps, x, weights)


def _check_range(clock_range: Any) -> tuple[float, float]:
    try:
        low, high = (check_number('clock_range', end) for end in clock_range)
    except (TypeError, ValueError):
        low = high = math.nan
    if not 0 < low < high:
        raise ValueError(
            'clock_range must be two noise levels (sigma_min, sigma_max) with 0 < sigma_min < '
            'sigma_max; '
            f'got {show_value(clock_range)}'
        )
    return low, high


def vp_clock(sigmas: Sequence[float]) -> tuple[float, float]:
    """(b, c) of log(1 + sigma^2) = b t + c t^2 / 2 with t = 1 at the highest level and 1e-3 at
    the lowest above 0.
    """
    positive = [sigma for sigma in sigmas if sigma > 0] or [1.0]
    high, low, end = math.log1p(max(positive) ** 2), math.log1p(min(positive) ** 2), 1e-3
    c = 2 * (low / end - high) / (end - 1)
    if (
        high + c / 2 <= 0
    ):  # the lowest level is so high that the clock, whose rate is b + c at t = 1, would turn back
        c = 0.0
    return high - c / 2, c


@functools.lru_cache(4096)
def _in_time(clock: tuple[float, float], past: Past, sigma_next: float) -> tuple[float, ...]:
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
    """An interval of levels cut where they halve, for a quadrature in sigma; a step to 0 is cut
    six times.
    """
    cuts = [start]
    while cuts[-1] / 2 > end and len(cuts) < (7 if end == 0 else 60):
        cuts.append(cuts[-1] / 2)
    return list(zip(cuts, [*cuts[1:], end]))


def _polynomial(row: Sequence[float], t: float) -> float:
    value = 0.0
    for coefficient in reversed(row):
        value = value * t + coefficient
    return value


@sampler(order=1, family='linear multistep', reference='Permenter & Yuan 2023, arXiv:2306.04848')
def sample_gradient_estimation(
    steps: Steps, x: Tensor, *, ge_gamma: float = 2.0, euler_to_zero: bool = False
) -> Run[Tensor]:
    """Euler along ge_gamma eps + (1 - ge_gamma) eps of the step before. 1 NFE.

    Permenter & Yuan (2023), arXiv:2306.04848. ge_gamma = 3/2 is ipndm of order 2; any other value
    has order 1. euler_to_zero: as in `sample_lms`.
    """
    gains = {1: (1.0,), 2: (ge_gamma, 1 - ge_gamma)}
    weights = table_of(
        lambda past, sigma_next: [(sigma_next - past[0]) * gain for gain in gains[len(past)]],
        steps.sigmas,
        2,
        euler_to_zero,
    )
    return walk_slopes(steps, x, weights)


def power_weights(past: Sequence[float], sigma_next: float, rho: float) -> list[float]:
    """w_j = the integral of l_j(u) rho u^(rho - 1) over u from past[0]^(1/rho) to
    sigma_next^(1/rho): x' = x + sum w_j eps_j.

    l_j: the Lagrange polynomials of the past levels in u = sigma^(1/rho), newest first. For a whole
    rho the integrand is a polynomial of degree len(past) + rho - 2, and the quadrature exact;
    sigma_next may be 0.
    """
    start, end = past[0] ** (1 / rho), sigma_next ** (1 / rho)
    h = end - start
    rows = lagrange([(sigma ** (1 / rho) - start) / h for sigma in past])
    weights = [0.0] * len(past)
    for node, weight in gauss_legendre(12):
        s = (1 + node) / 2
        density = weight / 2 * h * rho * (start + s * h) ** (rho - 1)
        for j, row in enumerate(rows):
            weights[j] += density * math.fsum(c * s**k for k, c in enumerate(row))
    return weights


def check_power(order: int, rho: float) -> None:
    """Refuses an order or a rho that makes no method."""
    if not is_whole(order):
        raise ValueError(
            'order must be a whole number >= 1 (3 or 4 are usual), how many slopes are used; got '
            f'{show_value(order)}'
        )
    if not 0 < rho < math.inf:
        raise ValueError(f'rho must be above 0 and finite (7 is usual); got {show_value(rho)}')


@sampler(order=3, family='linear multistep')
def sample_rab(steps: Steps, x: Tensor, *, order: int = 3, rho: float = 7.0) -> Run[Tensor]:
    """Adams-Bashforth with exact weights in sigma^(1/rho): the last `order` slopes, interpolated
    there. 1 NFE.

    rho = 1 is lms, and a large rho the interpolation in log sigma; finite at sigma 0. Made for few
    steps, with `afs`. The order rises 1, 2, .. over the first steps, whose error hides an order
    above 3.
    """
    check_power(order, rho)
    weights = table_of(functools.partial(power_weights, rho=rho), steps.sigmas, order)
    return walk_slopes(steps, x, weights)


@functools.lru_cache(4096)
def _in_log_sigma(past: Past, sigma_next: float) -> tuple[float, ...]:
    """w_j = the integral of l_j(log sigma) over sigma from past[0] to sigma_next, above 0."""
    h = math.log(past[0] / sigma_next)
    return tuple(sigma_next * b for b in exponential_weights(nodes_of(past, sigma_next), -h))


@sampler(
    order=3,
    family='linear multistep',
    reference='Lu et al. 2022, arXiv:2206.00927, proposition 3.1',
)
def sample_zeab(steps: Steps, x: Tensor, *, order: int = 3) -> Run[Tensor]:
    """Exponential Adams-Bashforth on the noise estimate: the last `order` slopes, interpolated in
    log sigma. 1 NFE.

    The multistep form of DPM-Solver; `exp_ab` is the same on the data estimate, and `lms`
    interpolates the noise in sigma. The step to 0 is one of Euler's, whose end is D. The order
    rises 1, 2, .. over the first steps, whose error hides an order above 3.
    """
    _order(order)
    weights = table_of(_in_log_sigma, steps.sigmas, order, euler_to_zero=True)
    return walk_slopes(steps, x, weights)


@functools.lru_cache(4096)
def _in_flow_time(past: Past, sigma_next: float) -> tuple[float, ...]:
    """Exact Adams-Bashforth in t = sigma / (1 + sigma)."""

    def since(sigma: float) -> float:
        return (sigma - past[0]) / ((1 + sigma) * (1 + past[0]))

    return tuple(adams_weights([since(sigma) for sigma in past], 0.0, since(sigma_next)))


@sampler(
    order=3,
    family='linear multistep',
    reference='Hairer, Norsett & Wanner 1993, doi:10.1007/978-3-540-78862-1, section III.5',
)
def sample_vab(steps: Steps, x: Tensor, *, order: int = 3) -> Run[Tensor]:
    """Adams-Bashforth in flow time on the velocity: the last `order` values, exact weights. 1 NFE.

    With t = sigma / (1 + sigma), y = (1 - t) x and v = eps - D the flow is dy/dt = v. The order
    rises 1, 2, .. over the first steps, whose error hides an order above 3.
    """
    _order(order)
    weights = table_of(_in_flow_time, steps.sigmas, order)
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
