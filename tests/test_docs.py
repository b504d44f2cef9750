"""The pages say what the code says."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path

import pytest
import torch

import k_diffusion as K
from k_diffusion.recipes import Traits, recommend
from k_diffusion.tasks.evaluate import COPIES
from k_diffusion.tasks.reference import EXTRACTORS

ROOT = Path(__file__).parents[1]
SECTIONS = [
    *K.models.MODELS.values(),
    *K.schedules.DENSITIES.values(),
    *K.data.DATASETS.values(),
    *K.training.OPTIMIZERS.values(),
    *K.training.LR_SCHEDS.values(),
    *K.training.EMA_SCHEDS.values(),
    K.training.TrainingConfig,
    K.generation.SamplingConfig,
    K.training.DistillationConfig,
    *K.encoders.ENCODERS.values(),
    *K.encoders.CONDITIONS.values(),
    K.models.AutoencoderConfig,
]


@pytest.mark.parametrize('section', SECTIONS, ids=lambda s: s.__name__)
def test_every_key_of_a_config_is_on_the_page(section):
    page = (ROOT / 'docs' / 'config.md').read_text()
    for field in dataclasses.fields(section):
        assert f'`{field.name}`' in page, field.name


def test_every_type_is_on_the_page():
    page = (ROOT / 'docs' / 'config.md').read_text()
    kinds = [
        *K.models.MODELS,
        *K.schedules.DENSITIES,
        *K.data.DATASETS,
        *K.training.OPTIMIZERS,
        *K.training.LR_SCHEDS,
        *K.training.EMA_SCHEDS,
        *K.encoders.ENCODERS,
        *K.encoders.CONDITIONS,
    ]
    for name in kinds:
        assert f'`{name}`' in page, name


PAGES = [
    'README.md',
    'CHANGELOG.md',
    'CONTRIBUTING.md',
    'SECURITY.md',
    *(page.relative_to(ROOT).as_posix() for page in sorted((ROOT / 'docs').rglob('*.md'))),
]


@pytest.mark.parametrize('page', PAGES)
def test_what_a_page_points_to_is_there(page):
    text = (ROOT / page).read_text()
    for target in re.findall(r'\]\(([^)#]+)\)', text):
        assert target.startswith('http') or (ROOT / page).parent.joinpath(target).exists(), target


@pytest.mark.parametrize(
    'names', [K.schedules.SCHEDULES, K.schedules.DISCRETE_SCHEDULES], ids=lambda names: names.kind
)
def test_every_schedule_and_its_parameters_are_on_the_page(names):
    rows = [
        line
        for line in (ROOT / 'docs' / 'schedules.md').read_text().splitlines()
        if line.startswith('| `')
    ]
    for name, function in names.items():
        row = ''.join(line for line in rows if line.startswith(f'| `{name}` '))
        assert row, name
        if names is K.schedules.SCHEDULES:
            own = inspect.signature(function).parameters.keys() - {
                'n',
                'sigma_min',
                'sigma_max',
                'device',
            }
            assert not [key for key in own if f'`{key}`' not in row], name


def test_the_examples_of_the_page_on_schedules_run():
    page = (ROOT / 'docs' / 'schedules.md').read_text()
    names: dict = {}
    exec('\n'.join(re.findall(r'```python\n(.*?)```', page, re.S)), names)
    assert names['sigmas'].shape == (21,) and names['x'].shape == (1, 3, 64, 64)
    for name in re.findall(r'`(\w+_sigmas?|sigmas_for\w+|final_denoise)\(', page):
        assert hasattr(K.sampling, name), name


def test_the_readme_shows_commands_that_exist():
    text = (ROOT / 'README.md').read_text()
    assert 'make demo' in text and 'make test' in text
    for command in re.findall(r'^k-diffusion ([a-z]+)', text, re.M):
        assert command in K.cli.entry.COMMANDS
    for name in re.findall(r'K\.sampling\.(\w+)', text):
        assert hasattr(K.sampling, name), name


def test_the_own_network_of_the_readme_trains_in_ten_lines(tmp_path, monkeypatch):
    blocks = re.findall(r'```python\n(.*?)```', (ROOT / 'README.md').read_text(), re.S)
    program = next(block for block in blocks if 'network=net' in block)
    assert sum(bool(line.strip()) for line in program.splitlines()) <= 10
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(program, names)
    radii = names['samples'].norm(dim=1)
    assert names['samples'].shape == (100, 2) and (radii - 1).abs().mean() < 0.1
    denoiser, _ = K.load_model('runs/circle', network=names['net'])
    assert torch.equal(K.sample(denoiser, [100, 2], seeds=0), names['samples'])


def test_the_trainer_of_the_page_trains_and_goes_on(tmp_path, monkeypatch):
    pytest.importorskip('accelerate', reason='accelerate is in the extra "train"')
    blocks = re.findall(r'```python\n(.*?)```', (ROOT / 'docs' / 'training.md').read_text(), re.S)
    program = next(block for block in blocks if 'K.training.Trainer' in block)
    weights = []
    for place, ends in (('straight', [20]), ('paused', [10, 20])):
        (tmp_path / place).mkdir()
        monkeypatch.chdir(tmp_path / place)
        for end in ends:
            names: dict = {}
            torch.manual_seed(0)
            exec(
                program.replace('end_step=100', f'end_step={end}').replace('every=50', 'every=5'),
                names,
            )
            assert names['status'] == 'done' and names['trainer'].step == end
        weights.append(names['average'].state_dict())
    assert all(torch.equal(weights[0][key], value) for key, value in weights[1].items())
    assert not torch.equal(weights[0]['mix.weight'], names['net'].mix.weight)


def test_every_sampler_is_on_the_page():
    page = (ROOT / 'docs' / 'samplers.md').read_text()
    from k_diffusion.tasks.samplers import sampler_table

    assert sampler_table() in page, 'run k-diffusion samplers --markdown'
    for name, entry in K.sampling.SAMPLERS.items():
        assert f'| `{name}` | {entry.family} | {entry.order or "-"} | {entry.nfe} |' in page, name
    for scale, interval in (1.0, None), (4.0, None), (4.0, (0.3, 1.2)):
        for steps in (5, 8, 15, 30):
            assert f'`{recommend(steps, Traits(0.002, 80.0, scale, interval)).sampler}`' in page


def test_every_metric_and_extractor_is_on_the_page():
    page = (ROOT / 'docs' / 'measuring.md').read_text()
    for name in (*K.evaluation.METRICS, *EXTRACTORS, COPIES):
        assert f'| `{name}`' in page, name


def test_the_examples_of_the_page_on_measuring_run():
    names: dict = {}
    exec(
        '\n'.join(
            re.findall(r'```python\n(.*?)```', (ROOT / 'docs' / 'measuring.md').read_text(), re.S)
        ),
        names,
    )
    assert (
        names['values']['fid'] == pytest.approx(names['distance'].item(), rel=1e-9)
        and names['values']['fid'] > 0.3
    )
    torch.testing.assert_close(names['again'], names['x'], rtol=0, atol=1e-3)
    assert ((names['log_p'] - names['exact']).abs() < 0.05).all()  # its Jacobian is diagonal


def test_the_page_on_architecture_is_true():
    """Its examples run, and its table is the one that is enforced."""
    from tests.test_architecture import MAY_IMPORT

    page = (ROOT / 'docs' / 'architecture.md').read_text()
    names: dict = {}
    try:
        exec('\n'.join(re.findall(r'```python\n(.*?)```', page, re.S)), names)
    finally:
        K.sampling.SAMPLERS._entries.pop('my_euler_ancestral', None)
    expected = K.sample(names['denoiser'], [4, 2], 10, sampler='euler_ancestral', seeds=0)
    assert torch.allclose(names['x'], expected, atol=1e-5)
    rows = dict(re.findall(r'^\| `(\w+)` \| [^|]* \|(.*)\|$', page, re.M))
    assert rows.keys() == MAY_IMPORT.keys() - {'webui'}
    for name in rows.keys() - {'tasks', 'cli', 'utils'}:
        assert set(re.findall(r'`(\w+)`', rows[name])) == set(MAY_IMPORT[name]), name


def test_the_variants_of_guidance_on_the_page_run():
    page = (ROOT / 'docs' / 'guidance.md').read_text()
    block = next(
        block
        for block in re.findall(r'```python\n(.*?)```', page, re.S)
        if 'cfg_zero_star' in block
    )
    denoiser = lambda x, sigma, class_cond: (
        x / (1 + sigma.view(-1, 1, 1, 1) ** 2) + class_cond.view(-1, 1, 1, 1) / 10
    )
    names = {
        'K': K,
        'torch': torch,
        'denoiser': denoiser,
        'sigmas': K.sampling.get_sigmas_karras(5, 0.02, 40),
    }
    exec(block, names)
    x, first = names['x'], names['sigmas'][:1].expand(10)
    assert torch.equal(
        names['flow'](x, first, **names['conditions']), x / (1 + first[0])
    )  # the first step rests
    assert not torch.equal(
        names['sharp'](x, first / 10, **names['conditions']),
        names['first'](x, first / 10, **names['conditions']),
    )


def test_every_guidance_is_on_the_page():
    page = (ROOT / 'docs' / 'guidance.md').read_text()
    for name in K.guidance.__all__:
        assert f'`{name}' in page or name in ('spherical_distance', 'views'), name


def test_the_examples_of_the_page_on_audio_run():
    names: dict = {}
    exec(
        '\n'.join(
            re.findall(r'```python\n(.*?)```', (ROOT / 'docs' / 'audio.md').read_text(), re.S)
        ),
        names,
    )
    for samples in (names['latents'], names['few']):  # 65,536 draws of deviation 1/2
        assert abs(samples.std().item() - 0.5) < 0.03


def test_the_example_of_the_page_on_scale_runs():
    names: dict = {}
    page = (ROOT / 'docs' / 'scale.md').read_text()
    exec('\n'.join(re.findall(r'```python\n(.*?)```', page, re.S)), names)
    assert [result.way for result in names['info'].scaling] == ['ddp', 'fsdp2']
    for result in names['info'].scaling:  # the figures that the page shows
        assert f'{result.traffic_bytes / 1e9:.2f} GB' in page
    wide = names['scaling'].simulate(names['work'], names['cluster'])
    assert not wide[0].fits and wide[1].fits and f'{wide[1].efficiency:.2f}' in page


def test_the_example_of_the_page_on_tensors_runs():
    names: dict = {}
    exec(
        '\n'.join(
            re.findall(r'```python\n(.*?)```', (ROOT / 'docs' / 'tensors.md').read_text(), re.S)
        ),
        names,
    )
    assert names['features'].shape == (4, 66)
