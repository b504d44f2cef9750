"""Samplers that add noise on the way: DDIM with eta, DDPM, SA-Solver, ER-SDE, Restart."""
from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..core.arguments import check_number, is_whole, show_value
from ..core.protocols import DenoiseFn, NoiseSampler
from .catalogue import Run, sampler
from .coefficients import get_ancestral_step
from .exponential import LAST, STAY, Past, Row, Table, corrected, exponential_row, folded, past_levels, walk_table
from .loop import Callback, ExtraArgs, Sigmas, levels, walk
from .noise import default_noise_sampler
from .quadrature import integral


@sampler(order=1)
def sample_ddim(model: DenoiseFn, x: Tensor, sigmas: Sigmas, extra_args: ExtraArgs = None, callback: Callback = None,
                disable: bool | None = None, eta: float = 0., s_noise: float = 1.,
                noise_sampler: NoiseSampler | None = None) -> Run[Tensor]:
    """DDIM: x' = D + sigma_down eps + sigma_up z; eta 0 is Euler, 1 is DDPM. 1 NFE. Song et al. (2021), arXiv:2010.02502, eq. 12 and 16.

    Its eta is that of get_ancestral_step: sigma_up = eta sigma' sqrt(1 - sigma'^2 / sigma^2).
    """
    sigmas = levels(sigmas)
    return (yield from walk_table(model, x, sigmas, extra_args, callback, disable, _ddim_table(sigmas, eta), s_noise, noise_sampler))


@sampler(order=1, stochastic=True)
def sample_ddpm(model: DenoiseFn, x: Tensor, sigmas: Sigmas, extra_args: ExtraArgs = None, callback: Callback = None,
                disable: bool | None = None, s_noise: float = 1., noise_sampler: NoiseSampler | None = None) -> Run[Tensor]:
    """DDPM ancestral sampling with the smaller of its two variances: DDIM of eta 1. 1 NFE. Ho et al. (2020), arXiv:2006.11239, eq. 7."""
    sigmas = levels(sigmas)
    return (yield from walk_table(model, x, sigmas, extra_args, callback, disable, _ddim_table(sigmas, 1.), s_noise, noise_sampler))


def _ddim_table(sigmas: Sequence[float], eta: float) -> Table:
    table = []
    for sigma, sigma_next in itertools.pairwise(sigmas):
        sigma_down, sigma_up = get_ancestral_step(sigma, sigma_next, eta) if sigma else (0., 0.)
        table.append(Row(sigma_down / sigma, (1 - sigma_down / sigma,), sigma_up) if sigma else STAY)
    return table


def sa_table(sigmas: Sequence[float], tau: float | Callable[[float], float], interval: tuple[float, float], predictor_order: int,
             corrector_order: int, pece: bool) -> Table:
    """Rows of SA-Solver: exponential Adams predictor and corrector with eta = tau(sigma)^2 at the start of each step. A number
    tau acts in the share `interval` of the steps and is 0 elsewhere. With pece the corrections stand by themselves."""
    if not is_whole(predictor_order) or not is_whole(corrector_order, 0) or corrector_order not in (0, *range(2, predictor_order + 2)):
        raise ValueError(f'predictor_order={predictor_order} and corrector_order={corrector_order} make no pair; the predictor takes '
                         'at least 1, the corrector 0 (none) or 2 to one more than the predictor')
    try:
        low, high = (check_number('interval', end) for end in interval)
    except (TypeError, ValueError):
        raise ValueError(f'interval must be two shares of the steps, (0.2, 0.8) is usual; got {show_value(interval)}') from None
    n = len(sigmas) - 1
    table: list[Row] = []
    correct: tuple[float, ...] | None = None
    for i, (past, sigma_next) in enumerate(zip(past_levels(sigmas, predictor_order), sigmas[1:])):
        if past[0] == sigma_next:
            table.append(STAY)
            continue
        strength = check_number(f'tau({past[0]:g})', tau(past[0]), 0.) if callable(tau) else tau if low <= i / n <= high else 0.
        eta = strength ** 2
        row = exponential_row(past, sigma_next, eta)
        table.append(row._replace(correct=correct) if pece else folded(row, correct))
        behind = past[:corrector_order - 1]
        correct = _matched(row, behind, sigma_next, eta) if corrector_order and sigma_next > 0 else None
    return table


def _matched(row: Row, behind: Past, sigma_next: float, eta: float) -> tuple[float, ...]:
    """The correction by D at sigma_next and at the levels behind, of a row that used all of the past."""
    padded = row._replace(b=row.b[:len(behind)])
    return (*corrected(padded, behind, sigma_next, eta), *(-b for b in row.b[len(behind):]))


