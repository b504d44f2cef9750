"""Every Python block and every `sh` command of the pages runs, in the order of the page."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import torch

import k_diffusion as K
from k_diffusion.cli.entry import main

ROOT = Path(__file__).parents[1]
REGISTRIES = [
    K.sampling.SAMPLERS,
    K.schedules.SCHEDULES,
    K.models.MODELS,
    K.data.DATASETS,
    K.evaluation.METRICS,
]
#: Pages whose blocks need nothing prepared.
PLAIN = [
    'docs/index.md',
    *(f'docs/howto/{page.name}' for page in sorted((ROOT / 'docs/howto').glob('*.md'))),
    *(f'docs/migration/{page.name}' for page in sorted((ROOT / 'docs/migration').glob('*.md'))),
    'docs/tutorials/few_calls.md',
    'docs/tutorials/write_a_sampler.md',
]


@pytest.fixture(autouse=True)
def _clean(tmp_path, monkeypatch):
    """Run in an empty folder, and forget what a page registers."""
    monkeypatch.chdir(tmp_path)
    entries = [dict(registry) for registry in REGISTRIES]
    yield
    for registry, before in zip(REGISTRIES, entries):
        registry._entries.clear()
        registry._entries.update(before)


@pytest.fixture(scope='session')
def demo_config(tmp_path_factory):
    """A small config of the digits at 16x16."""
    config = json.loads((ROOT / 'configs/config_demo.json').read_text())
    config['model'] |= {'channels': [16, 16], 'mapping_out': 16}
    return config


def run_page(page, names=None, changes=()):
    """Run the blocks of a page; `changes` are replacements (old, new) that shorten its runs."""
    text = (ROOT / page).read_text()
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    names = {'__name__': '__main__', 'torch': torch, 'K': K} | (names or {})
    blocks = re.findall(r'^```(python|sh)\n(.*?)^```', text, re.S | re.M)
    assert blocks, page
    for kind, block in blocks:
        if kind == 'python':
            exec(compile(block, page, 'exec', dont_inherit=True), names)
        else:
            run_commands(block)
    return names


def run_commands(block):
    """Run the lines of a shell block that begin with k-diffusion."""
    for line in block.splitlines():
        if line.startswith('k-diffusion '):
            assert main(shlex.split(line)[1:]) == 0, line


@pytest.mark.parametrize('page', PLAIN)
def test_blocks_run(page):
    if page in ('docs/howto/network.md', 'docs/howto/dataset.md'):
        pytest.importorskip('accelerate', reason='accelerate is in the extra "train"')
    run_page(page)


def test_readme_samples_the_demo(demo_config):
    pytest.importorskip('accelerate', reason='accelerate is in the extra "train"')
    K.train(demo_config, name='demo', end_step=1, show=False)
    blocks = re.findall(r'```python\n(.*?)```', (ROOT / 'README.md').read_text(), re.S)
    block = next(block for block in blocks if 'runs/demo' in block)
    names: dict = {}
    exec(block, names)
    assert names['digits'].shape == (10, 1, 16, 16) and names['digits'].isfinite().all()


def test_samplers_blocks_run(demo_config):
    pytest.importorskip('accelerate', reason='accelerate is in the extra "train"')
    K.train(demo_config, name='demo', end_step=1, show=False)
    assert run_page('docs/samplers.md')['images'].shape == (4, 1, 16, 16)


def test_guidance_blocks_run(demo_config):
    pytest.importorskip('accelerate', reason='accelerate is in the extra "train"')
    K.train(demo_config, name='demo', end_step=1, show=False)
    images, mask = torch.zeros(2, 1, 16, 16), torch.ones(1, 1, 16, 16)
    names = run_page('docs/guidance.md', {'images': images, 'mask': mask, 'image': images[0]})
    assert names['digits'].shape == (100, 1, 16, 16)


def test_tuning_blocks_run(demo_config):
    pytest.importorskip('accelerate', reason='accelerate is in the extra "train"')
    K.train(demo_config, name='demo', end_step=1, show=False)
    assert run_page('docs/tuning.md')['digits'].shape == (4, 1, 16, 16)


def test_training_blocks_run(demo_config, tmp_path):
    pytest.importorskip('accelerate', reason='accelerate is in the extra "train"')
    demo_config = json.loads(json.dumps(demo_config))
    demo_config['model'] |= {'input_size': [28, 28]}
    (tmp_path / 'configs').mkdir()
    (tmp_path / 'configs/config_mnist_small.json').write_text(json.dumps(demo_config))
    images = torch.rand(64, 1, 8, 8) * 2 - 1

    class Net(torch.nn.Conv2d):
        def forward(self, x, sigma):
            return super().forward(x)

    names = {'net': Net(1, 1, 3, padding=1), 'images': images}
    names = run_page(
        'docs/training.md', names, [('end_step=2000', 'end_step=1'), ('end_step=100', 'end_step=2')]
    )
    assert names['digits'].shape == (4, 1, 28, 28)


def test_diffusers_tutorial_runs(tmp_path):
    pytest.importorskip('diffusers')
    pytest.importorskip('transformers')
    from tiny_pipelines import save_stable_diffusion

    save_stable_diffusion(tmp_path / 'path/to/stable-diffusion')
    names = run_page('docs/tutorials/sample_a_diffusers_pipeline.md')
    assert names['latents'].shape == (2, 4, 8, 8) and names['latents'].isfinite().all()
    assert (tmp_path / 'boat.png').exists()


class TinyClassifier(torch.nn.Module):
    """A classifier with the conventions of guided-diffusion: (x_t, t) -> logits."""

    def __init__(self):
        super().__init__()
        self.out = torch.nn.Linear(4, 10)

    def forward(self, x, t):
        return self.out(x.mean((2, 3)))


class EDMPrecond(torch.nn.Module):
    """A network with the attributes and the call of EDM's."""

    img_resolution, img_channels, label_dim = 8, 3, 0
    sigma_min, sigma_max, sigma_data = 0.0, float('inf'), 0.5

    def __init__(self, **arguments):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.zeros(()))

    def forward(self, x, sigma, class_labels=None):
        return x * self.scale

    def round_sigma(self, sigma):
        return torch.as_tensor(sigma)


