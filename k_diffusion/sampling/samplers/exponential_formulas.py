"""The coefficients of exponential Runge-Kutta methods, as their papers print them.

A stage at the share c_i of a step h in lambda = -log sigma is x_i = e^{-c_i h} x + h sum_j a_ij
D_j. The end of the step is e^{-h} x + h sum_j b_j D_j. The coefficients are combinations of phi(k,
c) = phi_k(-c h), with phi(k) = phi(k, 1). The papers write phi_{k,i} for phi(k, c_i); exponentials
are phi(0, c).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol, TypeAlias

from ..coefficients import lagrange


class Phi(Protocol):
    """A function that returns phi_k(-share h)."""

    def __call__(self, k: int, share: float = 1.0, /) -> float: ...


#: The rows a_ij of the stages, the first one empty, then the weights b_j.
Rows: TypeAlias = Sequence[Sequence[float]]

KUTTA_SHARES = (0, 1 / 2, 1 / 2, 1)


def lawson2a(phi: Phi) -> Rows:
    """Return Lawson's integrating factor method on the midpoint rule (phi: the phi functions)."""
    return (), (phi(0, 1 / 2) / 2,), (0, phi(0, 1 / 2))


def lawson2b(phi: Phi) -> Rows:
    """Return Lawson's integrating factor method on the trapezoid rule (phi: the phi functions)."""
    return (), (phi(0),), (phi(0) / 2, 1 / 2)


def lawson4(phi: Phi) -> Rows:
    """Return Lawson's method on the classical Runge-Kutta method (phi: the phi functions)."""
    half = phi(0, 1 / 2)
    return (), (half / 2,), (0, 1 / 2), (0, 0, half), (phi(0) / 6, half / 3, half / 3, 1 / 6)


def lawson41(phi: Phi) -> Rows:
    """Return the generalised Lawson method, exact for constant D (phi: the phi functions)."""
    half = phi(0, 1 / 2)
    return (
        (),
        (phi(1, 1 / 2) / 2,),
        (phi(1, 1 / 2) / 2 - 1 / 2, 1 / 2),
        (phi(1) - half, 0, half),
        (phi(1) - 2 / 3 * half - 1 / 6, half / 3, half / 3, 1 / 6),
    )


def rkmk2e(phi: Phi) -> Rows:
    """Return the Lie group method of two stages (phi: the phi functions)."""
    return (), (phi(1),), (phi(1) / 2, phi(1) / 2)


def rkmk4t(phi: Phi) -> Rows:
    """Return the Lie group method of order 4 with a truncated inverse (phi: the phi functions).

    With z = -h: z phi(1) = phi(0) - 1 and z phi(1, 1/2) = 2 (phi(0, 1/2) - 1).
    """
    half, z, z_half = phi(1, 1 / 2), phi(0) - 1, 2 * (phi(0, 1 / 2) - 1)
    return (
        (),
        (half / 2,),
        (z_half / 8, half / 2 - z_half / 8),
        (0, 0, phi(1)),
        (phi(1) / 6 + z / 12, phi(1) / 3, phi(1) / 3, phi(1) / 6 - z / 12),
    )


def cfree4(phi: Phi) -> Rows:
    """Return the commutator-free Lie group method of order 4 (phi: the phi functions)."""
    half = phi(1, 1 / 2)
    return (
        *cox_matthews_stages(phi),
        (phi(1) / 2 - half / 3, phi(1) / 3, phi(1) / 3, -phi(1) / 6 + half / 3),
    )


def cox_matthews_stages(phi: Phi) -> Rows:
    """Return the stages of ETD4RK without the weights (phi: the phi functions)."""
    half = phi(1, 1 / 2)
    return (), (half / 2,), (0, half / 2), (half / 2 * (phi(0, 1 / 2) - 1), 0, half)


def add_first_column(phi: Phi, shares: Sequence[float], rest: Rows) -> Rows:
    """Return rows whose sums are c phi(1, c), so that a constant D is followed exactly.

    Args:
        phi: The phi functions.
        shares: The positions of the stages.
        rest: The rows from the second stage on, and the weights, without their first column.
    """
    ends = (*shares[1:], 1.0)
    return (), *((c * phi(1, c) - sum(row), *row) for c, row in zip(ends, rest))


