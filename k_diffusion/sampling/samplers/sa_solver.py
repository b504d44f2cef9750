"""SA-Solver: stochastic Adams methods with a corrector (Xue et al. 2023, arXiv:2309.05019)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from ...core.arguments import check_number, is_whole, show_value
from ..loop import Steps
from ..registry import Run, sampler
from .exponential_multistep import (
    STAY,
    Past,
    Row,
    Table,
    corrected,
    exponential_row,
    folded,
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
    """Rows of SA-Solver: exponential Adams predictor and corrector with eta = tau(sigma)^2 at the
    start of each step. A number tau acts in the share `interval` of the steps and is 0 elsewhere.
    With pece the corrections stand by themselves. lower_order_final: neither takes more values than
    there are levels above 0 left.
    """
    if (
        not is_whole(predictor_order)
        or not is_whole(corrector_order, 0)
        or corrector_order not in (0, *range(2, predictor_order + 2))
    ):
        raise ValueError(
            f'predictor_order={predictor_order} and corrector_order={corrector_order} make no '
            'pair; the predictor takes '
            'at least 1, the corrector 0 (none) or 2 to one more than the predictor'
        )
    try:
        low, high = (check_number('interval', end) for end in interval)
    except (TypeError, ValueError):
        raise ValueError(
            'interval must be two shares of the steps, (0.2, 0.8) is usual; got '
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
        left = len({*sigmas[i + 1 :]} - {0.0}) if lower_order_final and sigmas[-1] == 0 else n
        past = past[: max(left, 1)]
        row = exponential_row(past, sigma_next, eta)
        table.append(row._replace(correct=correct) if pece else folded(row, correct))
        behind = past[: min(corrector_order, left) - 1]
        correct = (
            _matched(row, past[0], behind, sigma_next, eta)
            if corrector_order and sigma_next > 0
            else None
        )
    return table


def _matched(
    row: Row, sigma: float, behind: Past, sigma_next: float, eta: float
) -> tuple[float, ...]:
    """The correction by D at sigma_next and at the levels behind, of a row from sigma that used
    all of the past.
    """
    if not behind:
        return (1 - (sigma_next / sigma) ** (1 + eta), *(-b for b in row.b))
    padded = row._replace(b=row.b[: len(behind)])
    return (*corrected(padded, behind, sigma_next, eta), *(-b for b in row.b[len(behind) :]))


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
    """SA-Solver: a stochastic Adams predictor-corrector; order 4 at tau 0, order 2 in law at tau 1.

    1 NFE, with pece 2.

    Xue et al. (2023), arXiv:2309.05019. tau: the noise, 0 for the flow and 1 for DDPM's, in the
    share `interval` of the steps; or a function of sigma. The correction keeps the noise that the
    prediction drew. pece: D is asked for again after it. lower_order_final: in a schedule that ends
    in 0, at most as many values as there are levels above 0 left, as in ComfyUI.
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
    """SA-Solver that asks for D again after each correction. 2 NFE, but 1 in the first step."""
    table = sa_table(
        steps.sigmas, tau, interval, predictor_order, corrector_order, True, lower_order_final
    )
    return walk_table(steps, x, table, s_noise, True)
