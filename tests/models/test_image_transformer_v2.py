"""The hourglass transformer: the original's numbers, each kind of attention against a plain one,
copies, config.
"""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from k_diffusion.core.modules import checkpointing, n_params
from k_diffusion.layers.neighborhood import neighborhood_mask
from k_diffusion.models.axial_rope import make_axial_pos
from k_diffusion.models.flops import flop_counter
from k_diffusion.models.image_transformer_v2 import (
    ImageTransformerV2Config,
    NeighborhoodSelfAttentionBlock,
    SelfAttentionBlock,
    ShiftedWindowSelfAttentionBlock,
    apply_rotary_emb,
    apply_rotary_emb_,
    apply_window_attention,
    scale_for_cosine_sim_qkv,
    shifted_unwindow,
    shifted_window,
    tag_param,
)
from k_diffusion.models.windows import rearrange, window_order

KINDS = [
    {'type': 'shifted-window', 'd_head': 16, 'window_size': 4},
    {'type': 'neighborhood', 'd_head': 16, 'kernel_size': 3},
    {'type': 'none'},
    {'type': 'global', 'd_head': 16},
]
SECTION = {
    'input_channels': 1,
    'input_size': (16, 32),
    'patch_size': (1, 2),
    'depths': [2, 1, 1, 1],
    'widths': [32, 32, 48, 64],
    'self_attns': KINDS,
    'mapping_width': 32,
    'mapping_depth': 1,
    'sigma_min': 0.01,
    'sigma_max': 80.0,
    'sigma_sample_density': {'type': 'cosine-interpolated'},
}
ONE_LEVEL = {'depths': [1], 'widths': [32], 'self_attns': KINDS[-1:]}


def config(**changes):
    return ImageTransformerV2Config(**{**SECTION, **changes})


def fill_zeros(module):
    """The last layer of every branch begins at zero; here it must do something."""
    for parameter in module.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return module


def make(num_classes=0, **changes):
    return fill_zeros(config(**changes).build(num_classes))


@pytest.mark.parametrize('name', ['image_transformer_v2_global', 'image_transformer_v2_window'])
def test_golden(name, golden, golden_meta):
    tensors, meta = golden(name), golden_meta(name)
    classes = meta['config']['dataset']['num_classes']
    model = ImageTransformerV2Config(**meta['config']['model']).build(
        num_classes=classes + 1 if classes else 0
    )
    # The order matters too: an optimizer's state goes by it.
    assert list(model.state_dict()) == [
        name.removeprefix('weights.') for name in meta['tensors'] if name.startswith('weights.')
    ]
    model.load_state_dict(
        {
            name.removeprefix('weights.'): t
            for name, t in tensors.items()
            if name.startswith('weights.')
        }
    )
    inputs = {
        name.removeprefix('input.'): t for name, t in tensors.items() if name.startswith('input.')
    }
    torch.testing.assert_close(model(**inputs), tensors['output'], rtol=0, atol=1e-5)


def block_of(kind, *options):
    return fill_zeros(kind(32, 16, 8, *options)).double()


def inputs_of(height, width):
    return (
        torch.randn(2, height, width, 32).double(),
        make_axial_pos(height, width).double().view(height, width, 2),
        torch.randn(2, 8).double(),
    )


def dense(block, mask, x, pos, cond):
    """Compute the block as attention of all tokens to all under a mask."""
    q, k, v = block.project(block.norm(x, cond).flatten(1, 2), pos.flatten(0, 1))
    y = F.scaled_dot_product_attention(q, k, v, mask, scale=1.0)
    return x + block.out_proj(y.transpose(1, 2).reshape(x.shape))


def test_neighbourhood_attention_is_masked_attention():
    block, (x, pos, cond) = block_of(NeighborhoodSelfAttentionBlock, 5), inputs_of(9, 12)
    torch.testing.assert_close(
        block(x, pos, cond), dense(block, neighborhood_mask(9, 12, 5), x, pos, cond)
    )


def test_a_neighbourhood_of_everything_is_global_attention():
    block, (x, pos, cond) = block_of(NeighborhoodSelfAttentionBlock, 7), inputs_of(7, 7)
    everywhere = SelfAttentionBlock(32, 16, 8).double()
    everywhere.load_state_dict(block.state_dict())
    torch.testing.assert_close(block(x, pos, cond), everywhere(x, pos, cond))


