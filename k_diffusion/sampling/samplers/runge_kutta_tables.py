"""Runge-Kutta tables by the name of their sampler: rows a_ij of the stages and weights b_j.

The positions c_i of the stages, as shares of the step, are the sums of their rows. A row with as
many entries as there are stages makes the method implicit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..likelihood.runge_kutta import ERROR, RUNGE_KUTTA, STAGES

R5, R15 = math.sqrt(5), math.sqrt(15)


@dataclass(frozen=True)
class Table:
    """A Runge-Kutta method.

    Attributes:
        order: Order of the error in the step size.
        rows: a_i1, a_i2, ... of each stage; the first row of an explicit method is empty.
        weights: b_1, b_2, ...
        title: Description in words.
        reference: The publication.
        sweeps: Number of fixed-point iterations of an implicit method that reach its order; 0 for
            an explicit one.
    """

    order: int
    rows: Sequence[Sequence[float]]
    weights: Sequence[float]
    title: str
    reference: str
    sweeps: int = 0

    @property
    def nfe(self) -> int:
        """Return the number of model calls of a step."""
        return 1 + self.sweeps * len(self.weights) if self.sweeps else len(self.weights)


CLASSICAL = 'Hairer, Norsett & Wanner 1993, doi:10.1007/978-3-540-78862-1, II.1'
RALSTON = 'Ralston 1962, doi:10.1090/S0025-5718-1962-0150954-0'
RUNGE = 'Runge 1895, doi:10.1007/BF01446807'
BUTCHER = 'Butcher 1964, doi:10.1017/S1446788700023387'
BUTCHER_IMPLICIT = 'Butcher 1964, doi:10.1090/S0025-5718-1964-0159424-9'

#: The table of each sampler.
TABLES: dict[str, Table] = {
    'midpoint_2s': Table(2, ((), (1 / 2,)), (0, 1), "Runge's midpoint rule", RUNGE),
    'heun_2s': Table(
        2, ((), (1,)), (1 / 2, 1 / 2), 'The trapezoid rule, heun of every step', RUNGE
    ),
    'ralston_2s': Table(
        2,
        ((), (2 / 3,)),
        (1 / 4, 3 / 4),
        "Ralston's method of two stages, of least error bound",
        RALSTON,
    ),
    'heun_3s': Table(
        3, ((), (1 / 3,), (0, 2 / 3)), (1 / 4, 0, 3 / 4), "Heun's method of three stages", CLASSICAL
    ),
    'kutta_3s': Table(
        3,
        ((), (1 / 2,), (-1, 2)),
        (1 / 6, 2 / 3, 1 / 6),
        "Kutta's method of three stages",
        CLASSICAL,
    ),
    'houwen_wray_3s': Table(
        3,
        ((), (8 / 15,), (1 / 4, 5 / 12)),
        (1 / 4, 0, 3 / 4),
        "Van der Houwen's and Wray's three stages",
        'Kennedy, Carpenter & Lewis 2000, doi:10.1016/S0168-9274(99)00141-5',
    ),
    'ssprk3_3s': Table(
        3,
        ((), (1,), (1 / 4, 1 / 4)),
        (1 / 6, 1 / 6, 2 / 3),
        'SSPRK(3,3), strong stability preserving',
        'Shu & Osher 1988, doi:10.1016/0021-9991(88)90177-5',
    ),
    'bogacki_shampine_3s': Table(
        3,
        ((), (1 / 2,), (0, 3 / 4)),
        (2 / 9, 1 / 3, 4 / 9),
        "Bogacki and Shampine's 3(2) without its error estimate, also Ralston's three stages",
        'Bogacki & Shampine 1989, doi:10.1016/0893-9659(89)90079-7',
    ),
    'ssprk4_4s': Table(
        3,
        ((), (1 / 2,), (1 / 2, 1 / 2), (1 / 6, 1 / 6, 1 / 6)),
        (1 / 6, 1 / 6, 1 / 6, 1 / 2),
        'SSPRK(4,3), strong stability preserving in four stages',
        'Spiteri & Ruuth 2002, doi:10.1137/S0036142901389025',
    ),
    'rk4_4s': Table(
        4,
        ((), (1 / 2,), (0, 1 / 2), (0, 0, 1)),
        RUNGE_KUTTA,
        'The classical Runge-Kutta method',
        CLASSICAL,
    ),
    'rk38_4s': Table(
        4,
        ((), (1 / 3,), (-1 / 3, 1), (1, -1, 1)),
        (1 / 8, 3 / 8, 3 / 8, 1 / 8),
        "Kutta's 3/8 rule",
        CLASSICAL,
    ),
    'ralston_4s': Table(
        4,
        (
            (),
            (2 / 5,),
            ((-2889 + 1428 * R5) / 1024, (3785 - 1620 * R5) / 1024),
            (
                (-3365 + 2094 * R5) / 6040,
                (-975 - 3046 * R5) / 2552,
                (467040 + 203968 * R5) / 240845,
            ),
        ),
        (
            (263 + 24 * R5) / 1812,
            (125 - 1000 * R5) / 3828,
            (3426304 + 1661952 * R5) / 5924787,
            (30 - 4 * R5) / 123,
        ),
        "Ralston's method of four stages, of least error bound",
        RALSTON,
    ),
    'rk5_6s': Table(
        5,
        (
            (),
            (1 / 4,),
            (1 / 8, 1 / 8),
            (0, 0, 1 / 2),
            (3 / 16, -3 / 8, 3 / 8, 9 / 16),
            (-3 / 7, 8 / 7, 6 / 7, -12 / 7, 8 / 7),
        ),
        (7 / 90, 0, 16 / 45, 2 / 15, 16 / 45, 7 / 90),
        "Butcher's method of six stages",
        BUTCHER,
    ),
    'dormand_prince_6s': Table(
        5,
        ((), *STAGES[:5]),
        STAGES[5],
        "Dormand and Prince's 5(4) without its error estimate",
        'Dormand & Prince 1980, doi:10.1016/0771-050X(80)90013-3',
    ),
    'dormand_prince_7s': Table(
        4,
        ((), *STAGES),
        [b - error for b, error in zip((*STAGES[5], 0.0), ERROR)],
        "Dormand and Prince's 5(4) with the weights of order 4",
        'Dormand & Prince 1980, doi:10.1016/0771-050X(80)90013-3',
    ),
    'tsitouras_6s': Table(
        5,
        (
            (),
            (0.161,),
            (-0.008480655492356989, 0.335480655492357),
            (2.8971530571054935, -6.359448489975075, 4.3622954328695815),
            (5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525),
            (
                5.86145544294642,
                -12.92096931784711,
                8.159367898576159,
                -0.071584973281401,
                -0.028269050394068383,
            ),
        ),
        (
            0.09646076681806523,
            0.01,
            0.4798896504144996,
            1.379008574103742,
            -3.290069515436081,
            2.324710524099774,
        ),
        "Tsitouras' 5(4) without its error estimate",
        'Tsitouras 2011, doi:10.1016/j.camwa.2011.06.002',
    ),
    'bogacki_shampine_7s': Table(
        5,
        (
            (),
            (1 / 6,),
            (2 / 27, 4 / 27),
            (183 / 1372, -162 / 343, 1053 / 1372),
            (68 / 297, -4 / 11, 42 / 143, 1960 / 3861),
            (597 / 22528, 81 / 352, 63099 / 585728, 58653 / 366080, 4617 / 20480),
            (
                174197 / 959244,
                -30942 / 79937,
                8152137 / 19744439,
                666106 / 1039181,
                -29421 / 29068,
                482048 / 414219,
            ),
        ),
        (587 / 8064, 0, 4440339 / 15491840, 24353 / 124800, 387 / 44800, 2152 / 5985, 7267 / 94080),
        "Bogacki and Shampine's 5(4) without its error estimate",
        'Bogacki & Shampine 1996, doi:10.1016/0898-1221(96)00141-1',
    ),
    'rk6_7s': Table(
        6,
        (
            (),
            (1 / 3,),
            (0, 2 / 3),
            (1 / 12, 1 / 3, -1 / 12),
            (25 / 48, -55 / 24, 35 / 48, 15 / 8),
            (3 / 20, -11 / 24, -1 / 8, 1 / 2, 1 / 10),
            (-261 / 260, 33 / 13, 43 / 156, -118 / 39, 32 / 195, 80 / 39),
        ),
        (13 / 200, 0, 11 / 40, 11 / 40, 4 / 25, 4 / 25, 13 / 200),
        "Butcher's method of seven stages",
        BUTCHER,
    ),
    'dormand_prince_13s': Table(
        8,
        (
            (),
            (1 / 18,),
            (1 / 48, 1 / 16),
            (1 / 32, 0, 3 / 32),
            (5 / 16, 0, -75 / 64, 75 / 64),
            (3 / 80, 0, 0, 3 / 16, 3 / 20),
            (
                29443841 / 614563906,
                0,
                0,
                77736538 / 692538347,
                -28693883 / 1125000000,
                23124283 / 1800000000,
            ),
            (
                16016141 / 946692911,
                0,
                0,
                61564180 / 158732637,
                22789713 / 633445777,
                545815736 / 2771057229,
                -180193667 / 1043307555,
            ),
            (
                39632708 / 573591083,
                0,
                0,
                -433636366 / 683701615,
                -421739975 / 2616292301,
                100302831 / 723423059,
                790204164 / 839813087,
                800635310 / 3783071287,
            ),
            (
                246121993 / 1340847787,
                0,
                0,
                -37695042795 / 15268766246,
                -309121744 / 1061227803,
                -12992083 / 490766935,
                6005943493 / 2108947869,
                393006217 / 1396673457,
                123872331 / 1001029789,
            ),
            (
                -1028468189 / 846180014,
                0,
                0,
                8478235783 / 508512852,
                1311729495 / 1432422823,
                -10304129995 / 1701304382,
                -48777925059 / 3047939560,
                15336726248 / 1032824649,
                -45442868181 / 3398467696,
                3065993473 / 597172653,
            ),
            (
                185892177 / 718116043,
                0,
                0,
                -3185094517 / 667107341,
                -477755414 / 1098053517,
                -703635378 / 230739211,
                5731566787 / 1027545527,
                5232866602 / 850066563,
                -4093664535 / 808688257,
                3962137247 / 1805957418,
                65686358 / 487910083,
            ),
            (
                403863854 / 491063109,
                0,
                0,
                -5068492393 / 434740067,
                -411421997 / 543043805,
                652783627 / 914296604,
                11173962825 / 925320556,
                -13158990841 / 6184727034,
                3936647629 / 1978049680,
                -160528059 / 685178525,
                248638103 / 1413531060,
                0,
            ),
        ),
        (
            14005451 / 335480064,
            0,
            0,
            0,
            0,
            -59238493 / 1068277825,
            181606767 / 758867731,
            561292985 / 797845732,
            -1041891430 / 1371343529,
            760417239 / 1151165299,
            118820643 / 751138087,
            -528747749 / 2220607170,
            1 / 4,
        ),
        "Prince and Dormand's 8(7) without its error estimate",
        'Prince & Dormand 1981, doi:10.1016/0771-050X(81)90010-3',
    ),
    'gauss_legendre_2s': Table(
        4,
        (
            (1 / 4, 1 / 4 - math.sqrt(3) / 6),
            (1 / 4 + math.sqrt(3) / 6, 1 / 4),
        ),
        (1 / 2, 1 / 2),
        'Gauss-Legendre of two stages, implicit',
        BUTCHER_IMPLICIT,
        sweeps=3,
    ),
    'gauss_legendre_3s': Table(
        6,
        (
            (5 / 36, 2 / 9 - R15 / 15, 5 / 36 - R15 / 30),
            (5 / 36 + R15 / 24, 2 / 9, 5 / 36 - R15 / 24),
            (5 / 36 + R15 / 30, 2 / 9 + R15 / 15, 5 / 36),
        ),
        (5 / 18, 4 / 9, 5 / 18),
        'Gauss-Legendre of three stages, implicit',
        BUTCHER_IMPLICIT,
        sweeps=5,
    ),
}
