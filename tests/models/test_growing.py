"""Growing: what is taken over, what is new, and what cannot grow."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from k_diffusion.augmentation import KarrasAugmentWrapper
from k_diffusion.models import (
    ImageDenoiserModelV1,
    ImageTransformerV1Config,
    ImageTransformerV2Config,
)
from k_diffusion.models.growing import inherit

LEVELS = {
    'c_in': 2,
    'feats_in': 8,
    'depths': [1, 1, 2],
    'channels': [8, 16, 16],
    'self_attn_depths': [False, False, True],
}
NOISE = {
    'input_channels': 1,
    'sigma_min': 0.01,
    'sigma_max': 80.0,
    'sigma_sample_density': {'type': 'cosine-interpolated'},
}
NEAR, FAR = (
    {'type': 'neighborhood', 'd_head': 16, 'kernel_size': 3},
    {'type': 'global', 'd_head': 16},
)


def unet(**options):
    return trained(ImageDenoiserModelV1(**{**LEVELS, **options}))


def hourglass(levels, **options):
    widths = [16, 32, 32][3 - levels :]
    return trained(
        ImageTransformerV2Config(
            **{
                **NOISE,
                'input_size': [8 * 2**levels] * 2,
                'patch_size': [2, 2],
                'depths': [1] * levels,
                'widths': widths,
                'self_attns': [NEAR] * (levels - 1) + [FAR],
                'mapping_width': 16,
                'mapping_depth': 1,
                **options,
            }
        ).build()
    )


def trained(network):
    """A network all of whose parameters have moved."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return network


def test_waking_a_level_keeps_what_was_learned():
    old, network = unet(skip_stages=2), unet(skip_stages=1)
    new = inherit(network, old)
    theirs, mine = old.state_dict(), network.state_dict()
    assert {name.split('.')[0] for name in new} == {'proj_in', 'proj_out', 'u_net'}
    assert {name.split('.')[1:3][-1] for name in new if name.startswith('u_net.d')} == {
        '1'
    }  # counted from the finest
    assert {name.split('.')[1:3][-1] for name in new if name.startswith('u_net.u')} == {
        '1'
    }  # counted from the deepest
    for name, value in theirs.items():
        if not name.startswith('proj') and not name.endswith('.kernel'):
            assert torch.equal(mine[name], value), name
    x, sigma = torch.randn(3, 2, 8, 8), torch.tensor([0.1, 1.0, 10.0])
    assert network(x, sigma).shape == x.shape
    # The levels in use before compute what they computed.
    cond = {'cond': network.condition(sigma, None, None)}
    features = torch.randn(3, 16, 4, 4)
    network.u_net.skip_stages = 2
    network.u_net.d_blocks[2].set_downsample(False)
    network.u_net.u_blocks[0].set_upsample(False)
    torch.testing.assert_close(network.u_net(features, cond), old.u_net(features, cond))


@pytest.mark.parametrize('change', [{'patch_size': 2}, {'patch_size': 2, 'skip_stages': 0}])
def test_other_patches_have_new_ends(change):
    old, network = unet(skip_stages=1), unet(**{'skip_stages': 1, **change})
    new = inherit(network, old)
    assert {'proj_in.weight', 'proj_out.weight', 'proj_in.bias', 'proj_out.bias'} <= set(new)
    assert any('d_blocks.0' in name for name in new) == ('skip_stages' in change)


def test_the_same_network_at_another_size_is_inherited_whole():
    for make in (unet, lambda: hourglass(2)):
        old, network = make(), make()
        assert inherit(network, old) == []
        assert all(
            torch.equal(a, b)
            for a, b in zip(old.state_dict().values(), network.state_dict().values())
        )


def test_an_outer_level_moves_the_others_inward():
    old, network = hourglass(2), hourglass(3)
    new = inherit(network, old)
    assert {'.'.join(name.split('.')[:2]) for name in new} == {
        'patch_in.proj',
        'down_levels.0',
        'up_levels.0',
        'merges.0',
        'splits.0',
        'out_norm.scale',
        'patch_out.proj',
    }
    x, pos, cond = torch.randn(2, 8, 8, 32), torch.rand(8, 8, 2), torch.randn(2, 16)
    torch.testing.assert_close(
        network.down_levels[1](x, pos, cond), old.down_levels[0](x, pos, cond)
    )
    torch.testing.assert_close(network.merges[1](x), old.merges[0](x))
    torch.testing.assert_close(network.mid_level(x, pos, cond), old.mid_level(x, pos, cond))
    sigma = torch.tensor([0.1, 10.0])
    torch.testing.assert_close(network.condition(sigma), old.condition(sigma))
    assert network(torch.randn(2, 1, 64, 64), sigma).shape == (2, 1, 64, 64)


@pytest.mark.parametrize('wrapped', [False, True])
def test_names_are_those_of_the_network_given(wrapped):
    wrap = (lambda model: KarrasAugmentWrapper(model)) if wrapped else (lambda model: model)
    network = wrap(unet(skip_stages=0, mapping_cond_dim=9))
    new = inherit(network, wrap(unet(skip_stages=1, mapping_cond_dim=9)))
    assert new and set(new) <= {name for name, _ in network.named_parameters()}


def test_the_plain_transformer_takes_other_patches():
    section = {**NOISE, 'input_size': [16, 16], 'depth': 2, 'width': 64}
    old, network = (
        trained(ImageTransformerV1Config(**section, patch_size=[p, p]).build()) for p in (2, 4)
    )
    assert inherit(network, old) == ['in_proj.weight', 'out_proj.weight']
    assert torch.equal(network.blocks[1].ff.up_proj.weight, old.blocks[1].ff.up_proj.weight)


@pytest.mark.parametrize(
    ('network', 'old', 'sentence'),
    [
        (
            lambda: unet(skip_stages=1),
            lambda: unet(skip_stages=0),
            'skip_stages must be at most that of the old network, 0; got 1',
        ),
        (
            lambda: unet(),
            lambda: hourglass(1),
            'the old network must be of the kind of the new one, ImageDenoiserModelV1; got '
            'ImageTransformerDenoiserModelV2',
        ),
        (
            lambda: KarrasAugmentWrapper(unet(mapping_cond_dim=9)),
            lambda: unet(mapping_cond_dim=9),
            'ImageDenoiserModelV1 with augmentation as an input; got ImageDenoiserModelV1',
        ),
        (
            lambda: unet(channels=[8, 16, 32]),
            lambda: unet(),
            r'must be \[16, 16, 3, 3\] in the new network, .* got \[32, 16, 3, 3\]',
        ),
        (
            lambda: hourglass(1),
            lambda: hourglass(2),
            'at least as many levels as the old one; got 1 fewer',
        ),
        (
            lambda: nn.Linear(1, 1),
            lambda: nn.Linear(1, 1),
            'a network to grow must be .* got Linear',
        ),
    ],
)
def test_what_cannot_grow_is_refused(network, old, sentence):
    with pytest.raises(ValueError, match=sentence):
        inherit(network(), old())
