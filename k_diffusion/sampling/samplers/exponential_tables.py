"""Exponential Runge-Kutta tables by the name of their sampler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .exponential_formulas import (
    KUTTA_SHARES,
    LUAN_4_GROUPS,
    LUAN_4_SHARES,
    LUAN_5_GROUPS,
    LUAN_5_SHARES,
    LUAN_6_GROUPS,
    LUAN_6_SHARES,
    LUAN_6_WEAK_GROUPS,
    LUAN_6_WEAK_SHARES,
    LUAN_OSTERMANN_SHARES,
    THIRDS,
    Phi,
    Rows,
    cfree4,
    energy_decreasing,
    etd2cf3,
    etdrk3,
    etdrk4,
    friedli,
    hochbruck_ostermann,
    hochbruck_ostermann_3,
    krogstad,
    lawson2a,
    lawson2b,
    lawson4,
    lawson41,
    luan,
    luan_ostermann,
    minchev,
    res_non_monotonic,
    rkmk2e,
    rkmk4t,
    strehmel_weiner,
    strehmel_weiner_3,
)


@dataclass(frozen=True)
class ExponentialTable:
    """An exponential Runge-Kutta method.

    Attributes:
        order: Order of the error in the step size.
        shares: c_1 = 0, c_2, ...: the positions of the stages.
        rows: Makes the rows and the weights from the phi functions of a step.
        title: Description in words.
        reference: The publication.
    """

    order: int
    shares: Sequence[float]
    rows: Callable[[Phi], Rows]
    title: str
    reference: str


LAWSON = 'Lawson 1967, doi:10.1137/0704033'
COX_MATTHEWS = 'Cox & Matthews 2002, doi:10.1006/jcph.2002.6995'
HOCHBRUCK_OSTERMANN = 'Hochbruck & Ostermann 2005, doi:10.1137/040611434'
KROGSTAD = 'Krogstad 2005, doi:10.1016/j.jcp.2004.08.006'
LUAN = 'Luan 2021, doi:10.1007/s10543-020-00834-z'
CELLEDONI = 'Celledoni, Marthinsen & Owren 2003, doi:10.1016/S0167-739X(02)00161-9'
LUAN_ALHSMY = 'Luan & Alhsmy 2023, arXiv:2311.08600'
FU = 'Fu, Shen & Yang 2024, arXiv:2402.15142'
EXPINT = 'Berland, Skaflestad & Wright 2007, doi:10.1145/1206040.1206044'


#: Sampler -> its table.
TABLES: dict[str, ExponentialTable] = {
    'lawson2a_2s': ExponentialTable(
        2, (0, 1 / 2), lawson2a, "Lawson's integrating factor with the midpoint rule", LAWSON
    ),
    'lawson2b_2s': ExponentialTable(
        2, (0, 1), lawson2b, "Lawson's integrating factor with the trapezoid rule", LAWSON
    ),
    'lawson4_4s': ExponentialTable(
        4, KUTTA_SHARES, lawson4, "Lawson's integrating factor with the classical method", LAWSON
    ),
    'lawson41_4s': ExponentialTable(
        4, KUTTA_SHARES, lawson41, 'Generalised Lawson, exact where D is constant', KROGSTAD
    ),
    'res_2s_rkmk2e': ExponentialTable(
        2, (0, 1), rkmk2e, "Munthe-Kaas' Lie group method of two stages", EXPINT
    ),
    'etdrk3_3s': ExponentialTable(3, (0, 1 / 2, 1), etdrk3, 'ETD3RK, eq. 23 to 25', COX_MATTHEWS),
    'res_3s_alt': ExponentialTable(
        3,
        THIRDS,
        lambda phi: hochbruck_ostermann_3(phi, 1 / 3),
        'Hochbruck and Ostermann, eq. 5.8, the second stage at 1/3',
        HOCHBRUCK_OSTERMANN,
    ),
    'res_3s_sunstar': ExponentialTable(
        3,
        (0, 1 / 2, 2 / 3),
        lambda phi: hochbruck_ostermann_3(phi, 1 / 2),
        'Hochbruck and Ostermann, eq. 5.8, the second stage at 1/2',
        HOCHBRUCK_OSTERMANN,
    ),
    'etdrk3_b_3s': ExponentialTable(
        3,
        (0, 4 / 9, 2 / 3),
        lambda phi: hochbruck_ostermann_3(phi, 4 / 9),
        'Fu, Shen and Yang, of decreasing energy, the second stage at 4/9',
        FU,
    ),
    'etdrk3_a_3s': ExponentialTable(
        3,
        (0, 1, 2 / 3),
        energy_decreasing,
        'Fu, Shen and Yang, of decreasing energy, the second stage at the end',
        FU,
    ),
    'res_3s_non_monotonic': ExponentialTable(
        3,
        (0, 1, 1 / 2),
        res_non_monotonic,
        'RES with three stages, the second at the end and the third halfway',
        'Zhang et al. 2023, arXiv:2308.02157',
    ),
    'res_3s_strehmel_weiner': ExponentialTable(
        2,
        (0, 1 / 2, 1),
        strehmel_weiner_3,
        'Strehmel and Weiner (1987), three stages',
        HOCHBRUCK_OSTERMANN,
    ),
    'res_3s_lie': ExponentialTable(
        3, THIRDS, etd2cf3, 'ETD2CF3, from a commutator-free Lie group method', CELLEDONI
    ),
    'etdrk4_4s': ExponentialTable(4, KUTTA_SHARES, etdrk4, 'ETD4RK, eq. 26 to 29', COX_MATTHEWS),
    'res_4s_krogstad': ExponentialTable(4, KUTTA_SHARES, krogstad, "Krogstad's ETDRK4-B", KROGSTAD),
    'res_4s_strehmel_weiner': ExponentialTable(
        4,
        KUTTA_SHARES,
        strehmel_weiner,
        'Strehmel and Weiner (1987), example 4.5.5',
        HOCHBRUCK_OSTERMANN,
    ),
    'res_4s_friedli': ExponentialTable(4, KUTTA_SHARES, friedli, 'Friedli (1978)', EXPINT),
    'res_4s_minchev': ExponentialTable(4, KUTTA_SHARES, minchev, 'Minchev (2004)', EXPINT),
    'res_4s_munthe_kaas': ExponentialTable(
        4, KUTTA_SHARES, rkmk4t, "Munthe-Kaas' Lie group method with a truncated inverse", EXPINT
    ),
    'res_4s_cfree4': ExponentialTable(
        4,
        KUTTA_SHARES,
        cfree4,
        'The commutator-free Lie group method of order 4',
        CELLEDONI,
    ),
    'res_5s_hochbruck_ostermann': ExponentialTable(
        4,
        (0, 1 / 2, 1 / 2, 1, 1 / 2),
        hochbruck_ostermann,
        'Hochbruck and Ostermann, of stiff order 4',
        HOCHBRUCK_OSTERMANN,
    ),
    'res_6s_luan': ExponentialTable(
        4,
        LUAN_4_SHARES,
        lambda phi: luan(phi, LUAN_4_SHARES, LUAN_4_GROUPS),
        'Luan, expRK4s6, of stiff order 4',
        LUAN,
    ),
    'res_10s_luan': ExponentialTable(
        5,
        LUAN_5_SHARES,
        lambda phi: luan(phi, LUAN_5_SHARES, LUAN_5_GROUPS),
        'Luan, expRK5s10, of stiff order 5',
        LUAN,
    ),
    'res_8s_luan_ostermann': ExponentialTable(
        5,
        LUAN_OSTERMANN_SHARES,
        luan_ostermann,
        'Luan and Ostermann, expRK5s8, of stiff order 5',
        'Luan & Ostermann 2014, doi:10.1016/j.cam.2013.07.027',
    ),
    'res_15s_luan_alhsmy': ExponentialTable(
        6,
        LUAN_6_WEAK_SHARES,
        lambda phi: luan(phi, LUAN_6_WEAK_SHARES, LUAN_6_WEAK_GROUPS),
        'Luan and Alhsmy, expRK6s15, of stiff order 6 but for one weakened condition',
        LUAN_ALHSMY,
    ),
    'res_16s_luan_alhsmy': ExponentialTable(
        6,
        LUAN_6_SHARES,
        lambda phi: luan(phi, LUAN_6_SHARES, LUAN_6_GROUPS),
        'Luan and Alhsmy, expRK6s16, of stiff order 6',
        LUAN_ALHSMY,
    ),
}
