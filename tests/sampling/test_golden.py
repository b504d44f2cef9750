"""The samplers, their callbacks, their signatures and the likelihood against the original's."""

import inspect
import json
from pathlib import Path

import pytest
import torch

import k_diffusion as K

INDEX = json.loads((Path(__file__).parents[1] / 'golden' / 'index.json').read_text())['samplers'][
    'cases'
]
SURFACE = json.loads((Path(__file__).parents[1] / 'golden' / 'surface.json').read_text())[
    'sampling'
]
CASES = [name for name in INDEX if not name.startswith('dpm_adaptive')]
DTYPES = {'f64': (torch.float64, 1e-12), 'f32': (torch.float32, 2e-6)}


def toy(x, sigma, gain=1.0):
    s = sigma.reshape(-1, *[1] * (x.ndim - 1))
    return gain * (x / (1 + s**2) + 0.3 * s / (1 + s) * torch.sin(3 * x / (1 + s)))


def distance(out, expected):
    assert out.dtype == expected.dtype
    return ((out - expected).abs().max() / expected.abs().max()).item()


def replay_noise(noise):
    draws = iter(noise)
    return lambda sigma, sigma_next: next(draws)


@pytest.mark.parametrize('suffix', DTYPES)
@pytest.mark.parametrize('name', CASES)
def test_sampler(golden, name, suffix):
    values, (dtype, tolerance) = golden('samplers'), DTYPES[suffix]
    options = dict(INDEX[name]['options'])
    if K.sampling.SAMPLERS[INDEX[name]['function'].removeprefix('sample_')].stochastic:
        options['noise_sampler'] = replay_noise(values['noise'].to(dtype))
    torch.manual_seed(77)
    out = getattr(K.sampling, INDEX[name]['function'])(
        toy,
        12 * values['x'].to(dtype),
        values[f'sigmas.{suffix}'],
        extra_args={'gain': 0.95},
        disable=True,
        **options,
    )
    assert distance(out, values[f'{name}.{suffix}']) < tolerance


@pytest.mark.parametrize('suffix', DTYPES)
@pytest.mark.parametrize(('n', 'eta'), [(4, 0.0), (5, 0.0), (6, 0.0), (9, 0.0), (9, 1.0)])
def test_dpm_fast(golden, n, eta, suffix):
    values, (dtype, _) = golden('samplers'), DTYPES[suffix]
    out = K.sampling.sample_dpm_fast(
        toy,
        12 * values['x'].to(dtype),
        0.02,
        12.0,
        n,
        extra_args={'gain': 0.95},
        disable=True,
        eta=eta,
        noise_sampler=replay_noise(values['noise'].to(dtype)),
    )
    assert distance(out, values[f'dpm_fast_{n}{"_eta1" if eta else ""}.{suffix}']) < 5e-6


@pytest.mark.parametrize('suffix', DTYPES)
@pytest.mark.parametrize('order', [2, 3])
def test_dpm_adaptive(golden, order, suffix):
    values, (dtype, _) = golden('samplers'), DTYPES[suffix]
    bounds = torch.tensor([0.02, 12.0])  # 0-d tensors, as programs pass slices of a schedule
    out, info = K.sampling.sample_dpm_adaptive(
        toy,
        12 * values['x'].to(dtype),
        bounds[0],
        bounds[1],
        extra_args={'gain': 0.95},
        disable=True,
        order=order,
        return_info=True,
    )
    assert distance(out, values[f'dpm_adaptive_{order}.{suffix}']) < 5e-6
    assert info == INDEX[f'dpm_adaptive_{order}']['info']


@pytest.mark.parametrize('name', ['euler', 'dpmpp_2m', 'heun'])
def test_callback(golden, name):
    values, infos = golden('samplers'), []
    expected = golden('callbacks')
    K.sampling.SAMPLERS[name].function(
        toy,
        12 * values['x'],
        values['sigmas.f64'],
        disable=True,
        callback=lambda info: infos.append({**info, 'x': info['x'].clone()}),
    )
    assert [info['i'] for info in infos] == list(range(9))
    for key in ('x', 'sigma', 'sigma_hat', 'denoised'):
        assert (
            distance(torch.stack([info[key] for info in infos]), expected[f'{name}.{key}']) < 1e-12
        )


def test_callback_of_dpm_fast_and_adaptive(golden):
    x, infos = golden('samplers')['x'] * 12, []
    K.sampling.sample_dpm_fast(toy, x, 0.02, 12.0, 7, disable=True, callback=infos.append)
    assert [info['i'] for info in infos] == [0, 1, 2]
    assert infos[0].keys() == {'x', 'i', 't', 't_up', 'denoised', 'sigma', 'sigma_hat'}
    assert infos[0]['sigma'].item() == pytest.approx(12.0) and infos[1][
        'sigma'
    ].item() == pytest.approx(12 ** (2 / 3) * 0.02 ** (1 / 3))
    torch.testing.assert_close(infos[0]['denoised'], toy(x, torch.full([3], 12.0)))
    infos.clear()
    K.sampling.sample_dpm_adaptive(toy, x, 0.02, 12.0, disable=True, callback=infos.append)
    assert infos[0].keys() == {
        'x',
        'i',
        't',
        't_up',
        'denoised',
        'error',
        'h',
        'steps',
        'nfe',
        'n_accept',
        'n_reject',
        'sigma',
        'sigma_hat',
    }
    assert [info['steps'] for info in infos] == list(range(1, len(infos) + 1))
    assert infos[-1]['sigma'].item() == pytest.approx(0.02, rel=1e-4)


def test_log_likelihood(golden):
    values = golden('utilities')
    torch.manual_seed(9)
    ll, info = K.sampling.log_likelihood(toy, values['ll_x'], 0.02, 12.0)
    torch.testing.assert_close(ll, values['ll'], rtol=0, atol=3e-3)
    assert info['fevals'] < 100


@pytest.mark.parametrize('name', SURFACE)
def test_surface(name):
    """Every public name of the original with its parameters in their order; new ones only behind
    them.
    """
    assert name in vars(K.sampling)
    parameters = list(inspect.signature(getattr(K.sampling, name)).parameters.values())
    texts = [str(p.replace(annotation=inspect.Parameter.empty)) for p in parameters]
    expected = [p for p in SURFACE[name] if not p.startswith('transform=')]
    assert [p for p in texts if not p.startswith('transform=')][: len(expected)] == expected
    assert all(p.default is not inspect.Parameter.empty for p in parameters[len(SURFACE[name]) :])


def test_names_that_programs_look_for():
    assert {'torch', 'trange', 'tqdm', 'math', 'nn'} <= vars(K.sampling).keys()
    assert {f'sample_{name}' for name in K.sampling.SAMPLERS} <= vars(K.sampling).keys()
    assert K.sampling.integrate.quad and K.sampling.utils.append_dims
    assert not hasattr(K.sampling, 'torchsde') or K.sampling.torchsde
    with pytest.raises(AttributeError, match='no attribute'):
        K.sampling.sample_nothing  # noqa: B018
