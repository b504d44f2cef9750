"""A run without a config file: what is picked for a folder of pictures, and single values from
the shell.
"""

import json

import pytest
import torch
from PIL import Image

import k_diffusion as K
from k_diffusion.cli.train import main
from k_diffusion.config import Experiment
from k_diffusion.config.overrides import change_config


@pytest.fixture
def pictures(tmp_path):
    """A folder of 2 x 6 grey pictures of 20 x 24 in folders a and b."""
    torch.manual_seed(0)
    for name in 'ab':
        (tmp_path / 'pictures' / name).mkdir(parents=True)
        for i in range(6):
            values = bytes(torch.randint(0, 256, [480], dtype=torch.uint8).tolist())
            Image.frombytes('L', (20, 24), values).save(tmp_path / 'pictures' / name / f'{i}.png')
    return tmp_path / 'pictures'


def run(pictures, folder, *more):
    return main(
        [
            '--data',
            str(pictures),
            '--name',
            'mine',
            '--run-dir',
            str(folder),
            '--device',
            'cpu',
            '--demo-every',
            '0',
            '--evaluate-n',
            '0',
            '--num-workers',
            '0',
            '--end-step',
            '2',
            *more,
        ]
    )


def test_a_folder_is_enough(pictures, tmp_path, capsys):
    assert run(pictures, tmp_path / 'run') == 0
    err = capsys.readouterr().err
    assert '12 pictures of' in err and '20 x 24' in err and 'picked: 16x16, grey' in err
    assert 'with the 2 folders as classes' in err and 'steps of 12' in err
    config = json.loads((tmp_path / 'run' / 'mine_config.json').read_text())
    assert config['model']['input_size'] == [16, 16] and config['model']['input_channels'] == 1
    assert config['dataset']['class_names'] == ['a', 'b']
    values = (
        torch.stack(
            [K.data.load_picture(path, (16, 16), 1) for path in sorted(pictures.rglob('*.png'))]
        ).double()
        / 127.5
        - 1
    )
    assert config['model']['sigma_data'] == pytest.approx(values.std(correction=0).item(), abs=0.03)
    assert run(pictures, tmp_path / 'run', '--end-step', '3', '--minutes', '9') == 0
    err = capsys.readouterr().err
    assert 'resuming from' in err and 'have an effect at the start of a run only' in err
    denoiser, _ = K.load_model(tmp_path / 'run')
    assert K.sample(
        denoiser, [2, 1, 16, 16], steps=2, seeds=0, cond={'class_cond': torch.tensor([0, 1])}
    ).shape == (2, 1, 16, 16)


def test_what_is_picked_can_be_steered(pictures, tmp_path, capsys):
    steered = [
        '--size',
        '32',
        '--classes',
        'none',
        '--minutes',
        '0.001',
        '--set',
        'model.channels=[16,16,16]',
        '--set',
        'optimizer={"type":"adamw","lr":0.01}',
    ]
    assert run(pictures, tmp_path / 'run', *steered) == 0
    config = json.loads((tmp_path / 'run' / 'mine_config.json').read_text())
    assert config['model']['input_size'] == [32, 32] and config['dataset']['num_classes'] == 0
    assert config['model']['channels'] == [16, 16, 16] and config['optimizer']['lr'] == 0.01
    assert config['training']['end_step'] == 200
    assert run(pictures, tmp_path / 'other', '--size', '34') == 1
    assert '--size must be a multiple of' in capsys.readouterr().err
    assert run(pictures, tmp_path / 'other', '--set', 'model.chanels=[1]') == 1
    assert 'did you mean model.channels' in capsys.readouterr().err
    assert run(tmp_path / 'nowhere', tmp_path / 'other') == 1
    with pytest.raises(ValueError, match='data must be left out with a config'):
        K.train('c.json', data='x')
    with pytest.raises(ValueError, match='size, classes and minutes must be left out without data'):
        K.train('c.json', size=32)


def test_values_are_put_into_a_copy_of_a_config():
    config = {'model': {'channels': [1]}, 'conditions': [{'type': 'text'}]}
    changed = change_config(
        config,
        [
            'model.channels=[2, 3]',
            'conditions.0.dropout=0.5',
            'dataset.type=mnist',
            'model.x.y=null',
        ],
    )
    assert changed == {
        'model': {'channels': [2, 3], 'x': {'y': None}},
        'conditions': [{'type': 'text', 'dropout': 0.5}],
        'dataset': {'type': 'mnist'},
    }
    assert config == {'model': {'channels': [1]}, 'conditions': [{'type': 'text'}]}
    assert change_config(config, {'model.channels': [4]})['model'] == {'channels': [4]}
    for wrong in 'model.channels', 'channels=3', 'model.channels.x=3', 'conditions.7.type=text':
        with pytest.raises(ValueError, match='changes must (be KEY=VALUE|have keys)'):
            change_config(config, [wrong])
    path = K.config.shipped_config('config_demo')
    experiment = Experiment.open(path, strict=True, changes=['model.sigma_data=0.25'])
    assert experiment.sections.model.sigma_data == 0.25


NET = """
import torch
class MyNet(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.mix = torch.nn.Conv2d(1, 1, 3, padding=1)
    def forward(self, x, sigma, class_cond=None):
        return self.mix(x)
"""


def test_a_network_in_a_file_is_run_only_where_that_is_allowed(pictures, tmp_path, capsys):
    (tmp_path / 'net.py').write_text(NET)
    name = f'{tmp_path / "net.py"}:MyNet'
    assert run(pictures, tmp_path / 'run', '--network', name) == 1
    assert 'runs only with --allow-code; read it, and pass that if you trust it' in (
        capsys.readouterr().err
    )
    assert run(pictures, tmp_path / 'run', '--network', name, '--allow-code') == 0
    with pytest.raises(ValueError, match='MyNet is not one of this package: .*allow_code=True'):
        K.load_model(tmp_path / 'run')
    denoiser, _ = K.load_model(tmp_path / 'run', network=name, allow_code=True)
    assert type(denoiser.inner_model).__name__ == 'MyNet'
    assert run(pictures, tmp_path / 'other', '--network', f'{name}s', '--allow-code') == 1
    assert '--network must name a function or class of the file' in capsys.readouterr().err
    assert run(pictures, tmp_path / 'other', '--network', 'net.py', '--allow-code') == 1
    assert '--network must be FILE.py:NAME' in capsys.readouterr().err
