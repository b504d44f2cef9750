"""The plain transformer: the original's numbers, its parameter groups in copies, its config."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch

from k_diffusion.core.modules import checkpointing
from k_diffusion.models.flops import flop_counter
from k_diffusion.models.image_transformer_v1 import (
    GEGLU,
    ImageTransformerV1Config,
    Patching,
    QKNorm,
    Unpatching,
    checkpoint_helper,
    round_to_power_of_two,
)

SECTION = {
    'input_channels': 3,
    'input_size': (8, 12),
    'patch_size': (2, 4),
    'depth': 2,
    'width': 64,
    'sigma_min': 0.01,
    'sigma_max': 80.0,
    'sigma_sample_density': {'type': 'cosine-interpolated'},
}


def make(num_classes=0, **changes):
    model = ImageTransformerV1Config(**{**SECTION, **changes}).build(num_classes)
    for parameter in model.parameters():  # the last layer of every branch begins at zero
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def test_golden(golden, golden_meta):
    tensors, meta = golden('image_transformer_v1'), golden_meta('image_transformer_v1')
    model = ImageTransformerV1Config(**meta['config']['model']).build()
    weights = {
        name.removeprefix('weights.'): t
        for name, t in tensors.items()
        if name.startswith('weights.')
    }
    # The order matters too: an optimizer's state goes by it.
    assert list(model.state_dict()) == [
        name.removeprefix('weights.') for name in meta['tensors'] if name.startswith('weights.')
    ]
    model.load_state_dict(weights)
    output = model(tensors['input.x'], tensors['input.sigma'])
    torch.testing.assert_close(output, tensors['output'], rtol=0, atol=1e-5)


def test_conditions():
    model, x, sigma = make(num_classes=4), torch.randn(2, 3, 8, 12), torch.tensor([0.3, 5.0])
    first = model(x, sigma, class_cond=torch.tensor([0, 3]))
    assert first.shape == x.shape
    assert not torch.allclose(first, model(x, sigma, class_cond=torch.tensor([1, 3])))
    none = model(x, sigma, aug_cond=torch.zeros(2, 9), class_cond=torch.tensor([0, 3]))
    assert torch.equal(first, none)
    assert not torch.allclose(
        first, model(x, sigma, aug_cond=torch.randn(2, 9), class_cond=torch.tensor([0, 3]))
    )
    with pytest.raises(ValueError, match='class_cond must be given'):
        model(x, sigma)
    with pytest.raises(ValueError, match='class_cond must be left out'):
        make()(x, sigma, class_cond=torch.tensor([0, 3]))
    with pytest.raises(
        ValueError, match='x must have sides that are multiples of 2 and 4; got 9x12'
    ):
        make()(torch.randn(2, 3, 9, 12), sigma)


def test_an_item_of_a_batch_is_a_batch_of_one():
    model, x, sigma = make().double(), torch.randn(3, 3, 8, 12).double(), torch.rand(3).double()
    torch.testing.assert_close(model(x, sigma)[1:2], model(x[1:2], sigma[1:2]))


@pytest.mark.parametrize(
    'copied', [lambda m: m, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))]
)
def test_param_groups_survive_copies(copied):
    model = copied(make(depth=1))
    names = {id(p): name for name, p in model.named_parameters()}
    decayed, plain, mapping_decayed, mapping_plain = groups = model.param_groups(base_lr=3e-4)
    assert [names[id(p)] for p in decayed['params']] == [
        'in_proj.weight',
        'blocks.0.self_attn.qkv_proj.weight',
        'blocks.0.self_attn.out_proj.weight',
        'blocks.0.ff.up_proj.weight',
        'blocks.0.ff.down_proj.weight',
        'out_proj.weight',
    ]
    assert 'time_in_proj.weight' in [names[id(p)] for p in plain['params']]
    assert all(
        names[id(p)].startswith('mapping.') or '.norm.linear.' in names[id(p)]
        for p in mapping_decayed['params']
    )
    assert all(names[id(p)].startswith('mapping.') for p in mapping_plain['params'])
    assert sorted(names) == sorted(id(p) for group in groups for p in group['params'])
    assert [group['lr'] for group in groups] == pytest.approx([3e-4, 3e-4, 1e-4, 1e-4])
    assert [group.get('weight_decay') for group in groups] == [None, 0.0, None, 0.0]
    assert [names[id(p)] for p in model.hidden_parameters()] == [
        names[id(p)] for p in decayed['params'][1:-1]
    ]


def test_the_scale_of_attention_is_bounded_without_losing_its_gradient():
    norm, x = QKNorm(2), torch.randn(1, 2, 5, 16)
    q = norm(x)
    cosine = torch.nn.functional.cosine_similarity(x[..., :1, :], x[..., 1:, :], dim=-1)
    torch.testing.assert_close(
        (q[..., :1, :] * q[..., 1:, :]).sum(-1) / 4, 10 * cosine, rtol=1e-4, atol=1e-4
    )
    torch.nn.init.constant_(norm.scale, 7.0)
    bounded = norm(x)
    assert torch.equal(norm.scale, torch.full((2,), 7.0))
    assert torch.autograd.grad(bounded.square().sum(), norm.scale)[0].min() > 1
    norm.proj_()
    torch.testing.assert_close(norm.scale, torch.full((2,), math.log(100)))
    torch.testing.assert_close(norm(x), bounded)


def test_proj_reaches_every_block():
    model = make()
    for block in model.blocks:
        torch.nn.init.constant_(block.self_attn.qk_norm.scale, 9.0)
    assert all(block.self_attn.qk_norm.scale.max() < 5 for block in model.proj_().blocks)


def test_patches_and_back():
    x = torch.arange(2 * 3 * 4 * 6.0).view(2, 3, 4, 6)
    tokens = Patching(3, (2, 3))(x)
    assert tokens.shape == (2, 4, 18)
    assert torch.equal(tokens[1, 3], x[1, :, 2:, 3:].flatten())
    assert torch.equal(Unpatching(3, (2, 3))(tokens, 4, 6), x)


def test_forward_gradient():
    model = make(depth=1).double()
    x, tangent, sigma = *torch.randn(2, 2, 3, 8, 12).double(), torch.tensor([0.3, 5.0]).double()
    _, derivative = torch.func.jvp(lambda x: model(x, sigma), (x,), (tangent,))
    difference = (model(x + 1e-5 * tangent, sigma) - model(x - 1e-5 * tangent, sigma)) / 2e-5
    torch.testing.assert_close(derivative, difference, rtol=1e-5, atol=1e-6)
    assert derivative.abs().max() > 0.1


def test_checkpointing_changes_no_gradient():
    model, x, sigma = make(dropout_rate=0.2), torch.randn(2, 3, 8, 12), torch.tensor([0.3, 5.0])

    def gradients():
        torch.manual_seed(1)
        return torch.autograd.grad(model(x, sigma).square().sum(), list(model.parameters()))

    plain = gradients()
    with checkpointing():
        for mine, expected in zip(gradients(), plain):
            torch.testing.assert_close(mine, expected)
    assert checkpoint_helper(lambda x, y: x + y, 1, y=2) == 3


def test_flops_are_counted():
    model = make(depth=1).to('meta')
    with flop_counter() as counter:
        model(torch.empty(1, 3, 8, 12, device='meta'), torch.empty(1, device='meta'))
    width, d_ff, tokens = 64, 176, 12
    block = tokens * (4 * width**2 + 3 * width * d_ff) + 2 * tokens**2 * width
    patches = 2 * tokens * width * 24
    mapping = 2 * width**2 + 2 * 3 * width * d_ff + 2 * width**2
    assert counter.flops == block + patches + mapping


def test_geglu():
    x = torch.randn(3, 8)
    torch.testing.assert_close(GEGLU()(x), x[:, :4] * torch.nn.functional.gelu(x[:, 4:]))


@pytest.mark.parametrize(
    ('width', 'd_ff'),
    [(64, 176), (128, 352), (256, 704), (384, 1024), (512, 1408), (768, 2048), (1024, 2816)],
)
def test_the_hidden_width_follows_the_width(width, d_ff):
    assert ImageTransformerV1Config(**{**SECTION, 'width': width}).d_ff == d_ff
    assert round_to_power_of_two(3 * d_ff, 0.0) == 3 * d_ff


@pytest.mark.parametrize(
    ('changes', 'sentence'),
    [
        ({'width': 96}, 'width must be a multiple of 64, .* got 96'),
        (
            {'input_size': (8, 10)},
            r'input_size must hold multiples of 2 and 4 with patch_size \[2, 4\]; got \[8, 10\]',
        ),
        ({'has_variance': True}, 'has_variance must be false for a transformer'),
        ({'skip_stages': 1}, 'skip_stages must be 0 for a transformer; got 1'),
        ({'depth': 0}, 'depth must be above 0; got 0'),
        ({'dropout_rate': 1.5}, 'dropout_rate must be from 0 to 1; got 1.5'),
        ({'sigma_max': 0.001}, 'sigma_max must be above sigma_min, .* got 0.001'),
        ({'patch_size': (0, 4)}, 'patch_size must be above 0; got 0'),
    ],
)
def test_the_config_refuses(changes, sentence):
    with pytest.raises(ValueError, match=f'^{sentence}'):
        ImageTransformerV1Config(**{**SECTION, **changes})
