"""A tiny run that the tests of the doors share."""

from __future__ import annotations

import json

import pytest

TINY = {
    'model': {
        'type': 'image_v1',
        'input_channels': 1,
        'input_size': [16, 16],
        'patch_size': 2,
        'mapping_out': 16,
        'depths': [1, 1],
        'channels': [16, 16],
        'self_attn_depths': [False, True],
        'dropout_rate': 0.1,
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


@pytest.fixture
def tiny(tmp_path):
    """tiny(**changes) -> the path of a config file; a change is (section, key, value)."""

    def write(*changes, name='tiny.json'):
        config = json.loads(json.dumps(TINY))
        for section, key, value in changes:
            config.setdefault(section, {})[key] = value
        path = tmp_path / name
        path.write_text(json.dumps(config))
        return str(path)

    return write


@pytest.fixture(scope='session')
def trained(tmp_path_factory):
    """The folder of a run of three steps."""
    from k_diffusion.cli.train import main

    folder = tmp_path_factory.mktemp('trained')
    (folder / 'tiny.json').write_text(json.dumps(TINY))
    arguments = [
        '--config',
        str(folder / 'tiny.json'),
        '--run-dir',
        str(folder / 'run'),
        '--name',
        'tiny',
        '--end-step',
        '3',
        '--device',
        'cpu',
        '--demo-every',
        '2',
        '--sample-n',
        '4',
        '--evaluate-n',
        '0',
    ]
    assert main(arguments) == 0
    return folder / 'run'
