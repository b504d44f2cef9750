"""Common names for samplers with some options fixed."""

from __future__ import annotations

from ..definition import preset
from . import exponential_tables, runge_kutta_tables
from .dpmpp import sample_dpmpp_2s_ancestral
from .exponential_general_linear import OSTERMANN, sample_exp_lawson, sample_exp_pec
from .exponential_multistep import sample_res_multistep
from .multistep import sample_deis
from .table_driven import sample_exp_rk, sample_rk

TO_0 = '1 for the step to 0.'

for name, exponential in exponential_tables.TABLES.items():
    stages = len(exponential.shares)
    preset(
        name,
        sample_exp_rk,
        f'{exponential.title}. {stages} NFE, {TO_0}',
        {'table': name},
        order=exponential.order,
        nfe=stages,
        reference=exponential.reference,
    )
for name, table in runge_kutta_tables.TABLES.items():
    sweeps = f' (1, then {table.sweeps} sweeps)' if table.sweeps else ''
    preset(
        name,
        sample_rk,
        f'{table.title}. {table.nfe} NFE{sweeps}, {TO_0}',
        {'table': name},
        order=table.order,
        nfe=table.nfe,
        reference=table.reference,
    )

preset(
    'dpmpp_2s',
    sample_dpmpp_2s_ancestral,
    f'Take midpoint steps in log sigma without noise, DPM-Solver++(2S). 2 NFE, {TO_0}',
    {'eta': 0.0, 's_noise': 1.0},
    stochastic=False,
    noise=None,
)
preset(
    'res_3m',
    sample_res_multistep,
    'Take exponential Adams-Bashforth steps of order 3. 1 NFE.',
    {'order': 3},
    order=3,
)
preset(
    'abnorsett_4m',
    sample_res_multistep,
    'Take exponential Adams-Bashforth steps of order 4 (Norsett 1969). 1 NFE.',
    {'order': 4},
    order=4,
)
for order in 2, 3, 4:
    preset(
        f'deis_{order}m',
        sample_deis,
        f'Take DEIS tAB steps on the last {order} slopes. 1 NFE.',
        {'order': order},
        order=order,
    )
for values, name in enumerate(['4s', '1h4s', '2h4s', '3h4s', '4h4s'], 1):
    number = 'one value' if values == 1 else f'{values} values'
    preset(
        f'lawson4{values}_gen_mod_{name}',
        sample_exp_lawson,
        f'Take modified generalised Lawson steps with {number} of D. 4 NFE, {TO_0}',
        {'values': values, 'modified': True},
        order=max(4, values + 1),
        reference=OSTERMANN,
    )
for corrections, name in enumerate(['pec423_2h2s', 'pec433_2h3s'], 1):
    often = ('once', 'twice')[corrections - 1]
    preset(
        name,
        sample_exp_pec,
        'Predict by exponential Adams-Bashforth of order 3 and correct '
        f'{often}. {corrections + 1} NFE, {TO_0}',
        {'values': 3, 'corrections': corrections},
        nfe=corrections + 1,
    )