THIRDS = (0, 1 / 3, 2 / 3)


def hochbruck_ostermann_3(phi: Phi, c2: float) -> Rows:
    """Return eq. 5.8 of Hochbruck and Ostermann: three stages, the last at 2/3.

    Args:
        phi: The phi functions.
        c2: The position of the second stage.
    """
    rest = (), (4 / (9 * c2) * phi(2, 2 / 3),), (0, 3 / 2 * phi(2))
    return add_first_column(phi, (0, c2, 2 / 3), rest)


def res_non_monotonic(phi: Phi) -> Rows:
    """Return the method of three stages by RES, at 0, 1 and 1/2 (phi: the phi functions)."""
    rest = (), ((phi(2) + phi(2, 1 / 2)) / 4,), (phi(2) / 3, 4 / 3 * phi(2))
    return add_first_column(phi, (0, 1, 1 / 2), rest)


def strehmel_weiner_3(phi: Phi) -> Rows:
    """Return the method of three stages of Strehmel and Weiner (phi: the phi functions)."""
    return add_first_column(phi, (0, 1 / 2, 1), ((), (2 * phi(2),), (0, phi(2))))


def etd2cf3(phi: Phi) -> Rows:
    """Return ETD2CF3 (phi: the phi functions)."""
    weights = 6 * phi(2) - 18 * phi(3), -3 / 2 * phi(2) + 9 * phi(3)
    return add_first_column(phi, THIRDS, ((), (4 / 3 * phi(2, 2 / 3),), weights))


def energy_decreasing(phi: Phi) -> Rows:
    """Return the first of two methods that let an energy only fall (phi: the phi functions)."""
    rest = (), (4 / 9 * phi(2, 2 / 3),), (phi(2) - phi(1) / 2, 3 / 4 * phi(1))
    return add_first_column(phi, (0, 1, 2 / 3), rest)


def etdrk3(phi: Phi) -> Rows:
    """Return the table of ETD3RK, three stages of order 3 (phi: the phi functions)."""
    return (
        (),
        (phi(1, 1 / 2) / 2,),
        (-phi(1), 2 * phi(1)),
        (phi(1) - 3 * phi(2) + 4 * phi(3), 4 * phi(2) - 8 * phi(3), -phi(2) + 4 * phi(3)),
    )


def kutta_weights(phi: Phi) -> Sequence[float]:
    """Return the weights of Cox & Matthews, eq. 29, and Krogstad (phi: the phi functions)."""
    middle = 2 * phi(2) - 4 * phi(3)
    return phi(1) - 3 * phi(2) + 4 * phi(3), middle, middle, -phi(2) + 4 * phi(3)


def etdrk4(phi: Phi) -> Rows:
    """Return ETD4RK (phi: the phi functions)."""
    return *cox_matthews_stages(phi), kutta_weights(phi)


def krogstad(phi: Phi) -> Rows:
    """Return ETDRK4-B of Krogstad (phi: the phi functions)."""
    return (
        (),
        (phi(1, 1 / 2) / 2,),
        (phi(1, 1 / 2) / 2 - phi(2, 1 / 2), phi(2, 1 / 2)),
        (phi(1) - 2 * phi(2), 0, 2 * phi(2)),
        kutta_weights(phi),
    )


def simpson_weights(phi: Phi) -> Sequence[float]:
    """Return weights with the third stage alone in the middle (phi: the phi functions).

    Strehmel and Weiner, and Friedli, use them.
    """
    return phi(1) - 3 * phi(2) + 4 * phi(3), 0, 4 * phi(2) - 8 * phi(3), -phi(2) + 4 * phi(3)


def strehmel_weiner(phi: Phi) -> Rows:
    """Return the method of Strehmel and Weiner (phi: the phi functions)."""
    return (
        (),
        (phi(1, 1 / 2) / 2,),
        (phi(1, 1 / 2) / 2 - phi(2, 1 / 2) / 2, phi(2, 1 / 2) / 2),
        (phi(1) - 2 * phi(2), -2 * phi(2), 4 * phi(2)),
        simpson_weights(phi),
    )


