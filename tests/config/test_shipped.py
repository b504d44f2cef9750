"""Shipped configs: found by name in a clone and when installed, and listed."""

import json

import pytest

import k_diffusion as K
from k_diffusion.cli import entry
from k_diffusion.config import find_config, load, load_config, shipped_configs
from k_diffusion.tasks.config import list_configs

DEMO = (
    'config_demo',
    'config_demo.json',
    'configs/config_demo',
    'configs/config_demo.json',
    'away/configs/config_demo.json',
)


@pytest.mark.parametrize('name', DEMO)
def test_a_config_is_found_by_its_name(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert load_config(name)['dataset']['type'] == 'demo'
    assert K.info(name, rate=1e12).input == [1, 16, 16]


def test_an_autoencoder_is_found_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_config('autoencoders/icons') == find_config('configs/autoencoders/icons.json')
    assert K.config.read_autoencoder_config('autoencoders/icons')[1].model.type == 'autoencoder'


def test_a_file_goes_before_a_shipped_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = json.loads(find_config('config_demo').read_text())
    config['training'] = {**config.get('training', {}), 'batch_size': 3}
    (tmp_path / 'config_demo').write_text(json.dumps(config))
    assert load_config('config_demo')['training']['batch_size'] == 3
    assert load_config('config_demo.json')['training']['batch_size'] != 3


@pytest.mark.parametrize(
    ('name', 'words'),
    [
        ('config_dmeo', "no config at config_dmeo, did you mean 'config_demo'"),
        ('a/config_demo.json', 'no config at a/config_demo.json'),
        ('config_demo.pt', 'no config at config_demo.pt'),
    ],
)
def test_other_names_are_no_shipped_configs(tmp_path, monkeypatch, name, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=words):
        load_config(name)


def test_configs_are_found_inside_an_installed_package(tmp_path, monkeypatch):
    package = tmp_path / 'site-packages' / 'k_diffusion'
    (package / 'configs').mkdir(parents=True)
    (tmp_path / 'site-packages' / 'configs').mkdir()  # of somebody else
    config = package / 'configs' / 'config_own.json'
    config.write_text(find_config('config_demo').read_text())
    monkeypatch.setattr(load, '__file__', str(package / 'config' / 'load.py'))
    assert shipped_configs() == {'config_own': config}
    assert load_config('config_own')['dataset']['type'] == 'demo'


def test_the_list_says_size_network_and_data_set(capsys):
    configs = {config.name: config for config in list_configs()}
    assert len(configs) > 20 and all(config.path.is_file() for config in configs.values())
    raw = json.loads(configs['config_mnist_small'].path.read_text())
    result = configs['config_mnist_small']
    assert (list(result.size), result.network, result.dataset) == (
        raw['model']['input_size'],
        raw['model']['type'],
        raw['dataset']['type'],
    )
    assert configs['autoencoders/icons'].network == 'autoencoder'
    assert entry.main(['config', '--list']) == 0
    row = next(
        line
        for line in capsys.readouterr().out.splitlines()
        if line.startswith('config_mnist_small ')
    )
    assert row.split()[1:4] == ['28x28x1', 'image_v3', 'mnist']
    assert configs['config_waves'].size == (64,) and configs['config_blobs'].size == (8, 8, 8)


def test_the_command_takes_a_checkpoint_or_the_list(capsys):
    assert entry.main(['config']) == 1
    assert 'checkpoint must be given, or pass --list' in capsys.readouterr().err
    with pytest.raises(ValueError, match='checkpoint must be left out with list=True'):
        K.extract_config('x.pth', list=True)
