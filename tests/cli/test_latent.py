"""Latent diffusion and conditions from config to pictures, on a few digits for a few steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import k_diffusion as K
from k_diffusion.cli.entry import main
from k_diffusion.config.conditioning import null_conditions
from k_diffusion.core.images import save_image
from k_diffusion.tasks.autoencoder import train_autoencoder
from k_diffusion.tasks.run.held_out import split_items
from k_diffusion.tasks.run.settings import RunSettings
from k_diffusion.tasks.sample import sample
from k_diffusion.tasks.train import train

AUTOENCODER = {
    'model': {
        'type': 'autoencoder',
        'input_channels': 1,
        'input_size': [16, 16],
        'channels': [16, 16],
        'latent_channels': 2,
    },
    'dataset': {'type': 'demo'},
    'lr_sched': {'type': 'constant'},
    'training': {'batch_size': 8, 'end_step': 4},
}
SAMPLING = {'steps': 3, 'device': 'cpu', 'show': False}


def trained(config, path, **settings):
    usual = {'end_step': 2, 'device': 'cpu', 'demo_every': 2, 'sample_n': 4, 'evaluate_n': 0}
    return train(RunSettings(str(config), 'm', str(path), **{**usual, **settings}))


@pytest.fixture(scope='module')
def autoencoder(tmp_path_factory):
    return train_autoencoder(AUTOENCODER, 'ae', tmp_path_factory.mktemp('ae') / 'run', device='cpu')


def test_an_autoencoder_is_trained_and_gone_on_with(autoencoder, tmp_path, capsys):
    assert autoencoder.path.exists() and autoencoder.pictures.exists() and autoencoder.step == 4
    (tmp_path / 'c.json').write_text(json.dumps(AUTOENCODER))
    flags = [
        'train-autoencoder',
        '--config',
        str(tmp_path / 'c.json'),
        '--run-dir',
        str(tmp_path / 'run'),
        '--name',
        'ae',
        '--device',
        'cpu',
        '--json',
    ]
    assert main([*flags, '--end-step', '2']) == 0 and main(flags) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report['step'] == 4
    for name, value in K.core.weights.load_safetensors(report['path']).items():
        torch.testing.assert_close(
            value, K.core.weights.load_safetensors(autoencoder.path)[name], msg=name
        )


@pytest.fixture
def latent(tiny, autoencoder):
    """A config that is made latent by one key (the shape aside)."""
    return tiny(
        ('model', 'input_channels', 2),
        ('model', 'input_size', [8, 8]),
        ('model', 'augment_prob', 0.0),
        ('model', 'patch_size', 1),
        ('encoder', 'type', 'autoencoder'),
        ('encoder', 'location', str(autoencoder.path)),
    )


def test_a_run_reads_its_autoencoder_once(latent, tmp_path, monkeypatch):
    kind, read = K.encoders.ENCODERS['autoencoder'], []
    make = kind.make
    monkeypatch.setattr(kind, 'make', lambda *args: (read.append(args), make(*args))[1])
    assert trained(latent, tmp_path / 'run', demo_every=1).step == 2
    assert len(list((tmp_path / 'run').glob('m_demo_*.png'))) == 2 and len(read) == 1


def test_the_held_out_loss_of_latents_is_that_of_the_same_pictures_elsewhere(latent, tmp_path):
    digits = K.data.open_dataset(K.data.DemoConfig(), (16, 16), 1)
    indices = split_items(len(digits), 60)[0]
    same = K.data.Images(digits.images[indices], digits.labels[indices], digits.class_names)
    losses = []
    for name, which in ('number', 60), ('data', same):
        folder = tmp_path / name
        trained(latent, folder, held_out=which, lr=1e-30, evaluate_every=2, demo_every=0)
        line = json.loads((folder / 'm_log.jsonl').read_text().splitlines()[-1])
        losses.append([line['held_out_loss'], *line['held_out_loss_by_noise']])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4) and losses[0][0] > 0


def test_training_and_sampling_in_latents(latent, tmp_path, autoencoder):
    run = trained(latent, tmp_path / 'run')
    assert (tmp_path / 'run' / 'm_demo_00000002.png').exists()
    config = K.load_model(run.checkpoint)[1]
    assert len(config['encoder']['mean']) == 2 and config['encoder']['std'][0] > 0
    caches = list((tmp_path / 'run' / 'cache').glob('latents-*.safetensors'))
    assert len(caches) == 1
    write_time = caches[0].stat().st_mtime_ns
    samples = sample(run.checkpoint, 4, tmp_path / 'out', **SAMPLING)
    assert samples.images.shape == (4, 1, 16, 16) and samples.images.std() > 0.01
    in_parts = sample(run.checkpoint, 4, tmp_path / 'b', batch_size=3, **SAMPLING).images
    torch.testing.assert_close(in_parts, samples.images, atol=1e-5, rtol=1e-5)
    trained(latent, tmp_path / 'run', end_step=4)
    assert caches[0].stat().st_mtime_ns == write_time
    whole = trained(latent, tmp_path / 'whole', end_step=4)
    a, b = (K.load_model(path)[0].state_dict() for path in (tmp_path / 'run', whole.checkpoint))
    assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.slow
def test_latent_models_are_measured_as_pictures(latent, tmp_path, capsys):
    run = trained(
        latent, tmp_path / 'run', evaluate_n=32, evaluate_every=2, evaluate_with='classifier'
    )
    assert (tmp_path / 'run' / 'm_metrics.csv').exists()
    flags = ['--checkpoint', str(run.checkpoint), '-n', '32', '--device', 'cpu']
    assert (
        main(
            [
                'evaluate',
                *flags,
                '--extractor',
                'classifier',
                '--steps',
                '2',
                '--out',
                str(tmp_path / 'e'),
                '--json',
            ]
        )
        == 0
    )
    assert json.loads(capsys.readouterr().out.splitlines()[-1])['fid'] > 0
    assert (
        main(['likelihood', *flags]) == 1
        and 'must be of a model of pixels' in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    'changes, message',
    [
        ((('model', 'input_channels', 1),), 'model.input_channels must be 2'),
        ((('model', 'augment_prob', 0.1),), 'augment_prob must be 0'),
        ((('encoder', 'location', 'none.safetensors'),), 'no file at none.safetensors'),
        ((('encoder', 'type', 'autoencodr'),), "did you mean 'autoencoder'"),
    ],
)
def test_mistakes(latent, tmp_path, capsys, changes, message):
    config = json.loads(Path(latent).read_text())
    for section, key, value in changes:
        config[section][key] = value
    (tmp_path / 'wrong.json').write_text(json.dumps(config))
    flags = ['--run-dir', str(tmp_path / 'r'), '--device', 'cpu', '--end-step', '1']
    assert main(['train', '--config', str(tmp_path / 'wrong.json'), *flags]) == 1
    said = capsys.readouterr().err.splitlines()
    assert message in said[-1] and not any('Traceback' in line for line in said)


# Conditions


def conditional(tiny, tmp_path, conditions, **dims):
    path = tiny(*[('model', key, value) for key, value in dims.items()])
    config = json.loads(Path(path).read_text())
    config['conditions'] = conditions
    (tmp_path / 'conditional.json').write_text(json.dumps(config))
    return tmp_path / 'conditional.json'


def test_text_and_a_coarse_picture_from_config_to_samples(tiny, tmp_path):
    config = conditional(
        tiny,
        tmp_path,
        [{'type': 'text', 'template': 'the digit {}'}, {'type': 'super-resolution', 'factor': 4}],
        cross_cond_dim=64,
        cross_attn_depths=[False, True],
        unet_cond_dim=1,
    )
    run = trained(config, tmp_path / 'run', micro_batch='auto')
    save_image(tmp_path / 'p.png', torch.rand(1, 16, 16) * 2 - 1)
    ask = [f'super-resolution={tmp_path}/p.png', 'text=the digit 3', 'text=the digit 7']
    samples = sample(run.checkpoint, 4, tmp_path / 'out', cond=ask, guidance=3.0, **SAMPLING)
    assert samples.images.shape == (4, 1, 16, 16)
    with pytest.raises(ValueError, match='cond must hold a value .* give super-resolution=VALUE'):
        sample(run.checkpoint, 4, tmp_path / 'b', cond=['text=x'], **SAMPLING)
    with pytest.raises(ValueError, match='where the model has the types text, super-resolution'):
        sample(run.checkpoint, 4, tmp_path / 'b', cond=['txt=x'], **SAMPLING)


FAST = {'steps': 2, 'demo_every': 2, 'sample_n': 4, 'device': 'cpu', 'show': False}


def test_a_latent_model_is_distilled(latent, tmp_path):
    run = trained(latent, tmp_path / 'run')
    few = {'paths': 4, 'path_steps': 2, 'path_share': 0.5, **FAST}
    fast = K.distill(run.checkpoint, name='fast', run_dir=tmp_path / 'fast', guidance=2.0, **few)
    samples = sample(fast.checkpoint, 3, tmp_path / 'out', steps=1, device='cpu', show=False)
    assert samples.images.shape == (3, 1, 16, 16) and samples.images.std() > 0.01


@pytest.mark.parametrize('method', ['cmt', 'ect'])
def test_a_model_with_conditions_is_distilled(tiny, tmp_path, method):
    config = conditional(
        tiny,
        tmp_path,
        [{'type': 'text', 'template': 'the digit {}'}, {'type': 'super-resolution', 'factor': 4}],
        cross_cond_dim=64,
        cross_attn_depths=[False, True],
        unet_cond_dim=1,
    )
    run = trained(config, tmp_path / 'run')
    more = {'paths': 4, 'path_steps': 2, 'path_share': 1.0} if method == 'cmt' else {}
    settings = {'method': method, 'guidance': 2.0, **more, **FAST}
    fast = K.distill(run.checkpoint, name='fast', run_dir=tmp_path / 'fast', **settings)
    save_image(tmp_path / 'p.png', torch.rand(1, 16, 16) * 2 - 1)
    ask = [f'super-resolution={tmp_path}/p.png', 'text=the digit 3']
    one = {'cond': ask, 'steps': 1, 'device': 'cpu', 'show': False}
    assert sample(fast.checkpoint, 2, tmp_path / 'out', **one).images.isfinite().all()


def test_conditions_matter_and_guidance_takes_them_away(tiny, tmp_path):
    config = conditional(tiny, tmp_path, [{'type': 'text', 'into': 'mapping'}], mapping_cond_dim=64)
    run = trained(config, tmp_path / 'run', end_step=3)
    denoiser, _ = K.load_model(run.checkpoint)
    conditions = denoiser.experiment.conditions()
    a, b = (conditions[0][1].from_text(text, None) for text in ('1', '2'))
    x, sigma = torch.randn(1, 1, 16, 16), torch.tensor([1.0])
    label = {'class_cond': torch.tensor([3])}
    assert (denoiser(x, sigma, **a, **label) != denoiser(x, sigma, **b, **label)).any()
    null = null_conditions(10, conditions)
    guided = K.guidance.classifier_free(denoiser, null, 2.0)(x, sigma, **a, **label)
    nothing = denoiser(x, sigma, mapping_cond=torch.zeros(1, 64), class_cond=torch.tensor([10]))
    torch.testing.assert_close(
        guided, nothing + 2 * (denoiser(x, sigma, **a, **label) - nothing), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize(
    'conditions, dims, message',
    [
        (
            [{'type': 'text'}],
            {},
            "model.cross_cond_dim is 0, and the condition 'text' is 64 wide; set it to 64",
        ),
        (
            [{'type': 'super-resolution'}, {'type': 'inpainting'}],
            {'unet_cond_dim': 2},
            'only one may use unet_cond',
        ),
        (
            [{'type': 'inpaint'}],
            {},
            "conditions[0].type: unknown type 'inpaint', did you mean 'inpainting'",
        ),
        ([{'type': 'text', 'location': 'none.txt'}], {}, 'none.txt does not exist'),
    ],
)
def test_mistaken_conditions(tiny, tmp_path, capsys, conditions, dims, message):
    config = conditional(tiny, tmp_path, conditions, **dims)
    assert (
        main(
            [
                'train',
                '--config',
                str(config),
                '--run-dir',
                str(tmp_path / 'r'),
                '--device',
                'cpu',
                '--end-step',
                '1',
            ]
        )
        == 1
    )
    assert message in capsys.readouterr().err.splitlines()[-1]
