"""The loss on held-out items during training."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from math import exp
from pathlib import Path
from statistics import NormalDist

import pytest
import torch
from torch import nn

import k_diffusion as K
from k_diffusion.cli.train import main
from k_diffusion.core.weights import load_checkpoint
from k_diffusion.data import Loader, as_dataset
from k_diffusion.tasks.run.held_out import split_items
from k_diffusion.tasks.run.settings import TrainSettings

ROOT = Path(__file__).parents[2]
QUIET = {'device': 'cpu', 'demo_every': 0, 'evaluate_n': 0, 'show': False}
#: A learning rate that leaves float32 weights as they are.
STILL = 1e-30


class Linear(nn.Module):
    """F = scale x, which begins at F = 0."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(()))

    def forward(self, x, sigma, class_cond=None):
        return self.scale * x


def normal(*shape, seed=3):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def log_of(folder, name='m'):
    return [json.loads(line) for line in (folder / f'{name}_log.jsonl').read_text().splitlines()]


def train(folder, config=None, *, steps=1, name='m', **settings):
    settings = {'network': Linear(), 'batch_size': 8, **settings} if config is None else settings
    settings = {'held_out': None, 'evaluate_every': 1, **QUIET, **settings}
    run = K.train(config, name=name, run_dir=folder, end_step=steps, **settings)
    lines = [line for line in log_of(folder, name) if 'held_out_loss' in line]
    return run, lines


def test_the_loss_on_gaussian_data_is_that_of_the_closed_form(tmp_path):
    # Data N(0, s^2), F = 0: D = c_skip x, and with sigma_data = d the weighted squared error of F
    # is ((1 - c_skip)^2 s^2 + c_skip^2 sigma^2) / c_out^2 = (sigma^2 s^2 + d^4) /
    # ((sigma^2 + d^2) d^2).
    s, d, mean, std, n = 1.0, 0.5, -0.5, 1.2, 1024
    _, lines = train(
        tmp_path,
        dataset=normal(16, 4, 32, 32),
        held_out=s * normal(n, 4, 32, 32, seed=4),
        sigma_data=d,
        density=K.schedules.LogNormal(mean=mean, std=std),
        lr=STILL,
    )
    sigmas = [exp(mean + std * NormalDist().inv_cdf((i + 0.5) / n)) for i in range(n)]
    expected = [(x**2 * s**2 + d**4) / ((x**2 + d**2) * d**2) for x in sigmas]
    line = lines[-1]
    assert line['held_out_step'] == line['step'] == 1
    # (The squares of 4,096 numbers an item have a relative deviation of 2 %.)
    assert line['held_out_loss'] == pytest.approx(sum(expected) / n, rel=3e-3)
    ranges = [sum(expected[i : i + 128]) / 128 for i in range(0, n, 128)]
    assert line['held_out_loss_by_noise'] == pytest.approx(ranges, rel=8e-3)


def test_it_is_the_same_number_for_any_batch_size_and_seed(tmp_path, tiny):
    losses = []
    for i, more in enumerate(
        [{}, {'batch_size': 20, 'grad_accum_steps': 2}, {'seed': 7, 'num_workers': 1}]
    ):
        weights = {} if i == 0 else {'resume_inference': tmp_path / 'start.safetensors'}
        run, lines = train(
            tmp_path / str(i), tiny(), held_out=50, lr=STILL, evaluate_every=1, **weights, **more
        )
        if i == 0:
            K.convert(run.checkpoint, out=tmp_path / 'start.safetensors')
        losses.append([(x['held_out_loss'], x['held_out_loss_by_noise']) for x in lines])
    assert len(losses[0]) == 1 and losses[0] == losses[1] == losses[2]


def test_measuring_changes_nothing_of_training(tmp_path, tiny):
    digits = normal(40, 1, 16, 16), torch.arange(40) % 10
    names = [str(i) for i in range(10)]
    other = K.data.Images((digits[0] * 60 + 128).clamp(0, 255).byte(), digits[1], names)
    runs = []
    for name, more in ('with', {'held_out': other}), ('without', {'held_out': 0}):
        run, lines = train(tmp_path / name, tiny(), steps=3, **more)
        assert len(lines) == (1 if name == 'with' else 0)  # (the log has a line at the end)
        runs.append(load_checkpoint(run.checkpoint))
    for key in ('model', 'model_ema'):
        assert all(torch.equal(value, runs[1][key][name]) for name, value in runs[0][key].items())
    assert runs[0]['held_out']['values'] and 'held_out' not in runs[1]