def friedli(phi: Phi) -> Rows:
    """Return the method of Friedli (phi: the phi functions)."""
    return (
        (),
        (phi(1, 1 / 2) / 2,),
        (phi(1, 1 / 2) / 2 - phi(2, 1 / 2) / 2, phi(2, 1 / 2) / 2),
        (
            phi(1) - 2 * phi(2),
            -26 / 25 * phi(1) + 2 / 25 * phi(2),
            26 / 25 * phi(1) + 48 / 25 * phi(2),
        ),
        simpson_weights(phi),
    )


def minchev(phi: Phi) -> Rows:
    """Return the method of Minchev (phi: the phi functions)."""
    a32 = 2 / 25 * phi(1, 1 / 2) + 6 / 25 * phi(2, 1 / 2)
    a42 = 21 / 5 * phi(2) - 108 / 5 * phi(3)
    a43 = 1 / 20 * phi(1) - 33 / 10 * phi(2) + 123 / 5 * phi(3)
    return (
        (),
        (phi(1, 1 / 2) / 2,),
        (phi(1, 1 / 2) / 2 - a32, a32),
        (phi(1) - a42 - a43, a42, a43),
        (
            31 / 30 * phi(1) - 17 / 5 * phi(2) + 6 * phi(3) - 4 * phi(4),
            -1 / 10 * phi(1) + 1 / 5 * phi(2) - 4 * phi(3) + 12 * phi(4),
            1 / 30 * phi(1) + 23 / 5 * phi(2) - 8 * phi(3) - 4 * phi(4),
            1 / 30 * phi(1) - 7 / 5 * phi(2) + 6 * phi(3) - 4 * phi(4),
        ),
    )


def hochbruck_ostermann(phi: Phi) -> Rows:
    """Return the method of five stages and stiff order 4 (phi: the phi functions)."""
    half_1, half_2, half_3 = (phi(k, 1 / 2) for k in (1, 2, 3))
    a52 = half_2 / 2 - phi(3) + phi(2) / 4 - half_3 / 2
    a54 = half_2 / 4 - a52
    return (
        (),
        (half_1 / 2,),
        (half_1 / 2 - half_2, half_2),
        (phi(1) - 2 * phi(2), phi(2), phi(2)),
        (half_1 / 2 - 2 * a52 - a54, a52, a52, a54),
        (phi(1) - 3 * phi(2) + 4 * phi(3), 0, 0, -phi(2) + 4 * phi(3), 4 * phi(2) - 8 * phi(3)),
    )


LUAN_4_SHARES, LUAN_4_GROUPS = (0, 1 / 2, 1 / 2, 1 / 3, 5 / 6, 1 / 3), ((0,), (1,), (2, 3), (4, 5))
LUAN_5_SHARES, LUAN_5_GROUPS = (
    (0, 1 / 2, 1 / 2, 1 / 3, 1 / 2, 1 / 3, 1 / 4, 3 / 10, 3 / 4, 1),
    ((0,), (1,), (2, 3), (4, 5, 6), (7, 8, 9)),
)
LUAN_6_SHARES, LUAN_6_GROUPS = (
    (
        0,
        1 / 2,
        1 / 2,
        1 / 3,
        1 / 2,
        1 / 5,
        1 / 4,
        1 / 2,
        1 / 5,
        1 / 4,
        1 / 3,
        1 / 2,
        1 / 5,
        1 / 4,
        1 / 3,
        1,
    ),
    ((0,), (1,), (2, 3), (4, 5, 6), (7, 8, 9, 10), (11, 12, 13, 14, 15)),
)
#: The weights integrate t^5 exactly as well, since 90/103 makes the integral of t (t - 90/103)
#: (t - 1/3) (t - 3/10) (t - 1/5) over [0, 1] zero; so one stage less is needed.
LUAN_6_WEAK_SHARES, LUAN_6_WEAK_GROUPS = (
    (
        0,
        1 / 2,
        1 / 2,
        1 / 3,
        1 / 2,
        1 / 5,
        1 / 4,
        18 / 25,
        1 / 3,
        3 / 10,
        1 / 6,
        90 / 103,
        1 / 3,
        3 / 10,
        1 / 5,
    ),
    ((0,), (1,), (2, 3), (4, 5, 6), (7, 8, 9, 10), (11, 12, 13, 14)),
)


