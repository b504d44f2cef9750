"""The cost of a network, computed without building it, against the real network."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from k_diffusion.core.modules import n_params
from k_diffusion.models import MODELS
from k_diffusion.models.flops import flop_counter
from k_diffusion.models.sizing import activation_bytes, example, sizes

NOISE = {
    'input_channels': 2,
    'input_size': [16, 32],
    'sigma_min': 0.01,
    'sigma_max': 80.0,
    'sigma_sample_density': {'type': 'cosine-interpolated'},
}
UNET = {
    'mapping_out': 32,
    'depths': [1, 2],
    'channels': [32, 64],
    'self_attn_depths': [False, True],
}
ATTENTIONS = [
    {'type': 'shifted-window', 'd_head': 16, 'window_size': 4},
    {'type': 'neighborhood', 'd_head': 16, 'kernel_size': 3},
    {'type': 'global', 'd_head': 16},
]
SECTIONS = {
    'image_v1': UNET,
    'image_v1, every condition': {
        'type': 'image_v1',
        **UNET,
        'cross_attn_depths': [True, False],
        'cross_cond_dim': 5,
        'unet_cond_dim': 3,
        'mapping_cond_dim': 7,
        'patch_size': 2,
        'has_variance': True,
    },
    'image_v2': UNET,
    'image_v3': {**UNET, 'mapping_cond_dim': 7, 'unet_cond_dim': 3, 'has_variance': True},
    'image_transformer_v1': {'patch_size': [2, 4], 'depth': 2, 'width': 64},
    'image_transformer_v2': {
        'patch_size': [1, 2],
        'depths': [2, 1, 1],
        'widths': [32, 32, 64],
        'self_attns': ATTENTIONS,
        'mapping_width': 32,
        'mapping_cond_dim': 7,
    },
}


def section_of(name):
    values = {'type': name.split(',')[0], **NOISE, **SECTIONS[name]}
    return MODELS[values['type']](**values)


@pytest.mark.parametrize('name', SECTIONS)
@pytest.mark.parametrize('num_classes', [0, 4])
def test_agrees_with_the_real_network(name, num_classes):
    section = section_of(name)
    estimate = sizes(section, num_classes)
    network = section.build(num_classes=num_classes)
    inputs, cond = example(section, num_classes)
    assert estimate.parameters == n_params(network)
    with flop_counter() as counter:
        network(*inputs, **cond)
    assert estimate.multiply_adds == counter.flops > 0
    assert estimate.activation_bytes == pytest.approx(
        activation_bytes(network, inputs, cond), rel=0.2
    )


@pytest.mark.parametrize('name', SECTIONS)
def test_counts_what_torch_counts_on_the_meta_device(name):
    section = section_of(name)
    with torch.device('meta'):
        inputs, cond = example(section, 4)
        network = section.build(num_classes=4)
        with FlopCounterMode(display=False) as theirs:
            network(*inputs, **cond)
    assert theirs.get_total_flops() == 2 * sizes(section, 4).multiply_adds


def test_activations_of_a_batch_are_those_of_its_pictures():
    section = section_of('image_v1')
    network = section.build()
    one, eight = (activation_bytes(network, *example(section, batch_size=n)) for n in (1, 8))
    assert eight == pytest.approx(8 * one, rel=0.05)
    estimate = sizes(section)
    assert estimate.training_bytes(8) == 20 * estimate.parameters + 8 * estimate.activation_bytes
    # Kept is at least the input of each convolution of the finest level: four of them, in 32
    # channels.
    assert estimate.activation_bytes > 4 * 32 * 16 * 32 * 4


@pytest.mark.parametrize(
    ('name', 'change', 'sentence'),
    [
        (
            'image_v1',
            {'depths': [1, 10**9]},
            r'^depths must be at most 1,000; got \[1, 1000000000\]',
        ),
        ('image_v1', {'channels': [32, 64 * 10**6]}, '^channels must be at most 131,072; got'),
        ('image_v1', {'input_size': [2**20, 2**20]}, '^input_size must be at most 16,384; got'),
        (
            'image_v1',
            {'depths': [1] * 99},
            '^depths must have at most 16 entries; got 99',
        ),
        ('image_transformer_v1', {'depth': 10**6}, '^depth must be at most 1,000; got 1000000'),
        (
            'image_transformer_v2',
            {'mapping_width': 2**40},
            '^mapping_width must be .* got 1099511627776',
        ),
    ],
)
def test_absurd_sizes_are_refused_before_anything_is_made(name, change, sentence):
    values = {'type': name, **NOISE, **SECTIONS[name], **change}
    with pytest.raises(ValueError, match=sentence):
        MODELS[name](**values)
