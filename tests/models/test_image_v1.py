"""The U-Net: the original's numbers and keys, its conditions, growing, layouts, and what it
refuses.
"""

import copy
import inspect
import json
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from k_diffusion.core.modules import checkpointing
from k_diffusion.models import MODELS, ImageDenoiserModelV1, ImageV1Config, image_v1

SURFACE = json.loads((Path(__file__).parents[1] / 'golden' / 'surface.json').read_text())[
    'models.image_v1'
]
GOLDEN = ['image_v1_plain', 'image_v1_patch2_cross', 'image_v1_skip1']
TINY = {
    'c_in': 2,
    'feats_in': 8,
    'depths': [1, 2],
    'channels': [8, 16],
    'self_attn_depths': [False, True],
}


def awake(model):
    """The model with random numbers where it starts with zeros, so that every part of it can be
    seen.
    """
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return model


def tiny(**options):
    return awake(ImageDenoiserModelV1(**{**TINY, **options})).eval()


def x_sigma(batch=3, side=8):
    return torch.randn(batch, 2, side, side), torch.rand(batch) + 0.1


@pytest.fixture(params=GOLDEN)
def case(request, golden, golden_meta):
    """The tensors of a golden case and its model config."""
    return golden(request.param), golden_meta(request.param)['config']['model']


def inputs(tensors):
    cond = {
        key.removeprefix('input.'): value
        for key, value in tensors.items()
        if key.startswith('input.')
    }
    cond['mapping_cond'] = torch.cat(
        [cond.pop('aug_cond'), *([cond['mapping_cond']] if 'mapping_cond' in cond else [])],
        dim=1,
    )
    return cond


def weights(tensors):
    return {
        key.removeprefix('weights.inner_model.'): value
        for key, value in tensors.items()
        if key.startswith('weights.')
    }


def test_old_weights_give_the_old_numbers(case):
    tensors, config = case
    model = ImageV1Config(**config).build()
    model.load_state_dict(weights(tensors), strict=True)
    for layout in (torch.contiguous_format, torch.channels_last):
        out = model.eval().to(memory_format=layout)(**inputs(tensors))
        torch.testing.assert_close(out, tensors['output'], rtol=0, atol=1e-5)


def test_keys_and_shapes_are_the_originals(case):
    tensors, config = case
    ours = {key: value.shape for key, value in ImageV1Config(**config).build().state_dict().items()}
    assert ours == {key: value.shape for key, value in weights(tensors).items()}


@pytest.mark.parametrize('name', sorted(SURFACE))
def test_the_original_signature(name):
    ours = list(inspect.signature(getattr(image_v1, name)).parameters.values())
    for parameter, theirs in zip(ours, SURFACE[name]):
        key, _, default = theirs.partition('=')
        assert parameter.name == key and (not default or str(parameter.default) == default)
    assert all(p.default is not p.empty for p in ours[len(SURFACE[name]) :])


def test_an_item_alone_is_the_item_of_a_batch():
    model, (x, sigma) = tiny(num_classes=4).double(), x_sigma()
    classes = torch.tensor([0, 2, 3])
    together = model(x.double(), sigma.double(), class_cond=classes)
    alone = model(x[1:2].double(), sigma[1:2].double(), class_cond=classes[1:2])
    torch.testing.assert_close(alone, together[1:2], rtol=1e-12, atol=1e-12)


def test_every_condition_matters():
    model = tiny(
        mapping_cond_dim=3,
        unet_cond_dim=1,
        cross_cond_dim=5,
        cross_attn_depths=[False, True],
        num_classes=4,
        has_variance=True,
    )
    x, sigma = x_sigma()
    cond = {
        'mapping_cond': torch.randn(3, 3),
        'unet_cond': torch.randn(3, 1, 8, 8),
        'cross_cond': torch.randn(3, 6, 5),
        'cross_cond_padding': torch.zeros(3, 6),
        'class_cond': torch.tensor([0, 1, 2]),
    }
    changed = {
        'class_cond': torch.tensor([1, 2, 0]),
        'cross_cond_padding': (torch.arange(6) > 2).expand(3, 6),
    }
    base = model(x, sigma, **cond)
    assert base.shape == x.shape and base.std() > 1e-3
    for key, value in cond.items():
        other = model(x, sigma, **{**cond, key: changed.get(key, 1 - value)})
        assert (other - base).abs().amax((1, 2, 3)).min() > 1e-6, key
    assert (model(x, sigma + 1, **cond) - base).abs().max() > 1e-6
    out, logvar = model(x, sigma, return_variance=True, **cond)
    assert torch.equal(out, base) and logvar.shape == (3,) and logvar.std() > 0