def luan(phi: Phi, shares: Sequence[float], groups: Sequence[Sequence[int]]) -> Rows:
    """Return a method whose stages are evaluated in groups, each group in parallel.

    A stage integrates exactly the polynomial through the values of D at the start and in the group
    before: a_ij = c_i sum_k l_jk k! phi(k + 1, c_i), with l_j the Lagrange polynomials in t / c_i.

    Args:
        phi: The phi functions.
        shares: The positions of the stages.
        groups: The stages of each group, numbered from 0.
    """
    rows: list[Sequence[float]] = [()]
    for group, next_group in zip(groups, [*groups[1:], (len(shares),)]):
        nodes = group if group[0] == 0 else (0, *group)
        for i in next_group:
            share = shares[i] if i < len(shares) else 1.0
            polynomials = lagrange([shares[node] / share for node in nodes])
            row = [0.0] * (nodes[-1] + 1)
            for node, polynomial in zip(nodes, polynomials):
                row[node] = share * sum(
                    c * math.factorial(k) * phi(k + 1, share) for k, c in enumerate(polynomial)
                )
            rows.append(row)
    return rows


LUAN_OSTERMANN_SHARES = (0, 1 / 2, 1 / 2, 1 / 4, 1 / 2, 1 / 5, 2 / 3, 1)


def luan_ostermann(phi: Phi) -> Rows:
    """Return expRK5s8 (phi: the phi functions).

    p(k, c) = c^k phi(k, c).
    """

    def p(k: int, share: float) -> float:
        return share**k * phi(k, share)

    a64 = 8 * p(2, 1 / 5) - 32 * p(3, 1 / 5)
    a85_to_87 = (
        5 / 32 * a64
        - 25 / 28 * p(2, 1 / 5)
        + 81 / 175 * p(2, 2 / 3)
        - 162 / 25 * p(3, 2 / 3)
        + 150 / 7 * p(4, 1 / 5)
        + 972 / 35 * p(4, 2 / 3)
        + 6 * phi(4)
    )
    rest = (
        (),
        (2 * p(2, 1 / 2),),
        (0, 2 * p(2, 1 / 4)),
        (0, -2 * p(2, 1 / 2) + 16 * p(3, 1 / 2), 8 * p(2, 1 / 2) - 32 * p(3, 1 / 2)),
        (0, 0, a64, -2 * p(2, 1 / 5) + 16 * p(3, 1 / 5)),
        (
            0,
            0,
            -125 / 162 * a64,
            125 / 1944 * a64 - 4 / 3 * p(2, 2 / 3) + 40 / 3 * p(3, 2 / 3),
            3125 / 3888 * a64 + 25 / 3 * p(2, 2 / 3) - 100 / 3 * p(3, 2 / 3),
        ),
        (
            0,
            0,
            0,
            -16 / 3 * phi(2) + 208 / 3 * phi(3) - 40 * a85_to_87,
            250 / 21 * phi(2) - 250 / 3 * phi(3) + 250 / 7 * a85_to_87,
            27 / 14 * phi(2) - 27 * phi(3) + 135 / 7 * a85_to_87,
        ),
        (
            0,
            0,
            0,
            0,
            125 / 14 * phi(2) - 625 / 14 * phi(3) + 1125 / 14 * phi(4),
            -27 / 14 * phi(2) + 162 / 7 * phi(3) - 405 / 7 * phi(4),
            1 / 2 * phi(2) - 13 / 2 * phi(3) + 45 / 2 * phi(4),
        ),
    )
    return add_first_column(phi, LUAN_OSTERMANN_SHARES, rest)
