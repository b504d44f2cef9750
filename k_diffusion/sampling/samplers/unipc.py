"""UniPC (Zhao et al.

2023, arXiv:2302.04867): each model call corrects the step that led to it and predicts the next.
"""

from __future__ import annotations

import functools
import math
from typing import Literal

from torch import Tensor

from ...core.registry import unknown
from ..loop import Steps
from ..registry import Run, sampler
from .exponential_multistep import (
    LAST,
    STAY,
    Past,
    Row,
    Table,
    corrected,
    exponential_row,
    folded,
    lowered,
    nodes_of,
    past_levels,
    walk_table,
)


@functools.lru_cache(64)
def unipc_table(
    sigmas: tuple[float, ...],
    order: int,
    variant: str = 'bh1',
    corrector: bool = True,
    lower_order_final: bool = True,
) -> Table:
    """Rows of UniP-p with UniC-p.

    The weights are the exact exponential ones but in two places, where the paper sets a single
    unknown to 1/2: the predictor of order 2, and the corrector that has no past. There B(h) shows:
    h (bh1) or 1 - e^-h (bh2).
    """
    if variant not in ('bh1', 'bh2'):
        raise ValueError(unknown('variant', variant, ('bh1', 'bh2')))
    pasts = past_levels(sigmas, order)
    pasts = lowered(pasts, sigmas) if lower_order_final else pasts
    table: list[Row] = []
    correct: tuple[float, ...] | None = None
    for past, sigma_next in zip(pasts, sigmas[1:]):
        if past[0] == sigma_next:
            table.append(STAY)
            continue
        row = _predictor(past, sigma_next, variant)
        table.append(folded(row, correct))
        correct = (
            _corrector(row, past, sigma_next, variant) if corrector and sigma_next > 0 else None
        )
    return table


def _b(h: float, variant: str) -> float:
    return h if variant == 'bh1' else -math.expm1(-h)


def _predictor(past: Past, sigma_next: float, variant: str) -> Row:
    if sigma_next == 0:
        return LAST
    if len(past) != 2:
        return exponential_row(past, sigma_next)
    h = math.log(past[0] / sigma_next)
    gain = _b(h, variant) / 2 / nodes_of(past, sigma_next)[1]  # of D_1 - D_0, over -r
    return Row(math.exp(-h), (-math.expm1(-h) - gain, gain))


def _corrector(row: Row, past: Past, sigma_next: float, variant: str) -> tuple[float, ...]:
    if len(past) > 1:
        return corrected(row, past, sigma_next)
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
) -> Run[Tensor]:
    """UniP of the given order with UniC, hence order + 1; without the corrector `order`. 1 NFE.

    variant: bh1 (for few steps and no guidance) or bh2. lower_order_final: in a schedule whose last
    step goes to 0 or is more than twice as long in log sigma as the one before, at most as many
    values as there are steps left.
    """
    table = unipc_table(tuple(steps.sigmas), order, variant, corrector, lower_order_final)
    return walk_table(steps, x, table)


@sampler(order=4, family='UniPC', reference='Zhao et al. 2023, arXiv:2302.04867')
def sample_uni_pc_bh2(
    steps: Steps,
    x: Tensor,
    *,
    order: int = 3,
    corrector: bool = True,
    lower_order_final: bool = True,
) -> Run[Tensor]:
    """UniPC of the variant bh2, as sample_uni_pc. 1 NFE."""
    table = unipc_table(tuple(steps.sigmas), order, 'bh2', corrector, lower_order_final)
    return walk_table(steps, x, table)
