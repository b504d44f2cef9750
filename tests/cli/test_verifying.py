"""A checkpoint named by hand is compared with the manifest beside it, by whatever reads it."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

import k_diffusion as K
from k_diffusion.cli.entry import main
from k_diffusion.config import read_weights


def flip(path, where=0.5):
    """Flips a bit of a file, which torch and safetensors load without a word."""
    data = bytearray(path.read_bytes())
    data[int(len(data) * where)] ^= 1
    path.write_bytes(bytes(data))


@pytest.fixture
def flipped(trained, tmp_path):
    """A checkpoint with a flipped bit, the manifest beside it."""
    shutil.copytree(trained, tmp_path / 'run')
    path = tmp_path / 'run' / 'tiny_00000003.pth'
    flip(path)
    return path


@pytest.fixture
def commands(tmp_path, trained):
    """Commands by name, as functions of a checkpoint."""
    sampling = ['-n', '2', '--steps', '2', '--device', 'cpu']
    config = str(trained.parent / 'tiny.json')
    train = [
        'train',
        '--config',
        config,
        '--run-dir',
        str(tmp_path / 'new'),
        '--name',
        'tiny',
        '--end-step',
        '4',
        '--device',
        'cpu',
        '--demo-every',
        '0',
        '--evaluate-n',
        '0',
        '--no-report',
    ]
    return {
        'sample': lambda path: [
            'sample',
            '--checkpoint',
            path,
            '--out',
            str(tmp_path / 'samples'),
            *sampling,
        ],
        'convert': lambda path: ['convert', path, '-o', str(tmp_path / 'out.safetensors')],
        'config': lambda path: ['config', path, '-o', str(tmp_path / 'out.json')],
        'info': lambda path: ['info', path, '--rate', '1e9', '--device', 'cpu'],
        'train --resume': lambda path: [*train, '--resume', path],
        'train --grow': lambda path: [*train, '--grow', path],
        'evaluate': lambda path: [
            'evaluate',
            '--checkpoint',
            path,
            '--out',
            str(tmp_path / 'evaluation'),
            '--extractor',
            'nothing',
        ],
        'likelihood': lambda path: [
            'likelihood',
            '--checkpoint',
            path,
            '--out',
            str(tmp_path / 'likelihood'),
            '--dataset',
            'nothing',
        ],
        'calibrate': lambda path: [
            'calibrate',
            '--checkpoint',
            path,
            '--steps',
            '2',
            '--classes',
            'x',
        ],
        'clip': lambda path: [
            'clip',
            'a cat',
            '--checkpoint',
            path,
            '--out',
            str(tmp_path / 'clip'),
            '--init',
            'nothing.png',
        ],
    }


@pytest.mark.parametrize(
    'name',
    [
        'sample',
        'convert',
        'config',
        'info',
        'train --resume',
        'train --grow',
        'evaluate',
        'likelihood',
        'calibrate',
        'clip',
    ],
)
def test_a_flipped_bit_is_found_by_every_command_and_can_be_overridden(
    flipped, commands, capsys, name
):
    command = commands[name](str(flipped))
    assert main(command) == 1
    stderr = capsys.readouterr().err.splitlines()[-1]
    assert (
        'tiny_00000003.pth is damaged: its SHA-256 is not that of what was written' in stderr
        and '--no-verify' in stderr
    )
    if name == 'clip':  # (it would go on to look for CLIP)
        return
    status = main(
        [*command, '--no-verify']
    )  # (evaluate and the two after it end at another mistake)
    stderr = capsys.readouterr().err
    assert 'SHA-256' not in stderr
    assert status == 0 or name in ('evaluate', 'likelihood', 'calibrate')


def test_the_folder_of_a_run_and_python_are_verified(flipped):
    for path in (flipped, flipped.parent):
        with pytest.raises(ValueError, match='SHA-256'):
            K.load_model(path)
        assert isinstance(K.load_model(path, verify=False)[0], torch.nn.Module)
    with pytest.raises(ValueError, match='SHA-256'):
        read_weights(flipped)


def test_a_file_that_no_manifest_names_is_taken(flipped, tmp_path):
    moved = tmp_path / 'moved' / 'other_00000003.pth'
    moved.parent.mkdir()
    shutil.copy(flipped, moved)
    expected = K.load_model(flipped, verify=False)[0].state_dict()
    for _ in range(2):
        loaded = K.load_model(moved)[0].state_dict()
        assert loaded.keys() == expected.keys() and all(
            torch.equal(loaded[name], value) for name, value in expected.items()
        )
        (moved.parent / 'other_manifest.json').write_text(json.dumps({'checkpoints': {}}))


def test_snapshots_are_on_record(trained, tmp_path, capsys, recwarn):
    """`ema` passes over the damaged one with a note; named by hand it is refused."""
    command = [
        'train',
        '--config',
        str(trained.parent / 'tiny.json'),
        '--run-dir',
        str(tmp_path / 'run'),
        '--name',
        'a_ema',
        '--end-step',
        '2',
        '--ema-snapshots',
        '2',
        '--device',
        'cpu',
        '--demo-every',
        '0',
        '--evaluate-n',
        '0',
        '--no-report',
        '--keep-last',
        '1',
    ]
    assert main(command) == 0
    snapshot = tmp_path / 'run' / 'a_ema_ema_00000001.safetensors'
    assert main(['checkpoints', str(tmp_path / 'run')]) == 0
    assert 'loss' in capsys.readouterr().out
    flip(snapshot, 0.9)
    out = [
        'ema',
        '--checkpoint-dir',
        str(tmp_path / 'run'),
        '--width',
        '0.07',
        '-o',
        str(tmp_path / 'ema.safetensors'),
    ]
    assert main(out) == 0 and 'a_ema_ema_00000001.safetensors is skipped' in capsys.readouterr().err
    assert main([*out, '--no-verify']) == 0 and 'skipped' not in capsys.readouterr().err
    with pytest.raises(ValueError, match='SHA-256'):
        read_weights(snapshot)
