"""train --grow: a run that starts from a smaller network, and goes on without it."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from k_diffusion.cli.train import main
from k_diffusion.config import grow_model, load_config
from k_diffusion.core.weights import load_checkpoint, save_checkpoint


def run(config, folder, *more):
    return main(
        [
            '--config',
            config,
            '--run-dir',
            str(folder),
            '--name',
            'tiny',
            '--demo-every',
            '0',
            '--evaluate-n',
            '0',
            '--device',
            'cpu',
            *more,
        ]
    )


@pytest.fixture
def small(tiny, tmp_path):
    """The config and the folder of a run at 8x8 with the finest level at rest."""
    config = tiny(('model', 'input_size', [8, 8]), ('model', 'skip_stages', 1), name='small.json')
    assert run(config, tmp_path / 'small', '--end-step', '2') == 0
    return config, tmp_path / 'small'


def test_a_grown_run(small, tiny, tmp_path, capsys):
    _, folder = small
    capsys.readouterr()
    assert (
        run(
            tiny(),
            tmp_path / 'grown',
            '--grow',
            str(folder),
            '--grow-warmup',
            '3',
            '--end-step',
            '2',
        )
        == 0
    )
    assert 'of them new' in capsys.readouterr().err
    straight = load_checkpoint(tmp_path / 'grown' / 'tiny_00000002.pth')
    old = load_checkpoint(folder / 'tiny_00000002.pth')['model_ema']
    name = 'inner_model.u_net.d_blocks.1.1.main.2.weight'
    assert 0 < (straight['model'][name] - old[name]).abs().max() < 0.1
    assert (
        straight['growing']['done'] == 2
        and 'inner_model.proj_in.weight' in straight['growing']['names']
    )
    # Another run, stopped between, goes on without what it was grown from, and ends with the same
    # weights.
    assert (
        run(
            tiny(),
            tmp_path / 'parted',
            '--grow',
            str(folder),
            '--grow-warmup',
            '3',
            '--end-step',
            '1',
        )
        == 0
    )
    shutil.rmtree(folder)
    assert (
        run(
            tiny(),
            tmp_path / 'parted',
            '--grow',
            str(folder),
            '--grow-warmup',
            '3',
            '--end-step',
            '2',
        )
        == 0
    )
    parted = load_checkpoint(tmp_path / 'parted' / 'tiny_00000002.pth')
    assert all(torch.equal(parted['model'][key], value) for key, value in straight['model'].items())
    assert parted['growing'] == straight['growing']


def test_a_checkpoint_without_a_config_needs_one(small, tiny, tmp_path, capsys):
    config, folder = small
    checkpoint = load_checkpoint(folder / 'tiny_00000002.pth')
    del checkpoint['config']
    save_checkpoint(tmp_path / 'seed.pth', checkpoint)
    assert (
        run(tiny(), tmp_path / 'grown', '--grow', str(tmp_path / 'seed.pth'), '--end-step', '1')
        == 1
    )
    assert 'has no config' in (err := capsys.readouterr().err) and '--grow-config' in err
    assert not (tmp_path / 'grown').exists()
    assert (
        run(
            tiny(),
            tmp_path / 'grown',
            '--grow',
            str(tmp_path / 'seed.pth'),
            '--grow-config',
            config,
            '--end-step',
            '1',
        )
        == 0
    )
    network, new = grow_model(load_config(tiny()), tmp_path / 'seed.pth', config)
    own = network.state_dict()
    old_keys = [
        key
        for key in checkpoint['model_ema']
        if key.startswith('inner_model.mapping') or '.d_blocks.1.1' in key
    ]
    assert len(old_keys) > 10 and all(
        torch.equal(own[key], checkpoint['model_ema'][key]) for key in old_keys
    )
    assert new and not set(new) & set(old_keys)


@pytest.mark.parametrize(
    ('arguments', 'complaint'),
    [
        (['--grow-warmup', '3'], '--grow must name a checkpoint'),
        (['--grow', 'nowhere.pth'], 'no checkpoint at nowhere.pth'),
        (['--grow', 'a.pth', '--resume-inference', 'b.safetensors'], 'must not both be given'),
    ],
)
def test_mistakes_are_one_sentence(tiny, tmp_path, capsys, arguments, complaint):
    assert run(tiny(), tmp_path / 'run', '--end-step', '1', *arguments) == 1
    err = capsys.readouterr().err
    assert complaint in err and 'Traceback' not in err


def test_another_network_is_refused(small, tiny, tmp_path, capsys):
    assert (
        run(
            tiny(('model', 'channels', [16, 32])),
            tmp_path / 'run',
            '--grow',
            str(small[1]),
            '--end-step',
            '1',
        )
        == 1
    )
    assert 'the new config must describe the same network' in capsys.readouterr().err
    assert json.loads((small[1] / 'tiny_state.json').read_text())
