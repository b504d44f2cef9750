"""UniPC: each model call corrects the step that led to it and predicts the next one.

References:
    Zhao et al. (2023), arXiv:2302.04867.
"""

from __future__ import annotations

import functools
import math
from typing import Literal

from torch import Tensor

from ...core.arguments import check_number, show_value
from ...core.registry import unknown
from ..definition import sampler
from ..loop import Steps
from ..registry import Run
from .exponential_multistep import (
    LAST,
    STAY,
    Past,
    Row,
    Table,
    correction_weights,
    exponential_row,
    fold_correction,
    limit_order,
    past_levels,
    relative_nodes,
    walk_table,
)


@functools.lru_cache(64)
def unipc_table(
    sigmas: tuple[float, ...],
    order: int,
    variant: str = 'bh1',
    corrector: bool = True,
    lower_order_final: bool = True,
    end: float = 0.0,
) -> Table:
    """Return the rows of UniP-p with UniC-p.

    The weights are the exact exponential ones, with two exceptions, where the paper sets a single
    unknown to 1/2: the predictor of order 2, and the corrector without a past. Only these two
    depend on B(h), which is h (bh1) or 1 - e^-h (bh2).

    Args:
        sigmas: The noise levels, descending.
        order: The p.
        variant: 'bh1' or 'bh2'.
        corrector: Use UniC.
        lower_order_final: Limit the order at the end of the schedule (`limit_order`).
        end: Level at which a last step to 0 stops.

    Raises:
        ValueError: If variant is unknown, or end is not below the last level above 0.
    """
    if variant not in ('bh1', 'bh2'):
        raise ValueError(unknown('variant', variant, ('bh1', 'bh2')))
    pasts = past_levels(sigmas, order)
    pasts = limit_order(pasts, sigmas) if lower_order_final else pasts
    last = min((sigma for sigma in sigmas if sigma > 0), default=math.inf)
    if check_number('end', end, 0.0) >= last:
        raise ValueError(
            f'end must be below {last:g}, the last level above 0; got {show_value(end)}'
        )
    sigmas = (*sigmas[:-1], sigmas[-1] or end)
    table: list[Row] = []
    correct: tuple[float, ...] | None = None
    for past, sigma_next in zip(pasts, sigmas[1:]):
        if past[0] == sigma_next:
            table.append(STAY)
            continue
        row = _predictor(past, sigma_next, variant)
        table.append(fold_correction(row, correct))
        correct = (
            _corrector(row, past, sigma_next, variant) if corrector and sigma_next > 0 else None
        )
    return table


def _b(h: float, variant: str) -> float:
    """Return B(h)."""
    return h if variant == 'bh1' else -math.expm1(-h)


def _predictor(past: Past, sigma_next: float, variant: str) -> Row:
    """Return the row of UniP."""
    if sigma_next == 0:
        return LAST
    if len(past) != 2:
        return exponential_row(past, sigma_next)
    h = math.log(past[0] / sigma_next)
    gain = _b(h, variant) / 2 / relative_nodes(past, sigma_next)[1]  # of D_1 - D_0, over -r
    return Row(math.exp(-h), (-math.expm1(-h) - gain, gain))


def _corrector(row: Row, past: Past, sigma_next: float, variant: str) -> tuple[float, ...]:
    """Return the correction of UniC."""
    if len(past) > 1:
        return correction_weights(row, past, sigma_next)
    gain = _b(math.log(past[0] / sigma_next), variant) / 2
    return gain, -gain


@sampler(order=4, family='UniPC', reference='Zhao et al. 2023, arXiv:2302.04867')
def sample_uni_pc(
    steps: Steps,
    x: Tensor,
    *,
    order: int = 3,
    variant: Literal['bh1', 'bh2'] = 'bh1',
    corrector: bool = True,
    lower_order_final: bool = True,
    end: float = 0.0,
) -> Run[Tensor]:
    """Take UniP steps of the given order with the UniC corrector.

    The order of the method is order + 1 with the corrector, `order` without it. 1 NFE.

    Args:
        order: Number of values.
        variant: 'bh1', for few steps without guidance; or 'bh2'.
        corrector: Use UniC.
        lower_order_final: Use at most as many values as there are steps left, in a schedule whose
            last step goes to 0 or is more than twice as long in log sigma as the one before.
        end: Level at which a last step to 0 stops; 0.001 in ComfyUI.

    Raises:
        ValueError: If variant is unknown, or end is not below the last level above 0.

    References:
        Zhao et al. (2023), arXiv:2302.04867.
    """
    table = unipc_table(tuple(steps.sigmas), order, variant, corrector, lower_order_final, end)
    return walk_table(steps, x, table)


@sampler(order=4, family='UniPC', reference='Zhao et al. 2023, arXiv:2302.04867')
def sample_uni_pc_bh2(
    steps: Steps,
    x: Tensor,
    *,
    order: int = 3,
    corrector: bool = True,
    lower_order_final: bool = True,
    end: float = 0.0,
) -> Run[Tensor]:
    """Take UniPC steps of the variant bh2.

    1 NFE. The arguments are those of `sample_uni_pc`.

    Args:
        order: Number of values.
        corrector: Use UniC.
        lower_order_final: Use at most as many values as there are steps left at the end of the
            schedule.
        end: Level at which a last step to 0 stops; 0.001 in ComfyUI.

    Raises:
        ValueError: If end is not below the last level above 0.

    References:
        Zhao et al. (2023), arXiv:2302.04867.
    """
    table = unipc_table(tuple(steps.sigmas), order, 'bh2', corrector, lower_order_final, end)
    return walk_table(steps, x, table)
