"""Entries of samplers and schedules, and their names in other programs."""

import inspect
import json

import pytest
import torch
from sampler_cases import COMFYUI

import k_diffusion as K
from k_diffusion.cli.entry import main

#: Titles and names as image programs write them -> the sampler, and the schedule in the title.
TITLES = {
    'Euler': ('euler', None),
    'Euler a': ('euler_ancestral', None),
    'euler_a': ('euler_ancestral', None),
    'k_euler_a': ('euler_ancestral', None),
    'sample_euler_ancestral': ('euler_ancestral', None),
    'LMS': ('lms', None),
    'LMS Karras': ('lms', 'karras'),
    'Heun': ('heun', None),
    'DPM2': ('dpm_2', None),
    'DPM2 a': ('dpm_2_ancestral', None),
    'DPM2 a Karras': ('dpm_2_ancestral', 'karras'),
    'DPM++ 2S a': ('dpmpp_2s_ancestral', None),
    'DPM++ 2S a Karras': ('dpmpp_2s_ancestral', 'karras'),
    'DPM++ 2M': ('dpmpp_2m', None),
    'DPM++ 2M Karras': ('dpmpp_2m', 'karras'),
    'DPM++ SDE Karras': ('dpmpp_sde', 'karras'),
    'DPM++ 2M SDE': ('dpmpp_2m_sde', None),
    'DPM++ 2M SDE Exponential': ('dpmpp_2m_sde', 'exponential'),
    'DPM++ 3M SDE Karras': ('dpmpp_3m_sde', 'karras'),
    'DPM fast': ('dpm_fast', None),
    'DPM adaptive': ('dpm_adaptive', None),
    'UniPC': ('uni_pc', None),
    'unipc': ('uni_pc', None),
    'uni_pc_bh2': ('uni_pc_bh2', None),
    'DDIM': ('ddim', None),
    'LCM': ('lcm', None),
    'Restart': ('restart', None),
    'dpmpp_2m_sde_gpu': ('dpmpp_2m_sde', None),
    'euler sgm_uniform': ('euler', 'sgm_uniform'),
    'dpmpp_2m_sde_heun_gpu': ('dpmpp_2m_sde_heun', None),
    'DPM++ 2M SDE Heun': ('dpmpp_2m_sde_heun', None),
    'DPM++ 2M SDE Heun Karras': ('dpmpp_2m_sde_heun', 'karras'),
    'DPM++ 2M SDE Heun Exponential': ('dpmpp_2m_sde_heun', 'exponential'),
    'exp_heun_2_x0_sde': ('exp_heun_2_x0_sde', None),
    'Euler CFG++': ('euler_cfg_pp', None),
    'Euler a CFG++': ('euler_ancestral_cfg_pp', None),
    'DDIM CFG++': ('euler_cfg_pp', None),
    'DPM++ 2S a CFG++': ('dpmpp_2s_ancestral_cfg_pp', None),
    'CFG++ UD10 AB': ('cfgpp_ud10_ab', None),
    'EulerAncestralDiscreteScheduler': ('euler_ancestral', None),
    'DPMSolverMultistepScheduler': ('dpmpp_2m', None),
}


def D(x, sigma):
    return x / (1 + sigma.view(-1, 1, 1, 1) ** 2)


@pytest.mark.parametrize('title', TITLES)
def test_a_title_of_another_program_is_understood(title):
    name, schedule = K.generation.split_title(title)
    assert (K.sampling.find_sampler(name).name, schedule) == TITLES[title]


def test_every_sampler_of_comfyui_is_found():
    for name in COMFYUI:
        assert K.sampling.find_sampler(name).name == name.removesuffix('_gpu')


def test_a_sampler_by_title_draws_what_its_name_and_schedule_draw():
    x = torch.randn(2, 3, 4, 4) * 10
    expected = K.sampling.sample_dpmpp_2m(
        D, x, K.sampling.get_sigmas_karras(5, 0.1, 10.0), disable=True
    )
    assert torch.equal(
        K.sample(D, x, 5, 'DPM++ 2M Karras', sigma_min=0.1, sigma_max=10.0), expected
    )
    expected = K.sampling.sample_dpmpp_2m(
        D, x, K.sampling.get_sigmas_exponential(5, 0.1, 10.0), disable=True
    )
    assert torch.equal(
        K.sample(D, x, 5, 'DPM++ 2M Karras', 'exponential', sigma_min=0.1, sigma_max=10.0), expected
    )


@pytest.mark.parametrize('name', ['DPM++ 4M', 'plms', 'dpmpp_2m_turbo', 'uni_p', '', 'Karras'])
def test_an_unknown_name_is_refused(name):
    with pytest.raises(ValueError, match='unknown sampler'):
        K.sample(D, [1, 3, 4, 4], 3, name)


def test_every_entry_says_where_it_comes_from():
    entries = K.sampling.catalogue()
    assert {entry.name for entry in entries} == {
        name.removeprefix('sample_') for name in dir(K.sampling) if name.startswith('sample_')
    }
    assert {entry.name for entry in entries if not entry.published} == {'heunpp2', 'rab', 'sei'}
    for entry in entries:
        assert (
            entry.family and 15 < len(entry.summary) < 150 and entry.order >= 0 and entry.nfe >= 1
        ), entry.name
        assert not entry.published or 'arXiv:' in entry.reference or 'doi:' in entry.reference, (
            entry.name
        )