@pytest.mark.parametrize('shift', [0, 2])
def test_shifted_windows_are_masked_attention(shift):
    height, width, size = 8, 12, 4
    block, (x, pos, cond) = (
        block_of(ShiftedWindowSelfAttentionBlock, size, shift),
        inputs_of(height, width),
    )
    # Moved down and right by the shift, the windows begin at multiples of the size; a window that
    # the border cuts is two.
    rows, columns = ((torch.arange(n) + shift) // size for n in (height, width))
    of_token = (rows[:, None] * 100 + columns).flatten()
    mask = of_token[:, None] == of_token
    torch.testing.assert_close(block(x, pos, cond), dense(block, mask, x, pos, cond))
    q, k, v = torch.randn(3, 2, 2, height, width, 16).double()
    expected = F.scaled_dot_product_attention(
        q.flatten(2, 3), k.flatten(2, 3), v.flatten(2, 3), mask, scale=0.3
    )
    torch.testing.assert_close(
        apply_window_attention(size, shift, q, k, v, scale=0.3), expected.view(q.shape)
    )


def test_windows_and_back():
    x = torch.arange(2 * 8 * 12 * 3.0).view(2, 8, 12, 3)
    windows = shifted_window(4, 1, x)
    assert windows.shape == (2, 2, 3, 4, 4, 3)
    assert torch.equal(windows[:, 0, 0, 1:, 1:], x[:, :3, :3])
    assert torch.equal(shifted_unwindow(1, windows), x)


@pytest.mark.parametrize('shift', [0, 1])
def test_the_order_of_windows(shift):
    x = torch.randn(2, 8, 12, 3, dtype=torch.float64, requires_grad=True)
    order, back = window_order((8, 12), 4, shift)
    cut = rearrange(x.flatten(1, 2), order, back)
    assert torch.equal(cut, shifted_window(4, shift, x).reshape(2, 96, 3))
    assert torch.equal(rearrange(cut, back, order).view(x.shape), x)
    weight = torch.randn_like(cut)
    assert torch.equal(torch.autograd.grad(cut, x, weight)[0].flatten(1, 2)[:, order], weight)
    assert torch.autograd.gradgradcheck(
        lambda x: rearrange(x, order, back) ** 3,
        x.detach()[:1, :, :, :1].flatten(1, 2).requires_grad_(),
    )
    tangent = torch.randn_like(x).flatten(1, 2)
    assert torch.equal(
        torch.func.jvp(
            lambda x: rearrange(x, order, back), (x.detach().flatten(1, 2),), (tangent,)
        )[1],
        tangent[:, order],
    )


def test_cosine_similarity_and_rotation():
    qkv, theta = torch.randn(2, 5, 3, 4, 16).double(), torch.randn(5, 4, 4).double()
    scaled = scale_for_cosine_sim_qkv(qkv, torch.tensor([1.0, 4.0, 9.0, 16.0]).double(), 1e-6)
    q, k, v = scaled.unbind(-3)
    expected = F.cosine_similarity(qkv[:, :, 0], qkv[:, :, 1], dim=-1) * torch.tensor(
        [1.0, 4.0, 9.0, 16.0]
    )
    torch.testing.assert_close((q * k).sum(-1), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(v, qkv[:, :, 2])
    rotated_q = apply_rotary_emb(q, theta)
    pairs = torch.complex(q[..., :4], q[..., 4:8]) * torch.polar(torch.ones_like(theta), theta)
    torch.testing.assert_close(rotated_q, torch.cat([pairs.real, pairs.imag, q[..., 8:]], dim=-1))
    torch.testing.assert_close(apply_rotary_emb(rotated_q, theta, conj=True), q)


def test_rotation_in_place():
    x, theta, weight = (
        torch.randn(5, 4, 16).requires_grad_(),
        torch.randn(5, 4, 4),
        torch.randn(5, 4, 16),
    )
    y = x * 1
    assert apply_rotary_emb_(y, theta) is y
    torch.testing.assert_close(y, apply_rotary_emb(x, theta))
    gradients = [
        torch.autograd.grad((out * weight).sum(), x)[0] for out in (y, apply_rotary_emb(x, theta))
    ]
    torch.testing.assert_close(*gradients)


def test_conditions():
    model = make(num_classes=4, mapping_cond_dim=3)
    x, sigma, class_cond, mapping_cond = (
        torch.randn(2, 1, 16, 32),
        torch.tensor([0.3, 5.0]),
        torch.tensor([0, 3]),
        torch.randn(2, 3),
    )
    first = model(x, sigma, class_cond=class_cond, mapping_cond=mapping_cond)
    assert first.shape == x.shape
    for other in (
        {'aug_cond': torch.randn(2, 9)},
        {'class_cond': 1 - class_cond.clamp(max=1)},
        {'mapping_cond': -mapping_cond},
    ):
        assert not torch.allclose(
            first,
            model(x, sigma, **{'class_cond': class_cond, 'mapping_cond': mapping_cond, **other}),
        )
    with pytest.raises(ValueError, match='class_cond must be given'):
        model(x, sigma, mapping_cond=mapping_cond)
    with pytest.raises(ValueError, match='mapping_cond must be given'):
        model(x, sigma, class_cond=class_cond)
    with pytest.raises(
        ValueError,
        match='x must have sides that are multiples of 8 and 16; got 16x24',
    ):
        model(x[..., :24], sigma, class_cond=class_cond, mapping_cond=mapping_cond)


def test_an_item_of_a_batch_is_a_batch_of_one():
    model, x, sigma = make().double(), torch.randn(3, 1, 16, 32).double(), torch.rand(3).double()
    torch.testing.assert_close(model(x, sigma)[1:2], model(x[1:2], sigma[1:2]))


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    model, x, sigma = make(), torch.randn(2, 1, 16, 32), torch.tensor([0.3, 5.0])
    expected = model(x, sigma)
    half = copy.deepcopy(model).to(dtype)(x.to(dtype), sigma)
    with torch.autocast('cpu', dtype):
        mixed = model(x, sigma)
    assert half.dtype == dtype
    for output in (half, mixed):
        assert (output - expected).norm() < 0.06 * expected.norm()


@pytest.mark.parametrize(
    'copied', [lambda m: m, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))]
)
def test_param_groups_survive_copies(copied):
    model = copied(make(**ONE_LEVEL, mapping_depth=2))
    names = {id(p): name for name, p in model.named_parameters()}
    groups = model.param_groups()
    assert [len(group['params']) for group in groups] == [6, 4, 6, 4]
    assert sorted(names) == sorted(id(p) for group in groups for p in group['params'])
    assert [group['lr'] for group in groups] == pytest.approx([5e-4, 5e-4, 5e-4 / 3, 5e-4 / 3])
    assert [group.get('weight_decay') for group in groups] == [None, 0.0, None, 0.0]
    assert {names[id(p)] for p in groups[1]['params']} == {
        'time_in_proj.weight',
        'aug_in_proj.weight',
        'mid_level.0.self_attn.scale',
        'out_norm.scale',
    }
    assert [names[id(p)].split('.')[-2] for p in model.hidden_parameters()] == [
        'qkv_proj',
        'out_proj',
        'up_proj',
        'down_proj',
    ]


