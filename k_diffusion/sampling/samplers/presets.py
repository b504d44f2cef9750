"""Common names for samplers with some options fixed."""

from __future__ import annotations

from ..definition import preset
from . import exponential_tables, runge_kutta_tables
from .dpmpp import sample_dpmpp_2s_ancestral
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
