"""Signals, launchers and workers: what asks a run to stop, and what it leaves for the resume."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from k_diffusion.cli import autoencoder
from k_diffusion.cli.train import main
from k_diffusion.core.weights import load_checkpoint
from k_diffusion.data import permutation
from k_diffusion.tasks.processes import World, in_pieces
from k_diffusion.tasks.run import demo_grid as hooks
from k_diffusion.tasks.run import evaluation_hook as metrics_hook
from k_diffusion.training import RunFolder, Trainer
from k_diffusion.training import launcher as launchers

from .conftest import TINY
from .test_killing import wait_for

NOTICES = [(signal.SIGHUP, 129), (signal.SIGUSR1, 138)]


@pytest.fixture
def train(tmp_path):
    def run(*more, place='run', config=TINY):
        (tmp_path / 'tiny.json').write_text(json.dumps(config))
        return main(
            [
                '--config',
                str(tmp_path / 'tiny.json'),
                '--run-dir',
                str(tmp_path / place),
                '--name',
                'tiny',
                '--device',
                'cpu',
                '--demo-every',
                '0',
                '--evaluate-n',
                '0',
                '--num-workers',
                '0',
                '--no-report',
                *more,
            ]
        )

    return run


def at_step(monkeypatch, step, act):
    """Have `act` called within one training step."""
    real = Trainer.train_step

    def train_step(self, batches):
        real(self, batches)
        if self.step == step:
            act()

    monkeypatch.setattr(Trainer, 'train_step', train_step)


def send(*numbers):
    for number in numbers:
        os.kill(os.getpid(), number)


@pytest.mark.parametrize(('number', 'status'), NOTICES)
def test_a_hangup_and_the_notice_of_a_cluster_save_the_run(
    train, tmp_path, monkeypatch, capsys, number, status
):
    before = signal.getsignal(number)
    # A shell passes on a hangup that the kernel has told of, and SIGTERM follows a notice.
    at_step(monkeypatch, 2, lambda: send(number, number, signal.SIGTERM))
    assert train('--end-step', '9') == status
    assert 'tiny interrupted at step 2' in capsys.readouterr().err
    assert RunFolder(tmp_path / 'run', 'tiny').newest()[1]['step'] == 2
    assert signal.getsignal(number) == before


def test_a_hangup_that_nohup_ignores_stays_ignored(train, monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        at_step(monkeypatch, 2, lambda: send(signal.SIGHUP))
        assert train('--end-step', '3') == 0
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(('number', 'status'), [*NOTICES, (signal.SIGTERM, 143)])
def test_an_autoencoder_is_saved_too(tmp_path, monkeypatch, capsys, number, status):
    config = {
        'model': {
            'type': 'autoencoder',
            'input_channels': 1,
            'input_size': [16, 16],
            'channels': [8, 8],
            'latent_channels': 2,
            'depth': 1,
        },
        'dataset': {'type': 'demo'},
        'training': {'batch_size': 4},
    }
    (tmp_path / 'ae.json').write_text(json.dumps(config))
    at_step(monkeypatch, 2, lambda: send(number))
    command = [
        '--config',
        str(tmp_path / 'ae.json'),
        '--name',
        'ae',
        '--device',
        'cpu',
        '--run-dir',
        str(tmp_path / 'ae'),
        '--end-step',
        '5',
    ]
    assert autoencoder.main(command) == status
    assert 'ae interrupted at step 2' in capsys.readouterr().err
    assert RunFolder(tmp_path / 'ae', 'ae').newest()[1]['step'] == 2
    assert autoencoder.main(command) == 0
    assert RunFolder(tmp_path / 'ae', 'ae').newest()[1]['step'] == 5


def stop_within(monkeypatch, module, name):
    """Have SIGTERM come while `module.name` draws, the first time."""
    real = getattr(module, name)

    def draw(*arguments, **options):
        send(signal.SIGTERM)
        monkeypatch.setattr(module, name, real)
        return real(*arguments, **options)

    monkeypatch.setattr(module, name, draw)


def pictures_of(folder):
    return {path.name: path.read_bytes() for path in folder.glob('*_demo_*.png')}


@pytest.mark.parametrize('moment', ['in the step', 'in the grid', 'in the last grid'])
def test_a_grid_that_a_stop_prevented_is_drawn_at_the_resume(train, tmp_path, monkeypatch, moment):
    arguments = ['--end-step', '4', '--demo-every', '2', '--sample-n', '2']
    assert train(*arguments, place='straight') == 0
    if moment == 'in the step':
        at_step(monkeypatch, 2, lambda: send(signal.SIGTERM))
    elif moment == 'in the grid':
        stop_within(monkeypatch, hooks, 'generate')
    else:
        at_step(monkeypatch, 4, lambda: stop_within(monkeypatch, hooks, 'generate'))
    train(*arguments)
    assert len(pictures_of(tmp_path / 'run')) == (1 if moment == 'in the last grid' else 0)
    monkeypatch.undo()
    assert train(*arguments) == 0
    assert pictures_of(tmp_path / 'run') == pictures_of(tmp_path / 'straight')
    assert len(pictures_of(tmp_path / 'run')) == 2
    ours, theirs = (
        load_checkpoint(tmp_path / place / 'tiny_00000004.pth') for place in ('run', 'straight')
    )
    assert ours['owed'] == theirs['owed'] == []
    logs = [
        (tmp_path / place / 'tiny_log.jsonl').read_text().count('\n')
        for place in ('run', 'straight')
    ]
    assert logs[0] == logs[1]


def test_an_evaluation_that_a_stop_prevented_is_made_at_the_resume(train, tmp_path, monkeypatch):
    class Features:
        fingerprint = 'means'

        def __call__(self, x):
            return x.flatten(1)[:, :2]

    monkeypatch.setattr(metrics_hook, 'make_extractor', lambda *_: Features())
    monkeypatch.setattr(metrics_hook, 'REFERENCE', 8)
    arguments = ['--end-step', '2', '--evaluate-every', '1', '--evaluate-n', '4']

    def rows(place):
        metrics = metrics_hook.read_metrics(tmp_path / place / 'tiny_metrics.csv')
        return [{key: value for key, value in row.items() if key != 'time'} for row in metrics]

    assert train(*arguments, place='straight') == 0
    with monkeypatch.context() as patch:
        stop_within(patch, metrics_hook, 'compute_features')
        assert train(*arguments) == 143
    assert rows('run') == []
    assert train(*arguments) == 0
    assert rows('run') == rows('straight') and len(rows('run')) == 2


def test_a_run_whose_launcher_is_gone_is_saved_and_stops(train, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('TORCHELASTIC_RUN_ID', 'none')
    parent = os.getppid()
    at_step(monkeypatch, 2, lambda: monkeypatch.setattr(launchers.os, 'getppid', lambda: 1))
    train('--end-step', '9')
    assert f'the launcher (process {parent}) is gone' in capsys.readouterr().err
    assert RunFolder(tmp_path / 'run', 'tiny').newest()[1]['step'] == 2


def test_an_evaluation_whose_launcher_is_gone_stops_and_keeps_its_pieces(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCHELASTIC_RUN_ID', 'none')

    def work(items):
        done.append(items.start)
        if len(done) == 2:
            monkeypatch.setattr(launchers.os, 'getppid', lambda: 1)
        return torch.arange(items.start, items.stop)[:, None].float()

    done = []
    with pytest.raises(ChildProcessError, match='has exited; run the same command again'):
        in_pieces(tmp_path / 'pieces', 600, work, World())
    assert done == [0, 256]
    monkeypatch.undo()
    assert in_pieces(tmp_path / 'pieces', 600, work, World())[:, 0].tolist() == list(range(600))
    assert done == [0, 256, 512]


@pytest.mark.faults
@pytest.mark.parametrize(('number', 'status'), NOTICES)
def test_notices_end_the_program_with_their_status(program, number, status):
    process = program.start('--no-report')
    wait_for((program.run_dir / 'tiny_log.jsonl').exists)  # (steps are taken by then)
    os.kill(process.pid, number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == status and 'Traceback' not in err
    assert RunFolder(program.run_dir, 'tiny').newest()[1]['step'] > 0


@pytest.mark.faults
def test_processes_whose_launcher_is_killed_save_and_stop(program):
    process = program.start('--batch-size', '4', '--no-report', processes=2)
    wait_for((program.run_dir / 'tiny_config.json').exists)
    time.sleep(3)
    ranks = subprocess.run(
        ['ps', '--ppid', str(process.pid), '-o', 'pid='], capture_output=True, text=True
    ).stdout.split()
    assert len(ranks) == 2
    os.kill(process.pid, signal.SIGKILL)
    wait_for(lambda: not any(Path(f'/proc/{rank}').exists() for rank in ranks), 20)
    _, err = process.communicate(timeout=10)
    assert f'the launcher (process {process.pid}) is gone' in err and 'Traceback' not in err
    assert RunFolder(program.run_dir, 'tiny').newest()[1]['step'] > 0


@pytest.mark.faults
def test_a_worker_that_hangs_ends_the_run_with_its_steps_saved(program):
    (program.folder / 'data.py').write_text(
        'import time, torch\n'
        'class Items:\n'
        '    def __len__(self): return 80\n'
        '    def __getitem__(self, i):\n'
        '        if i == 7: time.sleep(600)\n'
        '        return {0: torch.full((1, 16, 16), i, dtype=torch.uint8)}\n'
        'def get_dataset(config, transform): return Items()\n'
    )
    config = {**TINY, 'dataset': {'type': 'custom', 'location': 'data.py', 'image_key': 0}}
    (program.folder / 'tiny.json').write_text(json.dumps(config))
    command = [
        '--allow-code',
        '--no-report',
        '--num-workers',
        '2',
        '--worker-timeout',
        '8',
        '--start-method',
        'fork',
    ]
    done = program.run(*command, timeout=60)
    assert done.returncode == 1 and 'Traceback' not in done.stderr
    assert 'returned no batch for 8 s (it starts with picture ' in done.stderr
    hung = permutation(0, 0, 80).tolist().index(7) // 8
    assert RunFolder(program.run_dir, 'tiny').newest()[1]['step'] == hung > 0