def test_hidden_parameters_are_the_matrices_between_levels_too():
    model = make()
    hidden = {id(p) for p in model.hidden_parameters()}
    names = {name for name, p in model.named_parameters() if id(p) in hidden}
    assert all(p.ndim == 2 for p in model.hidden_parameters())
    assert {
        'merges.0.proj.weight',
        'splits.2.proj.weight',
        'up_levels.2.0.ff.up_proj.weight',
    } < names
    assert not any(
        name.startswith(('patch_', 'mapping', 'time_', 'aug_')) or '.norm.' in name
        for name in names
    )


def test_a_parameter_can_be_tagged_by_itself():
    model = make(**ONE_LEVEL)
    model.out_norm.scale = tag_param(torch.nn.Parameter(torch.ones(32)), 'wd')
    assert any(p is model.out_norm.scale for p in model.param_groups()[0]['params'])


def test_forward_gradient_through_every_kind_of_attention():
    model = make().double()
    x, tangent, sigma = *torch.randn(2, 1, 1, 16, 32).double(), torch.tensor([0.7]).double()
    _, derivative = torch.func.jvp(lambda x: model(x, sigma), (x,), (tangent,))
    difference = (model(x + 1e-5 * tangent, sigma) - model(x - 1e-5 * tangent, sigma)) / 2e-5
    torch.testing.assert_close(derivative, difference, rtol=1e-4, atol=1e-5)
    assert derivative.abs().max() > 0.1


def test_checkpointing_changes_no_gradient():
    model, x, sigma = make(dropout_rate=0.2), torch.randn(1, 1, 16, 32), torch.tensor([0.3])

    def gradients():
        torch.manual_seed(1)
        return torch.autograd.grad(model(x, sigma).square().sum(), list(model.parameters()))

    plain = gradients()
    with checkpointing():
        for mine, expected in zip(gradients(), plain):
            torch.testing.assert_close(mine, expected)


def test_flops_are_counted():
    model = make(**ONE_LEVEL, d_ffs=[40]).to('meta')
    with flop_counter() as counter:
        model(torch.empty(1, 1, 16, 32, device='meta'), torch.empty(1, device='meta'))
    width, d_ff, tokens, m = 32, 40, 256, 32
    block = tokens * (4 * width**2 + 3 * width * d_ff) + 2 * tokens**2 * width
    patches = 2 * tokens * width * 2
    mapping = 2 * m**2 + 3 * m * 3 * m + 2 * m * width
    assert counter.flops == block + patches + mapping


