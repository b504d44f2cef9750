"""Training over shards: straight, interrupted, by any workers and processes, the same bit for
bit; captions and classes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from k_diffusion.cli.train import main
from k_diffusion.core.images import from_bytes, save_image
from k_diffusion.core.weights import load_checkpoint
from k_diffusion.data import icons, pack_shards

ROOT = Path(__file__).parents[2]
MODEL = {
    'type': 'image_v1',
    'input_channels': 1,
    'input_size': [8, 8],
    'mapping_out': 16,
    'depths': [1, 1],
    'channels': [8, 8],
    'self_attn_depths': [False, False],
    'cross_attn_depths': [False, True],
    'cross_cond_dim': 64,
    'dropout_rate': 0.1,
    'augment_prob': 0.12,
    'sigma_data': 0.5,
    'sigma_min': 0.02,
    'sigma_max': 40,
    'sigma_sample_density': {'type': 'lognormal', 'mean': -1.0, 'std': 1.2},
}


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    """A config of a data set of 50 captioned icons in 8 shards, in three classes."""
    folder = tmp_path_factory.mktemp('shards')
    for i, image in enumerate(icons(50, 8, 1)):
        (folder / 'in' / f'c{i % 3}').mkdir(parents=True, exist_ok=True)
        save_image(folder / 'in' / f'c{i % 3}' / f'{i:04}.png', from_bytes(image))
        (folder / 'in' / f'c{i % 3}' / f'{i:04}.txt').write_text(f'icon {i}')
    pack_shards(folder / 'in', folder / 'out', by_folder=True, samples=7)
    config = {
        'model': MODEL,
        'dataset': {
            'type': 'shards',
            'location': str(folder / 'out'),
            'num_classes': 3,
            'window': 16,
        },
        'conditions': [{'type': 'text'}],
        'training': {'batch_size': 4},
    }
    (folder / 'config.json').write_text(json.dumps(config))
    return folder


def words(place, run, end_step, *more):
    return [
        '--config',
        str(place / 'config.json'),
        '--run-dir',
        str(place / run),
        '--name',
        'a',
        '--end-step',
        str(end_step),
        '--device',
        'cpu',
        '--demo-every',
        '0',
        '--evaluate-n',
        '0',
        '--start-method',
        'fork',
        *more,
    ]


def train(place, run, end_step, *more):
    """A step of one process takes two portions, as many items as one of two processes."""
    assert main(words(place, run, end_step, '--grad-accum-steps', '2', *more)) == 0
    return load_checkpoint(place / run / f'a_{end_step:08}.pth')


@pytest.fixture(scope='module')
def straight(place):
    """The checkpoint of a run of 8 steps of 8 items (the second epoch has begun), read by the
    training process.
    """
    return train(place, 'straight', 8, '--num-workers', '0')


def assert_same(a, b):
    for key in ('model', 'model_ema'):
        assert all(torch.equal(a[key][name], b[key][name]) for name in a[key]), key
    assert a['items'] == b['items'] == 64


@pytest.mark.parametrize('workers', [1, 4])
def test_workers_and_a_pause_change_nothing(place, straight, workers):
    train(place, f'paused{workers}', 3, '--num-workers', str(workers))
    assert_same(train(place, f'paused{workers}', 8, '--num-workers', str(5 - workers)), straight)


def test_two_processes_are_one_and_one_goes_on_from_two(place, straight):
    env = {
        **os.environ,
        'OMP_NUM_THREADS': '1',
        'ACCELERATE_USE_CPU': 'true',
        'PYTHONPATH': str(ROOT),
    }
    done = subprocess.run(
        [
            sys.executable,
            '-m',
            'torch.distributed.run',
            '--standalone',
            '--nproc-per-node',
            '2',
            str(ROOT / 'train.py'),
            *words(place, 'two', 8, '--num-workers', '1', '--save-every', '5'),
        ],
        env=env,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert '2 processes on cpu' in done.stderr
    assert_same(load_checkpoint(place / 'two' / 'a_00000008.pth'), straight)
    (place / 'two' / 'a_00000008.pth').unlink()
    assert_same(
        train(
            place, 'two', 8, '--resume', str(place / 'two' / 'a_00000005.pth'), '--num-workers', '0'
        ),
        straight,
    )


def test_captions_reach_the_network(place, straight):
    """The same pictures with other captions lead to other weights; a demo grid is drawn with
    captions.
    """
    for path in (place / 'in').rglob('*.txt'):
        path.write_text('something else')
    pack_shards(place / 'in', place / 'other', by_folder=True, samples=7)
    config = json.loads((place / 'config.json').read_text())
    config['dataset']['location'] = str(place / 'other')
    (place / 'other.json').write_text(json.dumps(config))
    run = [
        '--config',
        str(place / 'other.json'),
        '--num-workers',
        '0',
        '--demo-every',
        '8',
        '--sample-n',
        '4',
    ]
    changed = train(place, 'captions', 8, *run)
    assert any(not torch.equal(changed['model'][name], p) for name, p in straight['model'].items())
    assert (place / 'captions' / 'a_demo_00000008.png').is_file()


def test_a_set_without_captions_and_classes_has_no_texts(place, capsys):
    for path in (place / 'in').rglob('*.txt'):
        path.unlink()
    pack_shards(place / 'in', place / 'plain', samples=7)
    config = json.loads((place / 'config.json').read_text())
    config['dataset'] = {'type': 'shards', 'location': str(place / 'plain')}
    (place / 'plain.json').write_text(json.dumps(config))
    assert main([*words(place, 'plain_run', 1), '--config', str(place / 'plain.json')]) == 1
    assert 'which has neither texts nor classes' in capsys.readouterr().err