def test_no_class_is_the_last_class():
    model, (x, sigma) = tiny(num_classes=4), x_sigma()
    assert model.class_emb.weight.shape == (4, 8)
    null = model(x, sigma)
    assert torch.equal(null, model(x, sigma, class_cond=torch.full([3], 3)))
    assert not torch.equal(null, model(x, sigma, class_cond=torch.zeros(3, dtype=torch.long)))


def test_no_mapping_condition_is_a_zero_one():
    model, (x, sigma) = tiny(mapping_cond_dim=3), x_sigma()
    assert torch.equal(model(x, sigma), model(x, sigma, mapping_cond=torch.zeros(3, 3)))


@pytest.mark.parametrize('patch_size', [1, 2])
def test_rectangles(patch_size):
    model = tiny(patch_size=patch_size)
    x = torch.randn(2, 2, 8, 20, dtype=torch.float64)
    model.double()
    out = model(x, torch.ones(2, dtype=torch.float64))
    assert out.shape == x.shape
    transposed = copy.deepcopy(model)
    with torch.no_grad():
        for module in transposed.modules():
            if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
                module.weight.copy_(module.weight.mT.clone())
        if patch_size == 2:  # the four pixels of a patch, transposed
            order = torch.tensor([0, 2, 1, 3, 4, 6, 5, 7])
            transposed.proj_in.weight.copy_(transposed.proj_in.weight[:, order])
            transposed.proj_out.weight.copy_(transposed.proj_out.weight[order])
            transposed.proj_out.bias.copy_(transposed.proj_out.bias[order])
    torch.testing.assert_close(transposed(x.mT, torch.ones(2, dtype=torch.float64)), out.mT)


def test_dropout_is_for_training():
    model, (x, sigma) = tiny(dropout_rate=0.3), x_sigma()
    assert torch.equal(model(x, sigma), model(x, sigma))
    assert torch.equal(model(x, sigma), awake(_like(model, dropout_rate=0.0))(x, sigma))
    model.train()
    assert not torch.equal(model(x, sigma), model(x, sigma))


def _like(model, **options):
    other = ImageDenoiserModelV1(**{**TINY, **options}).eval()
    other.load_state_dict(model.state_dict())
    return other


def test_a_fresh_model_answers_zero_and_learns():
    model, (x, sigma) = ImageDenoiserModelV1(**TINY), x_sigma()
    assert not model(x, sigma).any()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(30):
        loss = (model(x, sigma) - x.flip(3)).square().mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.3 * losses[0]
    assert all(p.grad.any() for p in model.parameters() if p.ndim > 1)


def test_layout_is_kept_between_the_projections():
    model, formats = tiny(patch_size=2, channels=[8, 16]), []
    for module in model.u_net.modules():
        module.register_forward_hook(
            lambda module, args, out: formats.append(out) if out.ndim == 4 else None
        )
    model(*x_sigma())
    assert len(formats) > 40 and all(
        out.is_contiguous(memory_format=torch.channels_last) for out in formats
    )


@pytest.mark.parametrize('dtype, tolerance', [(torch.bfloat16, 0.05), (torch.float16, 0.01)])
def test_half_precision(dtype, tolerance):
    model, (x, sigma) = tiny(num_classes=3), x_sigma()
    exact = model(x, sigma)
    with torch.autocast('cpu', torch.bfloat16):
        cast = model(x, sigma)
    assert cast.dtype == torch.bfloat16 and (cast - exact).abs().max() < 0.05 * exact.abs().max()
    half = copy.deepcopy(model).to(dtype)(x.to(dtype), sigma)
    assert half.dtype == dtype and (half - exact).abs().max() < tolerance * exact.abs().max()


def test_forward_derivatives_and_their_batches():
    model = tiny(cross_cond_dim=5, cross_attn_depths=[True, False]).double()
    x, sigma = (t.double() for t in x_sigma())
    tangent = torch.randn_like(x)

    def f(x):
        return model(x, sigma, cross_cond=torch.ones(3, 2, 5, dtype=torch.float64))

    exact = torch.func.jvp(f, (x,), (tangent,))[1]
    torch.testing.assert_close(
        exact, (f(x + 1e-6 * tangent) - f(x - 1e-6 * tangent)) / 2e-6, rtol=0, atol=1e-7
    )
    batch = torch.func.vmap(lambda t: torch.func.jvp(f, (x,), (t,))[1])(
        torch.stack([tangent, 2 * tangent])
    )
    torch.testing.assert_close(batch, torch.stack([exact, 2 * exact]))