def test_importing_leaves_the_compiler_as_it_is():
    code = (
        'import sys, k_diffusion.models.image_transformer_v1, '
        'k_diffusion.models.image_transformer_v2; '
        "dynamo = sys.modules.get('torch._dynamo'); assert dynamo is None or not "
        'dynamo.config.suppress_errors'
    )
    subprocess.run([sys.executable, '-c', code], check=True)


def test_the_size_of_the_original_s_mnist_transformer():
    with torch.device('meta'):
        model = config(
            input_size=(28, 28),
            patch_size=(4, 4),
            depths=[8],
            widths=[256],
            self_attns=None,
            mapping_width=256,
            mapping_depth=2,
        ).build(num_classes=11)
    assert n_params(model) == 9_187_360


def test_defaults_are_filled_in():
    section = {
        k: v
        for k, v in SECTION.items()
        if k not in ('self_attns', 'mapping_depth', 'mapping_width')
    }
    filled = ImageTransformerV2Config(
        **{
            **section,
            'input_size': (128, 128),
            'patch_size': (2, 2),
            'depths': [1, 1],
            'widths': [64, 128],
            'dropout_rate': 0.1,
            'augment_wrapper': True,
        }
    )
    assert filled.self_attns == [
        {'type': 'neighborhood', 'd_head': 64, 'kernel_size': 7},
        {'type': 'global', 'd_head': 64},
    ]
    assert (filled.d_ffs, filled.dropout_rate, filled.mapping_d_ff) == ([192, 384], [0.1, 0.1], 768)
    assert filled.augment_wrapper is False
    assert config(dropout_rate=None).dropout_rate == [0.0] * 4


@pytest.mark.parametrize(
    ('changes', 'sentence'),
    [
        (
            {'input_size': (16, 24)},
            r'input_size must hold multiples of 8 and 16 with patch_size \[1, 2\] and 4 levels; '
            r'got \[16, 24\]',
        ),
        ({'depths': [1, 1]}, 'depths must have as many entries as widths, 4, .* got 2'),
        ({'dropout_rate': [0.1]}, 'dropout_rate must have as many entries .* got 1'),
        ({'dropout_rate': -1.0}, 'dropout_rate must be from 0 to 1; got -1.0'),
        ({'widths': [32, 32, 48, 60]}, r'self_attns\[3\].d_head must be .* the width, 60; got 16'),
        (
            {'self_attns': [*KINDS[:3], {'type': 'local'}]},
            r"self_attns\[3\].type: unknown type 'local'",
        ),
        (
            {'self_attns': [*KINDS[:3], {'type': 'globl'}]},
            r"self_attns\[3\].type: unknown type 'globl', did you mean 'global'\?",
        ),
        (
            {'self_attns': [{'type': 'shifted-window', 'd_head': 16}, *KINDS[1:]]},
            r'self_attns\[0\].window_size must be a whole number; got None',
        ),
        (
            {'self_attns': [{**KINDS[0], 'window_size': 5}, *KINDS[1:]]},
            r'self_attns\[0\].window_size must divide .* got 5',
        ),
        (
            {'self_attns': [KINDS[0], {**KINDS[1], 'kernel_size': 4}, *KINDS[2:]]},
            r'self_attns\[1\].kernel_size must be odd',
        ),
        (
            {'self_attns': [KINDS[0], {**KINDS[1], 'kernal': 3}, *KINDS[2:]]},
            r"self_attns\[1\].kernal: unknown key 'kernal'",
        ),
        (
            {'self_attns': [KINDS[0], {**KINDS[1], 'kernel_size': 9}, *KINDS[2:]]},
            r'self_attns\[1\].kernel_size must be at most 8 on a grid of 8x8 tokens',
        ),
        ({'has_variance': True}, 'has_variance must be false for a transformer'),
        ({'mapping_width': 31}, 'mapping_width must be even, .* got 31'),
    ],
)
def test_the_config_refuses(changes, sentence):
    with pytest.raises(ValueError, match=f'^{sentence}'):
        config(**changes)


def test_a_backend_is_of_the_machine_and_not_of_the_weights():
    near = {'type': 'neighborhood', 'd_head': 16, 'kernel_size': 3}
    kinds = [KINDS[0], {**near, 'backend': 'tiles'}, *KINDS[2:]]
    assert config(self_attns=kinds).self_attns[1] == kinds[1]
    assert config(self_attns=[KINDS[0], near, *KINDS[2:]]).self_attns[1] == near
    model = config(self_attns=kinds).build()
    model.load_state_dict(make().state_dict())
    with pytest.raises(ValueError, match=r"^self_attns\[1\].backend: unknown backend 'tile'"):
        config(self_attns=[KINDS[0], {**near, 'backend': 'tile'}, *KINDS[2:]])