@sampler(order=4, stochastic=True)
def sample_sa_solver(model: DenoiseFn, x: Tensor, sigmas: Sigmas, extra_args: ExtraArgs = None, callback: Callback = None,
                     disable: bool | None = None, tau: float | Callable[[float], float] = 1., s_noise: float = 1.,
                     noise_sampler: NoiseSampler | None = None, interval: tuple[float, float] = (0.2, 0.8), predictor_order: int = 3,
                     corrector_order: int = 4, pece: bool = False) -> Run[Tensor]:
    """SA-Solver: a stochastic Adams predictor-corrector; order 4 at tau 0, order 2 in law at tau 1. 1 NFE, with pece 2.

    Xue et al. (2023), arXiv:2309.05019. tau: the noise, 0 for the flow and 1 for DDPM's, in the share `interval` of the
    steps; or a function of sigma. The correction keeps the noise that the prediction drew. pece: D is asked for again after it.
    """
    sigmas = levels(sigmas)
    table = sa_table(sigmas, tau, interval, predictor_order, corrector_order, pece)
    return (yield from walk_table(model, x, sigmas, extra_args, callback, disable, table, s_noise, noise_sampler, pece))


@sampler(order=4, nfe=2, stochastic=True)
def sample_sa_solver_pece(model: DenoiseFn, x: Tensor, sigmas: Sigmas, extra_args: ExtraArgs = None, callback: Callback = None,
                          disable: bool | None = None, tau: float | Callable[[float], float] = 1., s_noise: float = 1.,
                          noise_sampler: NoiseSampler | None = None, interval: tuple[float, float] = (0.2, 0.8),
                          predictor_order: int = 3, corrector_order: int = 4) -> Run[Tensor]:
    """SA-Solver that asks for D again after each correction. 2 NFE, but 1 in the first step."""
    sigmas = levels(sigmas)
    table = sa_table(sigmas, tau, interval, predictor_order, corrector_order, True)
    return (yield from walk_table(model, x, sigmas, extra_args, callback, disable, table, s_noise, noise_sampler, True))


def er_noise_scaler(sigma: float) -> float:
    """phi(sigma) = sigma (exp(sigma^0.3) + 10), the published choice for VE (Cui et al. 2023, arXiv:2309.06169)."""
    return sigma * (math.exp(min(sigma ** 0.3, 600.)) + 10)


def er_row(past: Past, sigma_next: float, scaler: Callable[[float], float], exact: bool) -> Row:
    """x' = r x + (1 - r) D + P D' + Q D'' + sqrt(sigma'^2 - r^2 sigma^2) z, r = phi(sigma') / phi(sigma), the derivatives in sigma
    by differences of the past values."""
    sigma = past[0]
    if sigma == sigma_next:
        return STAY
    if sigma_next == 0:
        return LAST
    end, step = scaler(sigma_next), sigma_next - sigma
    r = end / scaler(sigma)
    low, high = math.log(sigma_next), math.log(sigma)
    p = step + end * integral(lambda u: math.exp(u) / scaler(math.exp(u)), low, high)
    q = step ** 2 / 2 + end * integral(lambda u: math.exp(u) * (math.exp(u) - sigma) / scaler(math.exp(u)), low, high)
    b = [1 - r, 0., 0.]
    if len(past) > 1:
        gap = sigma - past[1]
        b = [b[0] + p / gap, -p / gap, 0.]
    if len(past) > 2:
        gain = 2 * q + (p * gap if exact else 0.)   # of the second divided difference
        first, second = gain / (sigma - past[2]) / gap, gain / (sigma - past[2]) / (past[1] - past[2])
        b = [b[0] + first, b[1] - first - second, second]
    variance = sigma_next ** 2 - (r * sigma) ** 2
    if variance < -1e-9 * sigma_next ** 2:
        raise ValueError(f'noise_scaler falls short between sigma {sigma:g} and {sigma_next:g}; noise_scaler(sigma) / sigma must not '
                         'decrease as sigma grows')
    return Row(r, tuple(b[:len(past)]), math.sqrt(max(0., variance)))


@sampler(order=2, stochastic=True)
def sample_er_sde(model: DenoiseFn, x: Tensor, sigmas: Sigmas, extra_args: ExtraArgs = None, callback: Callback = None,
                  disable: bool | None = None, s_noise: float = 1., noise_sampler: NoiseSampler | None = None,
                  noise_scaler: Callable[[float], float] | None = None, max_stage: int = 3, exact: bool = False) -> Run[Tensor]:
    """ER-SDE-k, k = max_stage = 1, 2 or 3: an exponential solver for the reverse SDE whose noise is set by a function. 1 NFE.

    Cui et al. (2023), arXiv:2309.06169. noise_scaler: phi(sigma); sigma gives the flow, sigma^2 DDPM's noise, by default
    er_noise_scaler. exact: k = 3 takes the slope at the step's start where the published one takes it half a step back (order 3
    in place of 2 for the flow).
    """
    if not is_whole(max_stage) or max_stage > 3:
        raise ValueError(f'max_stage={max_stage} is not known; ER-SDE has 1, 2 or 3')

    def scaler(sigma: float) -> float:
        value = float((noise_scaler or er_noise_scaler)(sigma))
        if not 0 < value < math.inf:
            raise ValueError(f'noise_scaler({sigma:g}) is {value}; it must be positive and finite at every level above 0, sigma ** 2 say')
        return value

    sigmas = levels(sigmas)
    table = [er_row(past, sigma_next, scaler, exact) for past, sigma_next in zip(past_levels(sigmas, max_stage), sigmas[1:])]
    return (yield from walk_table(model, x, sigmas, extra_args, callback, disable, table, s_noise, noise_sampler))