class Watched:
    """A guided denoiser, and noise of zero, that count what they are asked."""

    def __init__(self):
        self.plain = self.pairs = self.draws = 0

    def __call__(self, x, sigma):
        self.plain += 1
        return D(x, sigma)

    def pair(self, x, sigma):
        self.pairs += 1
        return D(x, sigma), D(x, sigma)

    def noise(self, sigma, sigma_next):
        self.draws += 1
        return torch.zeros(2, 3, 4, 4)


@pytest.mark.parametrize('entry', K.sampling.catalogue(), ids=lambda entry: entry.name)
def test_what_an_entry_says_is_what_happens(entry):
    model = Watched()
    arguments = {
        'sigmas': K.sampling.get_sigmas_karras(6, 0.1, 10.0),
        'sigma_min': 0.1,
        'sigma_max': 10.0,
        'n': 6,
    }
    options = {'noise_sampler': model.noise} if 'noise_sampler' in entry.options else {}
    entry.function(
        model,
        torch.randn(2, 3, 4, 4) * 10,
        disable=True,
        **{key: arguments[key] for key in entry.takes},
        **options,
    )
    assert (model.pairs > 0) == entry.needs_pair and (model.draws > 0) == entry.stochastic
    if 'sigmas' in entry.takes and entry.name != 'restart':
        assert 5 * entry.nfe - 3 <= max(model.pairs, model.plain) <= 6 * entry.nfe


def test_options_have_types_and_defaults():
    options = K.sampling.find_sampler('dpmpp_2m_sde').options
    assert {name: p.default for name, p in options.items()} == {
        'eta': 1.0,
        's_noise': 1.0,
        'noise_sampler': None,
        'solver_type': 'midpoint',
    }
    assert options['eta'].annotation == 'float'
    assert options['solver_type'].annotation == "Literal['midpoint', 'heun']"
    assert K.sampling.find_sampler('dpmpp_2m').options == {}
    assert list(inspect.signature(K.sampling.sample_dpmpp_2m).parameters) == [
        'model',
        'x',
        'sigmas',
        'extra_args',
        'callback',
        'disable',
        'seed',
        'generator',
        'afs',
    ]


def test_schedules_say_what_they_take():
    entries = {(entry.name, entry.takes): entry for entry in K.schedules.catalogue()}
    assert {
        ('karras', 'range'),
        ('vp', 'nothing'),
        ('beta', 'range'),
        ('beta', 'table'),
        ('simple', 'table'),
    } <= entries.keys()
    table = torch.linspace(0.1, 10.0, 50)
    for (_, takes), entry in entries.items():
        positional = {'range': (0.1, 10.0), 'table': (table,), 'nothing': ()}[takes]
        sigmas = entry.function(5, *positional)
        assert sigmas[-1] == 0 and (sigmas.diff() < 0).all(), entry.name
        assert all(p.default is not p.empty for p in entry.options.values()), entry.name


def test_the_command_lists_both(capsys):
    assert main(['samplers', '--json']) == 0
    rows = {row['name']: row for row in json.loads(capsys.readouterr().out)}
    assert rows['uni_pc']['aliases'][:1] == ['unipc'] and rows['heun']['options'][
        's_tmax'
    ] == float('inf')
    assert main(['samplers', '--schedules']) == 0
    assert 'kl_optimal' in capsys.readouterr().out


def test_a_preset_is_the_other_sampler_with_its_options(monkeypatch):
    monkeypatch.setattr(K.sampling.SAMPLERS, '_entries', dict(K.sampling.SAMPLERS))
    function = K.sampling.preset(
        'my_2m_sde',
        K.sampling.sample_dpmpp_2m_sde,
        '2M for the SDE with the weights of Taylor.',
        {'solver_type': 'heun'},
        stochastic=False,
    )
    entry, other = K.sampling.find_sampler('my_2m_sde'), K.sampling.find_sampler('dpmpp_2m_sde')
    assert (
        entry is function.entry
        and function.__name__ == 'sample_my_2m_sde'
        and entry.summary.endswith('Taylor.')
    )
    assert list(entry.options) == ['eta', 's_noise', 'noise_sampler'] and entry.fixed == {
        'solver_type': 'heun'
    }
    assert (entry.of, entry.order, entry.family, entry.stochastic) == (
        'dpmpp_2m_sde',
        2,
        other.family,
        False,
    )
    x, sigmas = torch.randn(2, 3, 4, 4) * 10, K.sampling.get_sigmas_karras(5, 0.1, 10.0)
    samples = function(D, x, sigmas, disable=True, seed=3)
    assert torch.equal(
        samples, other.function(D, x, sigmas, disable=True, seed=3, solver_type='heun')
    )
    assert not torch.equal(samples, other.function(D, x, sigmas, disable=True, seed=3))
    with pytest.raises(ValueError, match='fixed must hold options of dpmpp_2m_sde, .*; got solver'):
        K.sampling.preset(
            'another', K.sampling.sample_dpmpp_2m_sde, 'A misspelt option.', {'solver': 'heun'}
        )
