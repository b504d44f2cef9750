"""Schedules in the clock of a table of levels: against index formulas worked out again,
diffusers, and the laws of lists.
"""

from __future__ import annotations

import inspect
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats

from k_diffusion import external, sampling, schedules

NAMES = ['simple', 'ddim_uniform', 'normal', 'sgm_uniform', 'beta']
PICKING = ['simple', 'ddim_uniform', 'beta']
BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
ALPHAS = (1 - BETAS).cumprod(0)
TABLE = ((1 - ALPHAS) / ALPHAS).sqrt()  # Stable Diffusion's


def make(name, *args, **options):
    return schedules.DISCRETE_SCHEDULES[name](*args, **options)


def test_the_names():
    assert list(schedules.DISCRETE_SCHEDULES) == [*NAMES, 'beta57']
    for function in schedules.DISCRETE_SCHEDULES.values():
        assert (
            getattr(sampling, function.__name__)
            is function
            is getattr(schedules, function.__name__)
        )
        assert list(inspect.signature(function).parameters)[:2] == ['n', 'table']


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('n', [1, 2, 3, 7, 10, 30, 100])
def test_laws(name, n):
    sigmas = make(name, n, TABLE)
    assert sigmas.shape == (n + 1,) and sigmas.dtype == torch.float32
    assert sigmas[-1] == 0 and (sigmas.diff() < 0).all()
    if name != 'ddim_uniform':
        assert sigmas[0] == TABLE[-1].float()
    if name in PICKING:
        assert torch.isin(sigmas[:-1], TABLE.float()).all()


@pytest.mark.parametrize('n', [1, 3, 10, 30, 400])
def test_formulas(n):
    i, table = np.arange(n), TABLE.numpy()
    expected = {
        'simple': table[999 - i * 1000 // n],
        'ddim_uniform': table[1 + i[::-1] * (1000 // n)],
    }
    beta = np.rint(stats.beta.ppf(1 - i / n, 0.6, 0.6) * 999).astype(int)
    expected['beta'] = table[list(dict.fromkeys(beta))]
    logs, places = np.log(table), np.arange(1000)
    expected['normal'] = np.exp(np.interp(np.linspace(999, 0, n), places, logs))
    expected['sgm_uniform'] = np.exp(np.interp(999 * (1 - i / n), places, logs))
    for name in NAMES:
        torch.testing.assert_close(
            make(name, n, TABLE)[:-1].double(), torch.tensor(expected[name]), rtol=2e-7, atol=0
        )


def test_beta_of_other_parameters():
    index = np.rint(stats.beta.ppf(1 - np.arange(8) / 8, 0.5, 0.7) * 999).astype(int)
    assert torch.equal(
        schedules.get_sigmas_beta_table(8, TABLE, 0.5, 0.7)[:-1], TABLE.float()[index.tolist()]
    )


@pytest.mark.parametrize('name', PICKING)
def test_more_steps_than_levels_use_each_level_once(name):
    table = torch.tensor([0.1, 0.5, 2.0, 9.0])
    sigmas = make(name, 50, table)
    assert (
        torch.isin(sigmas[:-1], table).all()
        and len(sigmas) <= 5
        and (sigmas.diff() < 0).all()
        and sigmas[0] == 9
    )
    assert name == 'ddim_uniform' or len(sigmas) == 5


@pytest.mark.parametrize(
    'name, spacing, n',
    [
        ('ddim_uniform', 'leading', 7),
        ('ddim_uniform', 'leading', 30),
        ('simple', 'trailing', 10),
        ('simple', 'trailing', 25),
        ('normal', 'linspace', 4),
        ('normal', 'linspace', 10),
    ],
)
def test_they_are_diffusers_spacings(name, spacing, n):
    pytest.importorskip('diffusers')
    from diffusers import EulerDiscreteScheduler

    theirs = EulerDiscreteScheduler(
        trained_betas=BETAS.float().numpy(), timestep_spacing=spacing, steps_offset=1
    )
    theirs.set_timesteps(n)
    torch.testing.assert_close(make(name, n, TABLE), theirs.sigmas.float(), rtol=2e-5, atol=0)


@pytest.mark.parametrize('name', NAMES)
def test_a_model_serves_as_table(name):
    model = external.CompVisDenoiser(
        SimpleNamespace(alphas_cumprod=ALPHAS.float(), apply_model=None)
    )
    assert torch.equal(make(name, 12, model), make(name, 12, model.sigmas))
    assert torch.equal(make(name, 12, model.sigmas.tolist()), make(name, 12, model.sigmas))
    torch.testing.assert_close(make(name, 12, model), make(name, 12, TABLE), rtol=1e-4, atol=0)


def test_normal_is_what_a_model_gives():
    model = external.DiscreteSchedule(TABLE.float(), quantize=False)
    torch.testing.assert_close(
        schedules.get_sigmas_normal(17, model), model.get_sigmas(17), rtol=1e-5, atol=0
    )


@pytest.mark.parametrize('name', NAMES)
def test_flow_models_have_a_table_too(name):
    sigmas = make(name, 10, schedules.flow_table(3.0))
    assert sigmas.shape == (11,) and (sigmas.diff() < 0).all()
    if name == 'simple':
        torch.testing.assert_close(
            sigmas, schedules.get_sigmas_flow(10, shift=3.0), rtol=1e-6, atol=0
        )


@pytest.mark.parametrize('name', NAMES)
def test_device_is_the_tables_unless_given(name):
    assert (
        make(name, 3, TABLE).device == TABLE.device
        and make(name, 3, TABLE, device='meta').device.type == 'meta'
    )
    assert make(name, 3, [0.5]).tolist() == [0.5, 0.0]  # a table of one level


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize(
    'table', [[2.0, 1.0], [0.0, 1.0], [1.0, float('inf')], [[1.0, 2.0]], [], [float('nan'), 1.0]]
)
def test_what_is_no_table(name, table):
    with pytest.raises(ValueError, match='table must be ascending'):
        make(name, 3, table)


def test_other_refusals():
    for name in NAMES:
        with pytest.raises(ValueError, match='n must be a positive integer; got 0'):
            make(name, 0, TABLE)
    with pytest.raises(ValueError, match='alpha must be .*; got 0'):
        schedules.get_sigmas_beta_table(5, TABLE, alpha=0)
    with pytest.raises(ValueError, match="did you mean 'normal'"):
        make('normla', 5, TABLE)
