"""SA-Solver: stochastic Adams methods with a corrector.

References:
    Xue et al. (2023), arXiv:2309.05019.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import Tensor

from ...core.arguments import check_number, is_whole, show_value
from ..definition import sampler
from ..loop import Steps
from ..registry import Run
from .exponential_multistep import (
    STAY,
    Past,
    Row,
    Table,
    correction_weights,
    exponential_row,
    fold_correction,
    past_levels,
    walk_table,
)


def sa_table(
    sigmas: Sequence[float],
    tau: float | Callable[[float], float],
    interval: tuple[float, float],
    predictor_order: int,
    corrector_order: int,
    pece: bool,
    lower_order_final: bool = False,
) -> Table:
    """Return the rows of SA-Solver: an exponential Adams predictor and corrector.

    The strength of the noise is eta = tau(sigma)^2 at the start of each step.

    Args:
        sigmas: The noise levels, descending.
        tau: The noise: a number that acts in the share `interval` of the steps and is 0 elsewhere,
            or a function of sigma.
        interval: First and last share of the steps with noise.
        predictor_order: Number of values of the predictor.
        corrector_order: Number of values of the corrector; 0 disables it.
        pece: Keep the corrections apart, for D to be evaluated again after each.
        lower_order_final: Take at most as many values as there are levels above 0 left.

    Returns:
        A row for each step.

    Raises:
        ValueError: If the orders do not fit each other, or interval is not a pair of numbers.
    """
    if (
        not is_whole(predictor_order)
        or not is_whole(corrector_order, 0)
        or corrector_order not in (0, *range(2, predictor_order + 2))
    ):
        raise ValueError(
            'predictor_order must be >= 1, and corrector_order 0 (none) or from 2 to '
            f'predictor_order + 1; got {predictor_order} and {corrector_order}'
        )
    try:
        low, high = (check_number('interval', end) for end in interval)
    except (TypeError, ValueError):
        raise ValueError(
            'interval must be two shares of the steps, (0.2, 0.8) for example; got '
            f'{show_value(interval)}'
        ) from None
    n = len(sigmas) - 1
    table: list[Row] = []
    correct: tuple[float, ...] | None = None
    for i, (past, sigma_next) in enumerate(zip(past_levels(sigmas, predictor_order), sigmas[1:])):
        if past[0] == sigma_next:
            table.append(STAY)
            continue
        strength = (
            check_number(f'tau({past[0]:g})', tau(past[0]), 0.0)
            if callable(tau)
            else tau
            if low <= i / n <= high
            else 0.0
        )
        eta = strength**2
        remaining = len({*sigmas[i + 1 :]} - {0.0}) if lower_order_final and sigmas[-1] == 0 else n
        past = past[: max(remaining, 1)]
        row = exponential_row(past, sigma_next, eta)
        table.append(row._replace(correct=correct) if pece else fold_correction(row, correct))
        behind = past[: min(corrector_order, remaining) - 1]
        correct = (
            _match_correction(row, past[0], behind, sigma_next, eta)
            if corrector_order and sigma_next > 0
            else None
        )
    return table


def _match_correction(
    row: Row, sigma: float, behind: Past, sigma_next: float, eta: float
) -> tuple[float, ...]:
    """Return the correction by D at sigma_next and at the levels behind.

    The row begins at sigma and used all of the past.
    """
    if not behind:
        return (1 - (sigma_next / sigma) ** (1 + eta), *(-b for b in row.b))
    padded = row._replace(b=row.b[: len(behind)])
    return (
        *correction_weights(padded, behind, sigma_next, eta),
        *(-b for b in row.b[len(behind) :]),
    )


def tau_between(
    sigmas: Sequence[float] | Tensor, high: float, low: float, tau: float = 1.0
) -> Callable[[float], float]:
    """Return the tau of SA-Solver that acts in the steps that end between two levels.

    ComfyUI has this rule, with the levels of shares 0.2 and 0.8 of the model's time.

    Args:
        sigmas: The noise levels of the run, descending.
        high: The upper level.
        low: The lower level.
        tau: The value in these steps; it is 0 in the others.
    """
    levels = [float(sigma) for sigma in sigmas]
    ends = {sigma: tau if low <= end <= high else 0.0 for sigma, end in pairwise(levels)}
    return ends.__getitem__


@sampler(
    order=4,
    stochastic=True,
    noise='path',
    family='SA-Solver',
    reference='Xue et al. 2023, arXiv:2309.05019',
)
def sample_sa_solver(
    steps: Steps,
    x: Tensor,
    *,
    tau: float | Callable[[float], float] = 1.0,
    s_noise: float = 1.0,
    interval: tuple[float, float] = (0.2, 0.8),
    predictor_order: int = 3,
    corrector_order: int = 4,
    pece: bool = False,
    lower_order_final: bool = False,
) -> Run[Tensor]:
    """Take steps of a stochastic Adams predictor-corrector.

    Order 4 at tau = 0; weak order 2 at tau = 1. The correction keeps the noise that the prediction
    drew. 1 NFE, 2 with pece.

    Args:
        tau: The noise: 0 is the probability flow, 1 the noise of DDPM, in the share `interval` of
            the steps; or a function of sigma.
        s_noise: Factor of the noise.
        interval: First and last share of the steps with noise.
        predictor_order: Number of values of the predictor.
        corrector_order: Number of values of the corrector; 0 disables it.
        pece: Evaluate D again after each correction.
        lower_order_final: In a schedule that ends at 0, take at most as many values as there are
            levels above 0 left, as ComfyUI does.

    Raises:
        ValueError: If the orders do not fit each other, or interval is not a pair of numbers.

    References:
        Xue et al. (2023), arXiv:2309.05019.
    """
    table = sa_table(
        steps.sigmas, tau, interval, predictor_order, corrector_order, pece, lower_order_final
    )
    return walk_table(steps, x, table, s_noise, pece)


@sampler(
    order=4,
    nfe=2,
    stochastic=True,
    noise='path',
    family='SA-Solver',
    reference='Xue et al. 2023, arXiv:2309.05019',
)
def sample_sa_solver_pece(
    steps: Steps,
    x: Tensor,
    *,
    tau: float | Callable[[float], float] = 1.0,
    s_noise: float = 1.0,
    interval: tuple[float, float] = (0.2, 0.8),
    predictor_order: int = 3,
    corrector_order: int = 4,
    lower_order_final: bool = False,
) -> Run[Tensor]:
    """Take SA-Solver steps that evaluate D again after each correction.

    2 NFE, 1 in the first step. The arguments are those of `sample_sa_solver`.

    Args:
        tau: The noise: a number, or a function of sigma.
        s_noise: Factor of the noise.
        interval: First and last share of the steps with noise.
        predictor_order: Number of values of the predictor.
        corrector_order: Number of values of the corrector; 0 disables it.
        lower_order_final: In a schedule that ends at 0, take at most as many values as there are
            levels above 0 left.

    References:
        Xue et al. (2023), arXiv:2309.05019.
    """
    table = sa_table(
        steps.sigmas, tau, interval, predictor_order, corrector_order, True, lower_order_final
    )
    return walk_table(steps, x, table, s_noise, True)
