"""The ladder of configs by picture size: each is built and run on the meta device."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import k_diffusion as K
from k_diffusion.models.sizing import example, sizes

SIZES = (28, 32, 64, 128, 256)
LADDER = [
    *(f'config_{size}_{kind}' for size in SIZES for kind in ('unet', 'transformer')),
    'config_64_unet_v2',
    'config_64_flow',
    'config_256_jit',
    'config_icons_8',
    'config_icons_16',
]


def sections_of(name):
    config = K.config.load_config(
        Path(__file__).parents[2] / 'configs' / f'{name}.json', strict=True
    )
    return config, K.config.sections_of(config)


@pytest.mark.parametrize('name', LADDER)
def test_a_config_denoises_on_the_meta_device(name):
    config, sections = sections_of(name)
    classes = sections.dataset.num_classes
    with torch.device('meta'):
        denoiser = K.config.make_denoiser_wrapper(config)(K.config.make_model(config))
        (x, sigma), cond = example(sections.model, classes + 1 if classes else 0, batch_size=2)
        class_arguments = {'class_cond': cond['class_cond']} if classes else {}
        assert (
            denoiser(x, sigma, **class_arguments).shape
            == x.shape
            == (2, sections.model.input_channels, *sections.model.input_size)
        )
        assert denoiser.loss(x, torch.zeros_like(x), sigma, **class_arguments).shape == (2,)
    size = next(part for part in reversed(name.split('_')) if part.isdigit())
    assert config['model']['input_size'] == [int(size)] * 2
    # The noise levels of training cover those of sampling by and large: the middle lies between
    # them.
    middle = sections.density.quantile(torch.tensor([0.5]))
    assert config['model']['sigma_min'] < middle < config['model']['sigma_max']


@pytest.mark.parametrize('kind', ['unet', 'transformer'])
def test_larger_pictures_have_larger_networks(kind):
    network_sizes = [sizes(sections_of(f'config_{size}_{kind}')[1].model) for size in SIZES]
    for attribute in ('parameters', 'multiply_adds'):
        values = [getattr(of_size, attribute) for of_size in network_sizes]
        assert values == sorted(set(values))


def test_the_choices_are_made():
    for name, preconditioning, weighting in (
        ('config_64_flow', 'flow', 'flow'),
        ('config_256_jit', 'x0', 'flow'),
    ):
        config, _ = sections_of(name)
        denoiser = K.config.make_denoiser_wrapper(config)(torch.nn.Identity())
        assert (denoiser.preconditioning, config['model']['loss_weighting']) == (
            preconditioning,
            weighting,
        )
    config, sections = sections_of('config_64_unet_v2')
    assert (
        type(K.config.make_denoiser_wrapper(config)(torch.nn.Identity()))
        is K.layers.DenoiserWithVariance
    )
    assert sections.optimizer.weight_decay == 0