@sampler(order=2, nfe=2, stochastic=True, noise='independent')
def sample_restart(model: DenoiseFn, x: Tensor, sigmas: Sigmas, extra_args: ExtraArgs = None, callback: Callback = None,
                   disable: bool | None = None, s_noise: float = 1., noise_sampler: NoiseSampler | None = None,
                   intervals: Sequence[tuple[float, float]] | None = None, times: int = 2,
                   inner_steps: int | None = None) -> Run[Tensor]:
    """Restart: at the knot nearest to an interval's low end noise leads back to its high end, `times` times, by Heun steps all along.

    Xu et al. (2023), arXiv:2306.14878, section 3.1. intervals: by default from 0.1 to 2, or to the highest level of a schedule
    below that; none in a schedule without levels in between. inner_steps: of each way down (a quarter of the schedule's by default).
    2 NFE, but 1 for the step to 0.
    """
    sigmas = levels(sigmas)
    noise_sampler = noise_sampler or default_noise_sampler(x)
    at = sigmas[0]
    for step in walk(model, x, restart_pairs(sigmas, intervals, times, inner_steps), extra_args, callback, disable):
        if step.sigma > at:
            noise = noise_sampler(at, step.sigma)
            x = torch.add(x, noise, alpha=s_noise * math.sqrt(step.sigma ** 2 - at ** 2))
        d, h = step.slope(x), step.sigma_next - step.sigma
        if step.sigma_next > 0:
            x_2 = torch.add(x, d, alpha=h)
            d = (d + step.slope(x_2, step.sigma_next)) / 2
        x = torch.add(x, d, alpha=h)
        at = step.sigma_next
        x = yield x
    return x


def restart_pairs(sigmas: Sequence[float], intervals: Sequence[tuple[float, float]] | None, times: int,
                  inner_steps: int | None = None) -> list[tuple[float, float]]:
    """The steps of a schedule with the ways down from each interval's high end put in, the highest interval first."""
    knots = [sigma for sigma in sigmas if sigma > 0]
    inserted: dict[float, list[tuple[float, float]]] = {}
    n = max(1, (len(set(sigmas)) - 1) // 4) if inner_steps is None else inner_steps
    if not is_whole(times, 0) or not is_whole(n):
        raise ValueError(f'times={times} and inner_steps={inner_steps} make no ways down; give whole numbers, times of at least 0 and '
                         'inner_steps of at least 1, or None')
    for low, high in _intervals(intervals, knots):
        ends = high ** (1 / 7), low ** (1 / 7)
        down = [high, *((ends[0] + i / n * (ends[1] - ends[0])) ** 7 for i in range(1, n)), low]
        inserted[low] = inserted.get(low, []) + int(times) * list(itertools.pairwise(down))
    pairs = []
    for sigma, sigma_next in itertools.pairwise(sigmas):
        if sigma != sigma_next:
            pairs += [(sigma, sigma_next), *inserted.pop(sigma_next, [])]
    return pairs


def _intervals(intervals: Sequence[tuple[float, float]] | None, knots: Sequence[float]) -> list[tuple[float, float]]:
    """The restart intervals from the highest down, each low end a knot of the schedule; the default one where it has a place."""
    def knot(low: float) -> float:
        return min((abs(math.log(sigma / low)), sigma) for sigma in knots)[1] if knots else math.inf

    top = max(knots, default=0.)
    if intervals is None:
        low, high = knot(0.1), min(2., top)
        return [(low, high)] if low < high else []
    try:
        pairs = [(float(low), float(high)) for low, high in intervals]
    except (TypeError, ValueError):
        raise ValueError(f'intervals={intervals} are no pairs of noise levels; give ((0.1, 2.),) say') from None
    for low, high in pairs:
        if not 0 < low < high < math.inf:
            raise ValueError(f'the restart interval {(low, high)} is no range of noise levels; give 0 < low < high')
        if not knot(low) < min(high, top) or high > top * (1 + 1e-6):   # the top, which float32 may have rounded down
            raise ValueError(f'the restart interval {(low, high)} does not fit into a schedule of the levels {top:g} to '
                             f'{min(knots, default=0.):g} above 0; give one that begins nearest to a level below its end and ends within')
    return sorted(((knot(low), min(high, top)) for low, high in pairs), reverse=True)
