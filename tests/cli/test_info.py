"""k-diffusion info: what it says of configs and checkpoints, and what it refuses."""

from __future__ import annotations

import json

import pytest

from k_diffusion.cli.info import main
from k_diffusion.cli.train import main as train
from k_diffusion.config import load_config, make_model
from k_diffusion.core.modules import n_params
from k_diffusion.tasks.info import format_bytes, format_count, format_seconds, info


def test_a_config_and_its_checkpoint_cost_the_same(trained, capsys):
    assert main([str(trained.parent / 'tiny.json'), '--rate', '1e12', '--json']) == 0
    from_config = json.loads(capsys.readouterr().out)
    assert main([str(trained), '--rate', '1e12', '--json']) == 0
    from_run = json.loads(capsys.readouterr().out)
    assert {**from_config, 'name': 0} == {**from_run, 'name': 0}
    assert from_config['parameters'] == n_params(
        make_model(load_config(trained.parent / 'tiny.json'))
    )
    assert from_config['input'] == [1, 16, 16] and from_config['batch_size'] == 8
    assert from_config['images_per_second'] == pytest.approx(
        0.5 * 1e12 / (6 * from_config['multiply_adds'])
    )


def test_the_time_of_a_run(tiny):
    result = info(
        tiny(('training', 'end_step', 1000), ('sampling', 'guidance', 2.0)),
        batch_size=32,
        rate=1e12,
    )
    assert result.training_seconds == pytest.approx(1000 * 32 / result.images_per_second)
    assert result.sampling_multiply_adds == 2 * 20 * result.multiply_adds


def test_the_words(tiny, capsys):
    assert main([tiny(), '--rate', '1e12', '--device', 'cpu']) == 0
    out = capsys.readouterr().out
    assert (
        'image_v1, pictures of 16x16, 1 channel\n' in out
        and 'multiply-adds a picture' in out
        and 'does not fit' not in out
    )
    assert (
        main([tiny(('model', 'channels', [2048, 65536])), '--rate', '1e12', '--device', 'cpu']) == 0
    )
    assert 'It does not fit into the memory of cpu' in capsys.readouterr().out
    assert (format_count(999), format_count(53_413_520), format_count(2.5e12)) == (
        '999',
        '53.4 million',
        '2.5 trillion',
    )
    assert (format_bytes(2**20), format_bytes(3 * 2**29)) == ('1.0 MiB', '1.5 GiB')
    assert (format_seconds(20), format_seconds(330), format_seconds(86400 * 3)) == (
        '20 seconds',
        '5.5 minutes',
        '3 days',
    )


@pytest.mark.parametrize(
    ('change', 'complaint'),
    [
        (
            ('model', 'depths', [1, 10**9]),
            'model.depths must be at most 1,000; got [1, 1000000000]',
        ),
        (
            ('model', 'input_size', [10**6, 10**6]),
            'model.input_size must be at most 16,384; got (1000000, 1000000)',
        ),
    ],
)
def test_absurd_sizes_are_refused(tiny, capsys, change, complaint):
    assert main([tiny(change)]) == 1
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize(
    ('arguments', 'complaint'),
    [
        (['nowhere.pth'], 'no checkpoint at nowhere.pth'),
        (['nowhere.json'], 'no config at nowhere.json'),
        (
            ['configs/config_demo.json', '--batch-size', '0'],
            '--batch-size must be at least 1; got 0',
        ),
    ],
)
def test_mistakes_are_one_sentence(capsys, arguments, complaint):
    assert main(arguments) == 1
    err = capsys.readouterr().err
    assert complaint in err and 'Traceback' not in err


def test_training_refuses_what_cannot_fit(tiny, tmp_path, capsys):
    arguments = [
        '--config',
        tiny(('model', 'channels', [2048, 65536])),
        '--run-dir',
        str(tmp_path / 'run'),
        '--device',
        'cpu',
    ]
    assert train(arguments) == 1
    assert 'GiB without activations' in capsys.readouterr().err
    assert not (tmp_path / 'run').exists()