def test_held_out_items_are_never_trained_on(tmp_path):
    images = torch.arange(40.0)[:, None, None, None].expand(40, 1, 4, 4).contiguous()
    trained_items, measured = [], []

    def loss(denoiser, x, noise, sigma, **cond):
        (trained_items if torch.is_grad_enabled() else measured).extend(x[:, 0, 0, 0].tolist())
        return denoiser.loss(x, noise, sigma, **cond)

    train(
        tmp_path, dataset=images, held_out=10, steps=9, evaluate_every=9, loss=loss, sigma_data=1.0
    )
    assert len(set(measured)) == 10 and set(trained_items) == set(range(40)) - set(measured)
    epochs = [sorted(trained_items[i : i + 30]) for i in (0, 30)]
    assert epochs[0] == epochs[1] == sorted(set(trained_items))


def test_the_choice_of_held_out_items_depends_on_their_number_alone():
    held_out, others = split_items(100, 20)
    assert (
        sorted([*held_out.tolist(), *others.tolist()]) == list(range(100)) and len(held_out) == 20
    )
    assert torch.equal(held_out, split_items(100, 20)[0])
    with pytest.raises(ValueError, match='held_out must be below the 100 items'):
        split_items(100, 100)
    loader = Loader(as_dataset(normal(100, 1, 4, 4)), 16, item_indices=others)
    indices = torch.cat([loader.indices(p) for p in range(0, 160, 16)])
    assert sorted(indices[:80].tolist()) == sorted(indices[80:].tolist()) == others.tolist()
    assert [loader.epoch(p) for p in (0, 79, 80, 160)] == [0, 0, 1, 2]