def test_other_models_blocks_run(tmp_path, monkeypatch):
    diffusers = pytest.importorskip('diffusers')
    pytest.importorskip('transformers')
    from types import SimpleNamespace

    from tiny_pipelines import randomised, save_stable_diffusion

    save_stable_diffusion(tmp_path / 'path/to/a/pipeline')
    text = (ROOT / 'docs/other_models.md').read_text()
    for long, short in (('get_sigmas(30)', 'get_sigmas(2)'), ('(1, 4, 64, 64)', '(1, 4, 8, 8)')):
        assert long in text
        text = text.replace(long, short)
    first, control, others, published = re.findall(r'```python\n(.*?)```', text, re.S)
    names = {'embeddings': torch.ones(1, 5, 12), 'empty': torch.zeros(1, 5, 12)}
    exec(first, names)
    assert names['latents'].shape == (1, 4, 8, 8) and names['latents'].isfinite().all()

    plain = diffusers.StableDiffusionPipeline.from_pretrained(
        tmp_path / 'path/to/a/pipeline', safety_checker=None
    )
    torch.manual_seed(0)
    net = randomised(
        diffusers.ControlNetModel.from_unet(
            plain.unet, conditioning_channels=3, controlnet_conditioning_channel_order='rgb'
        )
    )
    parts = {**plain.components, 'controlnet': net, 'requires_safety_checker': False}
    names['pipeline'] = diffusers.StableDiffusionControlNetPipeline(**parts)
    names['edges'] = torch.ones(1, 3, 64, 64)
    before = names['latents']
    exec(control, names)
    assert (names['latents'] - before).abs().max() > 1e-3

    table = torch.linspace(0.9999, 0.01, 1000, dtype=torch.float64)
    names |= {
        'pictures': torch.zeros(2, 3, 8, 8),
        'labels': torch.tensor([1, 2]),
        'beside': torch.zeros(2, 4, 8, 8),
        'text': torch.zeros(2, 5, 12),
        'classifier': TinyClassifier(),
        'diffusion': SimpleNamespace(alphas_cumprod=table),
        'denoiser': lambda x, sigma, **cond: x * 0.5,
    }
    exec(others, names)
    x, sigma = torch.ones(2, 4, 8, 8), torch.ones(2)
    guided = names['guided'](x, sigma, y=names['labels'])
    y = names['labels']
    leaf = x.clone().requires_grad_()
    log_prob = names['classifier'](leaf / 2**0.5, None).log_softmax(1)[torch.arange(2), y].sum()
    torch.testing.assert_close(guided, 0.5 * x + 4.0 * torch.autograd.grad(log_prob, leaf)[0])

    network_arguments = {'label_dim': 0}
    result = SimpleNamespace(
        family='EDM',
        network='EDMPrecond',
        arguments=network_arguments,
        into=lambda kind: kind(**network_arguments),
    )
    monkeypatch.setattr(K.external, 'load_published', lambda path: result)
    names['EDMPrecond'] = EDMPrecond
    exec(published, names)
    assert isinstance(names['denoiser'], K.external.EDMDenoiser)