def test_checkpointing_changes_no_gradient():
    model = awake(
        ImageDenoiserModelV1(
            **TINY, dropout_rate=0.2, cross_cond_dim=5, cross_attn_depths=[True, False]
        )
    )
    x, sigma = x_sigma()
    sizes = []

    def gradients():
        torch.manual_seed(1)
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: sizes.append(t.numel()) or t, lambda t: t
        ):
            out = model(x, sigma, cross_cond=torch.ones(3, 2, 5)).square().sum()
        saved = sum(sizes)
        sizes.clear()
        return torch.autograd.grad(out, list(model.parameters())), saved

    plain, all_saved = gradients()
    with checkpointing():
        recomputed, few_saved = gradients()
    for mine, expected in zip(recomputed, plain):
        torch.testing.assert_close(mine, expected)
    assert few_saved < all_saved / 3


def growable(**options):
    levels = {'depths': [1, 1, 1], 'channels': [8, 8, 16], 'self_attn_depths': [False, False, True]}
    return ImageDenoiserModelV1(**{**TINY, **levels, **options})


def test_growing_wakes_levels_without_touching_the_others():
    small = awake(growable(skip_stages=1))
    old = {key: value.clone() for key, value in small.state_dict().items()}
    grown = small.set_skip_stages(0)
    assert grown is small
    reference = growable(skip_stages=0)
    assert {k: v.shape for k, v in grown.state_dict().items()} == {
        k: v.shape for k, v in reference.state_dict().items()
    }
    reference.load_state_dict(grown.state_dict(), strict=True)
    same_keys = [key for key in old if not key.startswith('proj')]
    assert all(torch.equal(old[key], grown.state_dict()[key]) for key in same_keys)
    x, sigma = x_sigma(side=16)
    assert not grown.proj_out.weight.any() and grown(x, sigma).shape == x.shape
    assert grown.set_skip_stages(2)(*x_sigma(side=4)).shape == (3, 2, 4, 4)


def test_growing_keeps_dtype_and_takes_patches():
    model = growable().double()
    assert model.set_patch_size(2) is None
    model.set_skip_stages(1).set_skip_stages(0)
    assert {t.dtype for t in model.state_dict().values()} == {torch.float64}
    assert model.proj_in.weight.shape == (8, 8, 1, 1) and model.proj_out.weight.shape == (
        8,
        8,
        1,
        1,
    )
    x = torch.randn(1, 2, 16, 16, dtype=torch.float64)
    assert awake(model)(x, torch.ones(1)).std() > 0


def test_rested_levels_are_not_run():
    model, (x, sigma) = awake(growable(skip_stages=1)), x_sigma()
    before = model(x, sigma)
    for block in (model.u_net.d_blocks[0], model.u_net.u_blocks[-1]):
        for parameter in block.parameters():
            nn.init.constant_(parameter, float('nan'))
    assert torch.equal(model(x, sigma), before)


def test_parameter_groups_cover_all_once_and_survive_copies():
    original = tiny(
        mapping_cond_dim=3, num_classes=4, cross_cond_dim=5, cross_attn_depths=[False, True]
    )
    for model in (original, copy.deepcopy(original), pickle.loads(pickle.dumps(original))):
        decayed, rest = model.param_groups(1e-3)
        named = {id(p): name for name, p in model.named_parameters()}
        assert sorted(map(id, decayed['params'] + rest['params'])) == sorted(named)
        assert (
            decayed['lr'] == rest['lr'] == 1e-3
            and rest['weight_decay'] == 0
            and 'weight_decay' not in decayed
        )
        assert all(
            named[id(p)].endswith('.weight') and named[id(p)].startswith(('mapping', 'u_net'))
            for p in decayed['params']
        )
        assert {'mapping_cond.weight', 'mapping.0.weight'} <= {
            named[id(p)] for p in decayed['params']
        }
        assert {'class_emb.weight', 'proj_in.weight', 'proj_out.weight'} <= {
            named[id(p)] for p in rest['params']
        }
        hidden = {named[id(p)] for p in model.hidden_parameters()}
        assert hidden and all(
            'mapper' not in name and name.endswith('.weight') and name.startswith('u_net')
            for name in hidden
        )
        assert {name.split('.')[-2] for name in hidden} == {
            '2',
            '6',
            'skip',
            'qkv_proj',
            'out_proj',
            'q_proj',
            'kv_proj',
        }


