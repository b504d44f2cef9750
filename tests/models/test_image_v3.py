"""The U-Net of gated branches: formula, conditions, layouts, derivatives, and what it refuses."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from k_diffusion.core.modules import checkpointing
from k_diffusion.models import MODELS, ImageDenoiserModelV3, ImageV3Config
from k_diffusion.models.growing import inherit
from k_diffusion.models.image_v3 import ConvBranch, normalize_pixels
from k_diffusion.training import Muon, MuonConfig

TINY = {
    'c_in': 2,
    'feats': 8,
    'depths': [1, 2],
    'channels': [8, 16],
    'self_attn_depths': [False, True],
}
SECTION = {
    'input_channels': 1,
    'input_size': [16, 16],
    'sigma_min': 0.02,
    'sigma_max': 40,
    'sigma_sample_density': {'type': 'lognormal', 'mean': 0, 'std': 1},
    'mapping_out': 8,
    'depths': [1, 1],
    'channels': [8, 16],
    'self_attn_depths': [False, True],
}


def tiny(**options):
    """A model whose gates and last layer are wide open, so that every part can be seen."""
    model = ImageDenoiserModelV3(**{**TINY, **options})
    for name, parameter in model.named_parameters():
        if 'modulation' in name or name.startswith('conv_out'):
            nn.init.normal_(parameter, std=0.3)
    return model.eval()


def x_sigma(batch=3, side=8):
    return torch.randn(batch, 2, side, side), torch.rand(batch) + 0.1


def test_pixels_are_normalized_one_by_one():
    x = torch.randn(2, 5, 3, 4, dtype=torch.float64) * 3 + 1
    y = normalize_pixels(x)
    torch.testing.assert_close(y.mean(1), torch.zeros(2, 3, 4, dtype=torch.float64))
    torch.testing.assert_close(
        y.var(1, correction=0), torch.ones(2, 3, 4, dtype=torch.float64), rtol=1e-4, atol=0
    )
    changed = x.clone()
    changed[:, :, 0, 0] += torch.randn(2, 5)
    assert torch.equal(normalize_pixels(changed)[:, :, 1:], y[:, :, 1:])


def test_a_branch_of_one_pixel_by_hand():
    """Width-3 convolutions of one pixel are their centres: matrices."""
    branch = ConvBranch(2, 3, 4).double()
    nn.init.normal_(branch.modulation.weight)
    x, cond = torch.randn(1, 4, 1, 1).double(), torch.randn(1, 3).double()
    scale, shift, gate = (branch.modulation.weight @ cond[0]).view(3, 4)
    v = x[0, :, 0, 0]
    v = (v - v.mean()) / (v.var(correction=0) + 1e-5).sqrt() * (1 + scale) + shift
    v = branch.conv_in.weight[:, :, 1, 1] @ v + branch.conv_in.bias
    v = branch.conv_out.weight[:, :, 1, 1] @ (v * v.sigmoid()) + branch.conv_out.bias
    torch.testing.assert_close(branch(x, cond)[0, :, 0, 0], x[0, :, 0, 0] + gate * v)


def test_a_fresh_model_answers_zero_and_learns():
    model, (x, sigma) = ImageDenoiserModelV3(**TINY), x_sigma()
    assert not model(x, sigma).any()
    optimizer, losses = torch.optim.Adam(model.parameters(), 1e-2), []
    for _ in range(40):
        loss = (model(x, sigma) - x.flip(3)).square().mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.3 * losses[0]
    assert all(p.grad.any() for p in model.parameters() if p.ndim > 1)


def test_every_condition_matters():
    model = tiny(mapping_cond_dim=3, unet_cond_dim=1, num_classes=4, has_variance=True)
    x, sigma = x_sigma()
    cond = {
        'mapping_cond': torch.randn(3, 3),
        'unet_cond': torch.randn(3, 1, 8, 8),
        'class_cond': torch.tensor([0, 1, 2]),
    }
    base = model(x, sigma, **cond)
    assert base.shape == x.shape
    for key, value in cond.items():
        other = 2 - value if key == 'class_cond' else 1 - value
        changed = model(x, sigma, **{**cond, key: other}) - base
        assert changed.abs().amax((1, 2, 3))[[0, 2]].min() > 1e-6, key
    assert (model(x, sigma + 1, **cond) - base).abs().max() > 1e-6
    out, logvar = model(x, sigma, return_variance=True, **cond)
    assert torch.equal(out, base) and logvar.shape == (3,) and logvar.std() > 0


def test_no_class_is_the_last_class():
    model, (x, sigma) = tiny(num_classes=4), x_sigma()
    null = model(x, sigma)
    assert torch.equal(null, model(x, sigma, class_cond=torch.full([3], 3)))
    assert not torch.equal(null, model(x, sigma, class_cond=torch.zeros(3, dtype=torch.long)))


@pytest.mark.parametrize('dims, size', [(1, (16,)), (2, (8, 20)), (3, (4, 8, 4))])
@pytest.mark.parametrize('patch_size', [1, 2])
def test_shapes_and_items(dims, size, patch_size):
    size = [side * patch_size for side in size]
    model = tiny(dims=dims, patch_size=patch_size).double()
    x, sigma = torch.randn(3, 2, *size).double(), torch.tensor([0.1, 1.0, 10.0]).double()
    out = model(x, sigma)
    assert out.shape == x.shape and out.std() > 0
    torch.testing.assert_close(model(x[1:2], sigma[1:2]), out[1:2])


def test_layouts_agree():
    model, (x, sigma) = tiny(), x_sigma()
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    torch.testing.assert_close(last(x, sigma), model(x, sigma))


def test_forward_derivatives():
    model, (x, sigma) = tiny().double(), (t.double() for t in x_sigma())
    tangent = torch.randn_like(x)
    exact = torch.func.jvp(lambda x: model(x, sigma), (x,), (tangent,))[1]
    difference = (model(x + 1e-6 * tangent, sigma) - model(x - 1e-6 * tangent, sigma)) / 2e-6
    torch.testing.assert_close(exact, difference, rtol=1e-5, atol=1e-6)
    assert exact.abs().max() > 0.01


def test_checkpointing_changes_no_gradient():
    model, (x, sigma) = tiny(dropout_rate=0.2).train(), x_sigma()

    def gradients():
        torch.manual_seed(1)
        return torch.autograd.grad(model(x, sigma).square().sum(), list(model.parameters()))

    plain = gradients()
    with checkpointing():
        for mine, expected in zip(gradients(), plain):
            torch.testing.assert_close(mine, expected)


def test_dropout_is_for_training():
    model, (x, sigma) = tiny(dropout_rate=0.3), x_sigma()
    assert torch.equal(model(x, sigma), model(x, sigma))
    model.train()
    assert not torch.equal(model(x, sigma), model(x, sigma))


def test_groups_of_parameters():
    model = ImageV3Config(**SECTION, augment_wrapper=False).build(num_classes=3)
    groups = model.param_groups(0.1)
    assert sum(len(g['params']) for g in groups) == len(list(model.parameters()))
    plain = {id(p) for p in groups[1]['params']}
    assert {
        id(model.embed_class.weight),
        id(model.conv_in.weight),
        id(model.conv_out.weight),
    } <= plain
    assert groups[1]['weight_decay'] == 0
    hidden = model.hidden_parameters()
    assert all(p.ndim == 4 for p in hidden) and id(model.conv_out.weight) not in map(id, hidden)
    assert isinstance(MuonConfig().make(model), Muon)


def test_growing_keeps_all_but_the_ends():
    section = {**SECTION, 'input_size': [32, 32], 'patch_size': 2}
    small, large = ImageV3Config(**SECTION).build(), ImageV3Config(**section).build()
    new = inherit(large, small)
    ends = ['conv_in.weight', 'conv_in.bias', 'conv_out.weight', 'conv_out.bias']
    assert sorted(new) == sorted(ends)
    for name, p in large.named_parameters():
        assert name in ends or torch.equal(p, small.state_dict()[name])


def test_pickles_and_registers():
    model, (x, sigma) = tiny(), x_sigma()
    assert torch.equal(pickle.loads(pickle.dumps(model))(x, sigma), model(x, sigma))
    assert MODELS['image_v3'] is ImageV3Config


@pytest.mark.parametrize(
    'options, cond, words',
    [
        (
            {},
            {'class_cond': torch.zeros(3, dtype=torch.long)},
            'class_cond must be left out for a model without num_classes',
        ),
        (
            {},
            {'mapping_cond': torch.zeros(3, 2)},
            'mapping_cond must be left out for a model without mapping_cond_dim',
        ),
        ({'unet_cond_dim': 1}, {}, 'unet_cond must be given if and only if .* 1; got None'),
        (
            {},
            {'return_variance': True},
            'return_variance must be false for a model without has_variance',
        ),
    ],
)
def test_conditions_it_was_not_built_for(options, cond, words):
    with pytest.raises(ValueError, match=words):
        tiny(**options)(*x_sigma(), **cond)


def test_inputs_it_cannot_take():
    with pytest.raises(ValueError, match=r'input must be \[B, 2, H, W\]'):
        tiny()(torch.randn(3, 1, 8, 8), torch.ones(3))
    with pytest.raises(ValueError, match='input_size must hold multiples of 2, .* got 8x9'):
        tiny()(torch.randn(3, 2, 8, 9), torch.ones(3))
    with pytest.raises(ValueError, match='mapping_out must be even, .* got 7'):
        ImageV3Config(**{**SECTION, 'mapping_out': 7})