@pytest.mark.slow
def test_training_tutorial_runs():
    names = run_page(
        'docs/tutorials/train_on_your_pictures.md', changes=[('--minutes 10', '--end-step 4')]
    )
    assert names['digits'].shape == (4, 1, 16, 16)
    assert Path('sheet.png').exists() and Path('samples/grid.png').exists()


@pytest.mark.slow
def test_measuring_tutorial_runs(demo_config):
    K.train(demo_config, name='demo', end_step=4, show=False)
    names = run_page(
        'docs/tutorials/measure_a_model.md',
        changes=[('-n 2000', '-n 200'), ('n=2000', 'n=200'), ('-n 100', '-n 4')],
    )
    assert names['result'].values['fid'] > names['result'].values['floor'] > 0


def table_names(page, heading):
    """The names in backquotes of a table below a heading: (first cell, second cell) of each row."""
    section = (ROOT / page).read_text().partition(f'## {heading}\n')[2].partition('\n## ')[0]
    rows = [line.strip('|').split('|') for line in section.splitlines() if line.startswith('| `')]
    return [[re.findall(r'`(\w+)`', cell) for cell in row[:2]] for row in rows]


def test_comfyui_names_are_found():
    rows = table_names('docs/migration/comfyui.md', 'Samplers')
    names = [name for row in rows for name in row[0]]
    assert len(names) > 40
    assert [name for name in names if name not in K.sampling.SAMPLERS] == []
    for row in table_names('docs/migration/comfyui.md', 'Schedulers'):
        for name in row[0]:
            assert name in K.schedules.SCHEDULES or name in K.schedules.DISCRETE_SCHEDULES


def test_diffusers_schedulers_are_found():
    diffusers = pytest.importorskip('diffusers')
    for (scheduler, *_), ours in table_names('docs/migration/diffusers.md', 'Schedulers'):
        assert hasattr(diffusers, scheduler), scheduler
        assert all(name in K.sampling.SAMPLERS or name in ('bh1', 'bh2') for name in ours)
        sampler = K.sampling.SAMPLERS.find_name(scheduler)
        assert sampler is None or sampler in (*ours, 'dpmpp_2m'), scheduler


def test_navigation_lists_every_page():
    yaml = pytest.importorskip('yaml')
    text = (ROOT / 'mkdocs.yml').read_text()
    pages = set(re.findall(r'([\w/]+\.md)', yaml.dump(yaml.safe_load(text)['nav'])))
    generated = {'results.md', 'changelog.md', 'contributing.md', 'security.md'}
    on_disk = {p.relative_to(ROOT / 'docs').as_posix() for p in (ROOT / 'docs').rglob('*.md')}
    assert pages - generated == on_disk


def test_release_makes_links_absolute():
    from k_diffusion.core.python_files import load_name

    absolute = load_name(ROOT / 'tools/release.py', 'absolute_links', allow_code=True)
    text = absolute((ROOT / 'README.md').read_text(), 'https://example.org/k', 'main')
    assert '](https://example.org/k/blob/main/docs/training.md)' in text
    assert '![digits](https://example.org/k/raw/main/docs/images/demo.png)' in text
    assert re.findall(r'\]\((?!https?:|#)', text) == []