@pytest.mark.parametrize(
    'options, message',
    [
        ({'depths': [1]}, 'depths must have as many entries as channels, 2; got 1'),
        ({'self_attn_depths': [True] * 3}, 'self_attn_depths must have as many .* got 3'),
        (
            {'channels': [8, 100]},
            'channels must be divisible into groups of about 32; got 100 at level 1',
        ),
        (
            {'channels': [8, 224]},
            'divisible into attention heads of about 64; got 224 at level 1 and 8 above it',
        ),
        ({'channels': [8, 0]}, r'channels and depths .* got \[8, 0\]'),
        ({'skip_stages': 2}, 'skip_stages must be from 0 to 1 with 2 levels; got 2'),
        ({'cross_cond_dim': 5}, 'cross_attn_depths and cross_cond_dim .* got None and 5'),
        ({'cross_attn_depths': [True, False]}, r'got \[True, False\] and 0'),
        ({'feats_in': 7}, 'out_features must be even, .* got 7'),
    ],
)
def test_what_cannot_be_built_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ImageDenoiserModelV1(**{**TINY, **options})


@pytest.mark.parametrize(
    'shape, cond, message',
    [
        ((3, 1, 8, 8), {}, r'input must be \[B, 2, H, W\]; got \[3, 1, 8, 8\]'),
        (
            (3, 2, 8, 9),
            {},
            'input_size must hold multiples of 2, at least 4, .* got 8x9',
        ),
        ((3, 2, 2, 8), {}, 'at least 4'),
        (
            (3, 2, 8, 8),
            {'class_cond': torch.zeros(3, dtype=torch.long)},
            'class_cond must be left out for a model without num_classes',
        ),
        (
            (3, 2, 8, 8),
            {'mapping_cond': torch.zeros(3, 3)},
            'mapping_cond must be left out for a model without mapping_cond_dim',
        ),
        (
            (3, 2, 8, 8),
            {'unet_cond': torch.zeros(3, 1, 8, 8)},
            'unet_cond must be left out for a model without unet_cond_dim',
        ),
        (
            (3, 2, 8, 8),
            {'return_variance': True},
            'return_variance must be false for a model without has_variance',
        ),
    ],
)
def test_what_does_not_fit_the_model_is_refused(shape, cond, message):
    with pytest.raises(ValueError, match=message):
        tiny()(torch.zeros(shape), torch.ones(3), **cond)


def test_a_missing_condition_is_named():
    with pytest.raises(ValueError, match='unet_cond must be given'):
        tiny(unet_cond_dim=1)(*x_sigma())


CONFIG = {
    'type': 'image_v1',
    'input_channels': 1,
    'input_size': [28, 28],
    'mapping_out': 256,
    'depths': [2, 4, 4],
    'channels': [128, 128, 256],
    'self_attn_depths': [False, False, True],
    'sigma_min': 0.01,
    'sigma_max': 80,
    'sigma_sample_density': {'type': 'cosine-interpolated'},
}


def test_config_defaults_and_building():
    config = MODELS['image_v1'](**CONFIG)
    assert (config.patch_size, config.augment_wrapper, config.has_variance) == (1, True, False)
    assert (config.loss_weighting, config.sigma_data) == ('karras', 1.0)
    with torch.device('meta'):
        model = config.build(num_classes=11)
    assert model.mapping_cond.weight.shape == (256, 9) and model.class_emb.weight.shape == (11, 256)
    assert 19.5e6 < sum(p.numel() for p in model.parameters()) < 19.7e6
    assert ImageV1Config(**{**CONFIG, 'augment_wrapper': False}).build().mapping_cond is None


@pytest.mark.parametrize(
    'change, message',
    [
        ({'input_channels': 0}, '^input_channels must be above 0; got 0'),
        ({'mapping_out': 9}, '^mapping_out must be even, .* got 9'),
        ({'sigma_max': 0.001}, '^sigma_max must be above sigma_min, .* got 0.001'),
        ({'dropout_rate': 1.5}, '^dropout_rate must be from 0 to 1; got 1.5'),
        ({'unet_cond_dim': -1}, '^unet_cond_dim must be at least 0; got -1'),
        ({'input_size': [28, 30]}, '^input_size must hold multiples of 4, .* got 28x30'),
        ({'depths': [2, 4]}, '^depths must have as many entries as channels, 3; got 2'),
    ],
)
def test_config_errors_begin_with_their_key(change, message):
    with pytest.raises(ValueError, match=message):
        ImageV1Config(**{**CONFIG, **change})