@pytest.mark.slow
def test_two_processes_report_what_one_reports(tmp_path, tiny):
    arguments = [
        *('--config', tiny(), '--name', 'm', '--end-step', '1', '--lr', str(STILL)),
        *('--device', 'cpu', '--demo-every', '0', '--evaluate-n', '0', '--held-out', '70'),
        *('--evaluate-every', '1'),
    ]
    losses = []
    assert main([*arguments, '--run-dir', str(tmp_path / '1')]) == 0
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone']
    command += ['--nproc-per-node', '2', str(ROOT / 'train.py'), *arguments]
    done = subprocess.run(
        [*command, '--run-dir', str(tmp_path / '2')],
        env={**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for processes in 1, 2:
        line = log_of(tmp_path / str(processes))[-1]
        losses.append((line['held_out_loss'], line['held_out_loss_by_noise']))
    assert losses[0] == losses[1] and losses[0][0] > 0


def test_a_resumed_run_has_the_log_of_a_straight_one(tmp_path):
    def go(folder, steps):
        options = {'dataset': normal(40, 1, 4, 4), 'held_out': 8, 'sigma_data': 1.0}
        options['lr_schedule'] = lambda optimizer: K.training.ConstantLRWithWarmup(optimizer, 0.0)
        return train(folder, steps=steps, evaluate_every=4, **options)[1]

    straight = go(tmp_path / 'straight', 20)
    go(tmp_path / 'paused', 8)
    resumed = go(tmp_path / 'paused', 20)
    keys = ('step', 'held_out_step', 'held_out_loss')
    assert [line['held_out_step'] for line in straight] == [8, 20]
    assert [[x[k] for k in keys] for x in straight[1:]] == [
        [x[k] for k in keys] for x in resumed[1:]
    ]
    report = (tmp_path / 'straight' / 'm_report.html').read_text()
    assert 'held-out loss' in report and 'held-out loss by noise level' in report


def test_the_default_is_the_test_split(tmp_path, tiny, capsys):
    def write(name, n, value):
        pixels = bytes([value]) * (n * 16 * 16)
        head = b'\0\0\x08\x03' + b''.join(k.to_bytes(4, 'big') for k in (n, 16, 16))
        (tmp_path / f'{name}-images-idx3-ubyte').write_bytes(head + pixels)
        labels = b'\0\0\x08\x01' + n.to_bytes(4, 'big') + bytes(i % 10 for i in range(n))
        (tmp_path / f'{name}-labels-idx1-ubyte').write_bytes(labels)

    write('train', 40, 200)
    config = tiny(
        ('dataset', 'type', 'mnist'),
        ('dataset', 'location', str(tmp_path)),
        ('model', 'augment_prob', 0.0),
    )
    assert train(tmp_path / 'without', config, show=True)[1] == []
    assert 'the held-out loss is disabled' in capsys.readouterr().err
    write('t10k', 30, 90)
    means = set()

    def loss(denoiser, x, noise, sigma, **cond):
        means.add((torch.is_grad_enabled(), round(float((x.mean() + 1) * 127.5))))
        return denoiser.loss(x, noise, sigma, **cond)

    assert len(train(tmp_path / 'with', config, loss=loss)[1]) == 1
    assert means == {(True, 200), (False, 90)}
    assert train(tmp_path / 'off', config, held_out=0)[1] == []


def test_another_data_set_and_a_config_key_choose_the_items(tmp_path, tiny):
    _, lines = train(tmp_path / 'a', tiny(('training', 'held_out', 30)))
    assert len(lines) == 1
    with pytest.raises(ValueError, match='held_out must have the classes of the training set'):
        other = K.data.Images(torch.zeros(4, 1, 16, 16).byte(), torch.arange(4), list('abcd'))
        train(tmp_path / 'b', tiny(), held_out=other)
    with pytest.raises(ValueError, match='held_out must hold items of the shape'):
        train(tmp_path / 'c', dataset=normal(20, 1, 4, 4), held_out=normal(20, 1, 8, 8))
    with pytest.raises(ValueError, match='held_out must be a data set, or a number .*; got -1'):
        train(tmp_path / 'd', tiny(), held_out=-1)
    with pytest.raises(ValueError, match='held_out must be >= 0, .*; got -1'):
        train(tmp_path / 'e', tiny(('training', 'held_out', -1)))


def test_a_data_set_without_items_is_refused(tmp_path):
    with pytest.raises(ValueError, match='held_out must hold at least one item; got none'):
        train(tmp_path, dataset=normal(16, 1, 4, 4), held_out=normal(0, 1, 4, 4), sigma_data=1.0)


@pytest.mark.parametrize('n', [1, 3, 33])
def test_few_items_are_each_measured_once(tmp_path, n):
    """The loss of item i is i: their mean is (n + 1) / 2."""
    measured = []

    def loss(denoiser, x, noise, sigma, **cond):
        if not torch.is_grad_enabled():
            measured.extend(x[:, 0, 0, 0].tolist())
        return x[:, 0, 0, 0] + 0 * denoiser.loss(x, noise, sigma, **cond)

    held_out = torch.arange(1.0, n + 1)[:, None, None, None].expand(n, 1, 4, 4).contiguous()
    _, lines = train(
        tmp_path, dataset=normal(16, 1, 4, 4), held_out=held_out, sigma_data=1.0, loss=loss
    )
    assert set(measured) == set(range(1, n + 1))
    assert lines[-1]['held_out_loss'] == pytest.approx((n + 1) / 2)
    assert sum(value is not None for value in lines[-1]['held_out_loss_by_noise']) == min(n, 8)


@pytest.mark.parametrize('value', [-1, 9999.5, -0.5, True, False])
def test_a_number_of_items_that_cannot_be(value):
    with pytest.raises(ValueError, match=rf'^held_out must be a data set, .* >= 0; got {value}$'):
        TrainSettings('config.json', held_out=value)


@pytest.mark.parametrize('text', ['-1', '9999.5'])
def test_numbers_on_the_command_line_are_no_data_sets(text):
    read = TrainSettings.__dataclass_fields__['held_out'].metadata['parse']
    assert isinstance(read(text), (int, float)) and read('folder') == 'folder'
