"""Sequences and volumes through the commands: the toy configs train, sample and are measured;
tensors come back in their units.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

import k_diffusion as K
from k_diffusion.cli import main
from k_diffusion.config import load_config, shipped_config
from k_diffusion.data import blobs, waves
from k_diffusion.evaluation.tensors import band_powers
from k_diffusion.tasks.sample import sample

STEPS, BATCH = {'config_waves': 150, 'config_blobs': 200}, {'config_waves': 32, 'config_blobs': 16}


@pytest.fixture(
    scope='module',
    params=['config_waves', pytest.param('config_blobs', marks=pytest.mark.slow)],
)
def trained(request, tmp_path_factory):
    """A shipped config, the run of it, and its losses."""
    folder = tmp_path_factory.mktemp(request.param) / 'run'
    run = K.train(
        request.param,
        name='toy',
        run_dir=folder,
        end_step=STEPS[request.param],
        batch_size=BATCH[request.param],
        sample_n=4,
        evaluate_n=16,
        demo_every=STEPS[request.param],
        evaluate_every=STEPS[request.param],
        show=False,
    )
    rows = [json.loads(line) for line in (folder / 'toy_log.jsonl').read_text().splitlines()]
    return request.param, run, [row['loss'] for row in rows if 'loss' in row]


def test_losses_fall_and_grids_and_metrics_are_written(trained):
    name, run, losses = trained
    assert run.status == 'done' and losses[-1] < 0.45 * losses[0]
    grid = Image.open(run.folder / f'toy_demo_{STEPS[name]:08}.png')
    assert (
        grid.size
        == (
            {'config_waves': (2 * 128 + 2, 2 * 64 + 2), 'config_blobs': (2 * 104 + 2, 2 * 32 + 2)}[
                name
            ]
        )
    )
    assert (run.folder / 'toy_metrics.csv').read_text().count('\n') == 2


def test_samples_have_the_statistics_of_the_data(trained, tmp_path):
    name, run, _ = trained
    result = sample(run.checkpoint, 64, tmp_path / 'out', steps=20, show=False)
    real = waves(512, seed=9) if name == 'config_waves' else blobs(512, (8, 8, 8), seed=9)
    x = result.images
    assert x.shape[1:] == real.shape[1:] and result.pictures[0].suffix == '.npy'
    np.testing.assert_array_equal(np.load(result.pictures[3]), x[3].numpy())
    assert Image.open(result.grid).size[0] > 0
    assert (
        abs(x.mean() - real.mean()) < 0.1 * real.std() + 0.02
        and abs(x.std() / real.std() - 1) < 0.15
    )
    spectra = band_powers(x).mean((0, 1)) - band_powers(real).mean((0, 1))
    assert (
        spectra[:3].abs().max() < 0.5
    )  # in orders of magnitude; white noise of the same deviation is 1.5 away
    if name == 'config_waves':  # a sine beside a cosine
        assert abs(x.square().sum(1).mean() - 1) < 0.15 and x.square().sum(1).std() < 0.35


def test_the_commands_take_them(trained, tmp_path, capsys):
    name, run, _ = trained
    kind, shape = (
        ('sequences of 64', [2, 64])
        if name == 'config_waves'
        else ('volumes of 8x8x8', [1, 8, 8, 8])
    )
    assert main(['info', str(run.folder), '--rate', '1e10']) == 0
    assert kind in capsys.readouterr().out
    assert (
        main(
            [
                'sample',
                '--checkpoint',
                str(run.folder),
                '-n',
                '3',
                '--out',
                str(tmp_path / 's'),
                '--steps',
                '3',
            ]
        )
        == 0
    )
    assert np.load(tmp_path / 's' / 'images' / '00002.npy').shape == tuple(shape)
    assert (
        main(
            [
                'evaluate',
                '--checkpoint',
                str(run.folder),
                '-n',
                '32',
                '--steps',
                '3',
                '--out',
                str(tmp_path / 'e'),
                '--reference-n',
                '64',
                '--metrics',
                'fid,copies',
                '--cache',
                str(tmp_path / 'c'),
            ]
        )
        == 0
    )
    metrics = json.loads((tmp_path / 'e' / 'metrics.json').read_text())
    assert (
        metrics['extractor'] == 'tensor'
        and np.isfinite(metrics['fid'])
        and (tmp_path / 'e' / 'copies.png').is_file()
    )
    assert main(['likelihood', '--checkpoint', str(run.folder), '-n', '2']) != 0
    assert 'must be of a model of pictures' in capsys.readouterr().err


def tiny(location, **dataset):
    """The config of a small network for sequences of 16 values of 3 channels."""
    model = {
        'type': 'image_v1',
        'dims': 1,
        'input_channels': 3,
        'input_size': [16],
        'mapping_out': 16,
        'depths': [1, 1],
        'channels': [32, 32],
        'self_attn_depths': [False, False],
        'augment_wrapper': False,
        'sigma_data': 1.0,
        'sigma_min': 0.01,
        'sigma_max': 80.0,
        'sigma_sample_density': {'type': 'lognormal', 'mean': -1.0, 'std': 1.0},
    }
    return {
        'model': model,
        'dataset': {'type': 'tensors', 'location': str(location), **dataset},
        'training': {'batch_size': 8},
    }


def test_files_of_tensors_train_resume_and_come_back_in_their_units(tmp_path):
    torch.manual_seed(0)
    units, offset = torch.tensor([5.0, 0.01, 1000.0]), torch.tensor([100.0, 0.0, -3e4])
    x = (torch.randn(40, 3, 20) * units[:, None] + offset[:, None]).double()
    np.save(tmp_path / 'x.npy', x.numpy())
    np.save(tmp_path / 'kinds.npy', np.arange(40) % 2)
    config = tiny(
        tmp_path / 'x.npy',
        standardize=True,
        crop='random',
        flip=[0],
        labels='kinds.npy',
        num_classes=2,
    )
    run = K.train(
        config,
        name='a',
        run_dir=tmp_path / 'a',
        end_step=4,
        sample_n=4,
        demo_every=4,
        evaluate_n=0,
        show=False,
    )
    stored = load_config(tmp_path / 'a' / 'a_config.json')['dataset']
    torch.testing.assert_close(torch.tensor(stored['mean']), x.mean((0, 2)).float())
    result = sample(run.checkpoint, 32, tmp_path / 's', steps=4, show=False, classes=['1'])
    torch.testing.assert_close(
        result.images.mean((0, 2)) / units, offset / units, rtol=0, atol=1.0
    )  # an untrained model's, in its units

    # Straight and interrupted runs are equal, also where the files change what would be measured
    # anew.
    straight = K.train(
        config, name='b', run_dir=tmp_path / 'b', end_step=8, demo_every=0, evaluate_n=0, show=False
    )
    again = K.train(
        config, name='a', run_dir=tmp_path / 'a', end_step=8, demo_every=0, evaluate_n=0, show=False
    )
    ours, theirs = (
        torch.load(path.checkpoint, weights_only=True)['model'] for path in (again, straight)
    )
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    with pytest.raises(ValueError, match=r'dataset.standardize true -> false|dataset.standardize'):
        K.train(
            tiny(tmp_path / 'x.npy', crop='random', labels='kinds.npy', num_classes=2, flip=[0]),
            name='a',
            run_dir=tmp_path / 'a',
            end_step=9,
            demo_every=0,
            evaluate_n=0,
            show=False,
        )

    # A function of one's own measures in the units of the data, of samples and of the files alike.
    means = []

    def levels(batch):
        means.append(batch.mean((0, 2)))
        return batch.mean(2)

    values = K.evaluate(
        checkpoint=run.checkpoint,
        n=16,
        extractor=levels,
        metrics=['fid'],
        steps=2,
        out=tmp_path / 'e',
        show=False,
    ).values
    assert np.isfinite(values['fid']) and all(
        abs(mean[0] - 100) < 10 and abs(mean[2] + 3e4) < 2000 for mean in means
    )
    folder = K.evaluate(
        checkpoint=run.checkpoint,
        n=16,
        metrics=['fid'],
        steps=2,
        dataset=str(tmp_path / 's' / 'images'),
        out=tmp_path / 'f',
        cache=tmp_path / 'c',
        show=False,
    )
    assert folder.facts['reference_n'] == 32


@pytest.mark.parametrize(
    'change, words',
    [
        (
            {'augment_prob': 0.1, 'augment_wrapper': True},
            'augment_prob must be 0 for the dataset type tensors; got 0.1. Use dataset.crop '
            'and dataset.flip',
        ),
        ({'input_size': [32]}, r'sides \[32\] of model.input_size; got \[16\]: pad them'),
    ],
)
def test_what_does_not_fit_is_said(tmp_path, change, words):
    np.save(tmp_path / 'x.npy', np.zeros((40, 3, 16), 'f4'))
    config = tiny(tmp_path / 'x.npy')
    config['model'].update(change)
    with pytest.raises(ValueError, match=words):
        K.train(
            config,
            name='a',
            run_dir=tmp_path / 'a',
            end_step=1,
            demo_every=0,
            evaluate_n=0,
            show=False,
        )


def test_pictures_are_no_sequences(tmp_path):
    config = tiny(tmp_path)
    config['dataset'] = {'type': 'demo'}
    with pytest.raises(
        ValueError,
        match="dims must be 2 for the dataset type 'demo', whose items are pictures; got 1",
    ):
        K.train(
            config,
            name='a',
            run_dir=tmp_path / 'a',
            end_step=1,
            demo_every=0,
            evaluate_n=0,
            show=False,
        )


def test_volumes_of_many_channels_from_a_tensor(tmp_path):
    # K.train with data from Python, and a config of the package's network.
    config = json.loads(shipped_config('config_blobs').read_text())
    config['model'].update(input_channels=5, sigma_data=1.0)
    config['dataset'] = {'type': 'python'}
    run = K.train(
        config,
        dataset=torch.randn(16, 5, 8, 8, 8),
        name='a',
        run_dir=tmp_path / 'a',
        end_step=1,
        batch_size=8,
        sample_n=2,
        demo_every=1,
        show=False,
    )
    assert Image.open(tmp_path / 'a' / 'a_demo_00000001.png').mode == 'RGB'
    assert K.sample(run.denoiser, [2, 5, 8, 8, 8], 2, seeds=0).shape == (2, 5, 8, 8, 8)
