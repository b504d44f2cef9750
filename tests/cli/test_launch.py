"""accelerate launch that starts one process where several were asked for."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from k_diffusion.tasks import launch
from k_diffusion.tasks.processes import world

ROOT = Path(__file__).parents[2]


def notes(monkeypatch, *words, **environment):
    for name in ('WORLD_SIZE', 'ACCELERATE_MIXED_PRECISION'):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(launch, '_command_of', lambda process: ''.join(f'{w}\0' for w in words))
    with warnings.catch_warnings(record=True) as warning_list, world():
        warnings.simplefilter('always')
        launch.warn_of_one_process()
    return [str(note.message) for note in warning_list]


@pytest.mark.parametrize(
    'words',
    [['--num_processes', '2'], ['--num_processes=2'], ['--cpu', '--num-processes', '2', 'x.py']],
)
def test_one_process_in_place_of_two_is_told(monkeypatch, words):
    said = notes(monkeypatch, 'accelerate', 'launch', *words, ACCELERATE_MIXED_PRECISION='no')
    assert said and 'started 1 process instead of 2' in said[0]
    assert said[0].endswith('or use torchrun with its option nproc-per-node set to 2')


@pytest.mark.parametrize(
    ('words', 'environment'),
    [
        (['--num_processes', '1'], {'ACCELERATE_MIXED_PRECISION': 'no'}),
        (['x.py'], {'ACCELERATE_MIXED_PRECISION': 'no'}),
        (['--num_processes', '2'], {}),
    ],
)
def test_nothing_is_told_where_one_was_asked_for(monkeypatch, words, environment):
    assert notes(monkeypatch, 'accelerate', 'launch', *words, **environment) == []


@pytest.mark.faults
def test_the_launcher_itself_is_understood(tiny, tmp_path):
    pytest.importorskip('accelerate', reason='accelerate is in the extra "train"')
    command = [
        sys.executable,
        '-m',
        'accelerate.commands.launch',
        '--cpu',
        '--num_processes',
        '2',
        str(ROOT / 'train.py'),
        '--config',
        tiny(),
        '--run-dir',
        str(tmp_path / 'run'),
        '--end-step',
        '1',
        '--demo-every',
        '0',
        '--evaluate-n',
        '0',
        '--num-workers',
        '0',
    ]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'},
    )
    assert done.returncode == 0, done.stderr
    assert 'note: accelerate launch started 1 process instead of 2' in done.stderr
