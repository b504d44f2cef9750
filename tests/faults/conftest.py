"""Runs of the real program that faults are injected into."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils._pytree import tree_flatten

ROOT = Path(__file__).parents[2]
TINY = {
    'model': {
        'type': 'image_v1',
        'input_channels': 1,
        'input_size': [16, 16],
        'patch_size': 2,
        'mapping_out': 16,
        'depths': [1, 1],
        'channels': [16, 16],
        'self_attn_depths': [False, False],
        'augment_prob': 0.12,
        'sigma_data': 0.5,
        'sigma_min': 0.02,
        'sigma_max': 40,
        'sigma_sample_density': {'type': 'lognormal', 'mean': -1.0, 'std': 1.2},
    },
    'dataset': {'type': 'demo', 'num_classes': 10},
    'optimizer': {'type': 'muon', 'lr': 0.004},
    'training': {'batch_size': 8},
}


class Program:
    """Starts train.py on a tiny config in a folder of its own."""

    def __init__(self, folder):
        self.folder = folder
        (folder / 'tiny.json').write_text(json.dumps(TINY))
        self.run_dir = folder / 'run'

    def command(self, *more, processes=1, run_dir=None, launcher=('--standalone',)):
        start = [sys.executable]
        if processes > 1:
            start += ['-m', 'torch.distributed.run', *launcher, '--nproc-per-node', str(processes)]
        return [
            *start,
            str(ROOT / 'train.py'),
            '--config',
            str(self.folder / 'tiny.json'),
            '--name',
            'tiny',
            '--run-dir',
            str(run_dir or self.run_dir),
            '--device',
            'cpu',
            '--evaluate-n',
            '0',
            '--demo-every',
            '0',
            '--num-workers',
            '0',
            *more,
        ]

    def environment(self):
        return {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT)}

    def run(self, *more, timeout=120, **options):
        return subprocess.run(
            self.command(*more, **options),
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    def start(self, *more, **options):
        return subprocess.Popen(
            self.command(*more, **options),
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )


@pytest.fixture(autouse=True)
def hangups():
    """A hangup does what it does in a terminal, also where the tests run under nohup: processes
    inherit that it is ignored.
    """
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture
def program(tmp_path):
    return Program(tmp_path)


@pytest.fixture
def same():
    def compare(a, b):
        leaves, others = tree_flatten(a), tree_flatten(b)
        return leaves[1] == others[1] and all(
            torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y
            for x, y in zip(leaves[0], others[0])
        )

    return compare
