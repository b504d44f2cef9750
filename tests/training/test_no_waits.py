"""Training steps send to the device, and read nothing back."""

from __future__ import annotations

import pytest
import torch
from waits import Marks, Waited, no_waits

import k_diffusion as K
from k_diffusion.training import Trainer

DENSITY = {'type': 'lognormal', 'mean': -0.6, 'std': 1.5}
SMALL = {
    'image_v1': {'depths': [1, 1], 'channels': [8, 16], 'self_attn_depths': [False, True]},
    'image_v2': {'depths': [1, 1], 'channels': [16, 16], 'self_attn_depths': [False, True]},
    'image_transformer_v2': {
        'depths': [1, 1],
        'widths': [16, 32],
        'd_ffs': [32, 64],
        'self_attns': [
            {'type': 'neighborhood', 'd_head': 8, 'kernel_size': 3},
            {'type': 'global', 'd_head': 8},
        ],
        'mapping_width': 16,
        'mapping_depth': 1,
    },
}


@pytest.fixture
def steps(monkeypatch):
    """The number of steps that were taken, none of which may wait."""
    positions, plain, marks = [], Trainer.train_step, Marks()

    def train_step(trainer, batches):
        weights = [*trainer.model.parameters(), *trainer.model.buffers()]
        marks.mark(*weights, *trainer.ema_model.parameters(), *trainer.ema_model.buffers())
        marks.mark(trainer.loss_by_noise.sums)
        with no_waits(marks):
            plain(trainer, batches)
        assert marks.is_marked(trainer._unread[-1][0])
        positions.append(trainer.step)

    monkeypatch.setattr(Trainer, 'train_step', train_step)
    return positions


def config_of(kind, **model):
    return {
        'model': {
            'type': kind,
            'input_channels': 1,
            'input_size': [8, 8],
            'patch_size': [1, 1] if 'transformer' in kind else 1,
            'sigma_data': 0.5,
            'sigma_min': 0.01,
            'sigma_max': 80.0,
            'sigma_sample_density': DENSITY,
            **({'mapping_out': 16} if kind != 'image_transformer_v2' else {}),
            **SMALL[kind],
            **model,
        },
        'dataset': {'type': 'synthetic', 'kind': 'blobs', 'n': 32},
        'optimizer': {'type': 'adamw', 'lr': 1e-3},
        'training': {'batch_size': 4},
    }


def train(folder, config, **settings):
    settings = {'end_step': 3, 'demo_every': 0, 'evaluate_n': 0, **settings}
    return K.train(config, name='run', run_dir=folder, **settings)


@pytest.mark.parametrize('kind', SMALL)
def test_networks(tmp_path, steps, kind):
    train(tmp_path, config_of(kind, augment_prob=0.5))
    assert steps == [1, 2, 3]


@pytest.mark.parametrize('optimizer', ['muon', 'sgd'])
def test_optimizers(tmp_path, steps, optimizer):
    config = config_of('image_v1')
    config['optimizer'] = {'type': optimizer, 'lr': 1e-3}
    train(tmp_path, config, grad_accum_steps=2, ema_snapshots=2, mixed_precision='bf16')
    assert steps == [1, 2, 3]


def test_conditions(tmp_path, steps):
    images = torch.randint(256, [32, 1, 8, 8], dtype=torch.uint8)
    config = config_of('image_v1', mapping_cond_dim=64, unet_cond_dim=2)
    config['dataset'] |= {'num_classes': 3, 'cond_dropout_rate': 0.3}
    config['conditions'] = [{'type': 'text', 'into': 'mapping'}, {'type': 'inpainting'}]
    data = K.data.Images(images, torch.arange(32) % 3, ['red', 'green', 'blue'])
    train(tmp_path, config, dataset=data)
    assert steps == [1, 2, 3]


def test_a_wait_is_refused(tmp_path, steps):
    """The device of the tests notices a loss that is read, a mask and a copy."""
    for read in (
        lambda x: x.mean().item(),
        lambda x: float(x.sum()),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x.cpu(),
        lambda x: x.to('cpu'),
        lambda x: x.tolist(),
        lambda x: torch.equal(x, x),
        lambda x: bool((x > 0).all()),
    ):

        def loss(denoiser, x, noise, sigma, read=read, **cond):
            each = denoiser.loss(x, noise, sigma, **cond)
            read(each.detach())
            return each

        with pytest.raises(Waited):
            train(tmp_path, config_of('image_v1'), loss=loss)
    assert not steps
