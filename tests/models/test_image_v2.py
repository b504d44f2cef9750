"""The magnitude-preserving U-Net: sizes, conditions, uncertainty, projection, and what it
refuses.
"""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from k_diffusion.core.modules import checkpointing
from k_diffusion.denoisers import DenoiserWithVariance
from k_diffusion.layers.magnitude import MPConv
from k_diffusion.models import MODELS, ImageDenoiserModelV2, ImageV2Config
from k_diffusion.models.growing import inherit

TINY = {
    'c_in': 2,
    'feats': 16,
    'depths': [1, 2],
    'channels': [32, 64],
    'self_attn_depths': [False, True],
}


def tiny(**options):
    """A model whose gains, which begin at zero, let everything through."""
    model = ImageDenoiserModelV2(**{**TINY, **options})
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith('gain'):
                parameter.fill_(1.0)
    return model


def x_sigma(batch=3, side=8):
    return torch.randn(batch, 2, side, side), torch.rand(batch) + 0.1


def test_activations_keep_their_size():
    model = ImageDenoiserModelV2(
        **{
            **TINY,
            'channels': [64, 64, 128],
            'depths': [2] * 3,
            'self_attn_depths': [False, True, True],
        }
    )
    torch.nn.init.ones_(model.out_gain)
    magnitudes = []
    for block in [*model.down, *model.up]:
        block.register_forward_hook(
            lambda module, inputs, output: magnitudes.append(output.square().mean().sqrt().item())
        )
    out = model(*x_sigma(8, 32))
    assert len(magnitudes) == 8 + 13 and min(magnitudes) > 0.7 and max(magnitudes) < 1.3
    assert 0.7 < out.square().mean().sqrt() < 1.3


def test_a_fresh_model_answers_zero_and_says_how_wrong_it_is():
    model, (x, sigma) = ImageDenoiserModelV2(**TINY), x_sigma()
    out, logvar = model(x, sigma, return_variance=True)
    assert out.shape == x.shape and not out.any() and logvar.shape == (3,)
    other = model(torch.randn_like(x), sigma, return_variance=True)[1]
    assert torch.equal(logvar, other) and logvar.std() > 0  # of the noise level alone
    denoiser = DenoiserWithVariance(model, 0.5)
    noise = torch.randn_like(x)
    target = denoiser.example(x, noise, sigma)[2].square().mean((1, 2, 3))
    torch.testing.assert_close(denoiser.loss(x, noise, sigma), (target / logvar.exp() + logvar) / 2)


def test_conditions():
    model, (x, sigma) = tiny(num_classes=4, mapping_cond_dim=9), x_sigma()
    none = model(x, sigma)
    assert torch.equal(
        none, model(x, sigma, class_cond=torch.tensor([3, 3, 3]))
    )  # the last class stands for none
    one = model(x, sigma, class_cond=torch.tensor([0, 3, 1]))
    assert torch.allclose(one[1], none[1], atol=1e-5) and not torch.allclose(
        one[0], none[0], atol=1e-3
    )
    conditioned = model(x, sigma, mapping_cond=torch.randn(3, 9))
    assert not torch.allclose(conditioned, none, atol=1e-3)
    assert torch.allclose(model(x, sigma, mapping_cond=torch.zeros(3, 9)), none, atol=1e-6)
    assert not torch.allclose(model(x, sigma * 3), none, atol=1e-3)
    with pytest.raises(
        ValueError, match='class_cond must be left out for a model without num_classes'
    ):
        tiny()(x, sigma, class_cond=torch.zeros(3, dtype=torch.long))
    with pytest.raises(
        ValueError, match='mapping_cond must be left out for a model without mapping_cond_dim'
    ):
        tiny()(x, sigma, mapping_cond=torch.zeros(3, 9))
    with pytest.raises(ValueError, match=r'input must be \[B, 2, H, W\]; got \[3, 1, 8, 8\]'):
        tiny()(x[:, :1], sigma)
    with pytest.raises(ValueError, match='input_size must hold multiples of 2, .* got 8x9'):
        tiny()(torch.randn(3, 2, 8, 9), sigma)


def test_an_item_of_a_batch_is_a_batch_of_one():
    model, (x, sigma) = tiny(patch_size=2).double().eval(), (t.double() for t in x_sigma())
    torch.testing.assert_close(model(x, sigma)[1:2], model(x[1:2], sigma[1:2]))


def test_forward_derivatives():
    model, (x, sigma) = tiny().double(), (t.double() for t in x_sigma())
    tangent = torch.randn_like(x)
    exact = torch.func.jvp(lambda x: model(x, sigma), (x,), (tangent,))[1]
    difference = (model(x + 1e-6 * tangent, sigma) - model(x - 1e-6 * tangent, sigma)) / 2e-6
    torch.testing.assert_close(exact, difference, rtol=1e-5, atol=1e-6)
    assert exact.abs().max() > 0.1


def test_checkpointing_changes_no_gradient():
    model, (x, sigma) = tiny(dropout_rate=0.2), x_sigma()

    def gradients():
        torch.manual_seed(1)
        out, logvar = model(x, sigma, return_variance=True)
        return torch.autograd.grad(out.square().sum() + logvar.sum(), list(model.parameters()))

    plain = gradients()
    with checkpointing():
        for mine, expected in zip(gradients(), plain):
            torch.testing.assert_close(mine, expected)


def test_projection_changes_lengths_and_no_answer():
    model, (x, sigma) = tiny(num_classes=3), x_sigma()
    before = model(x, sigma)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, MPConv):
                module.weight.mul_(3.0)
    assert model.proj_() is model
    torch.testing.assert_close(model(x, sigma), before, rtol=1e-2, atol=1e-3)
    sizes = [
        w.flatten(1).square().mean(1).sqrt()
        for w in (m.weight for m in model.modules() if isinstance(m, MPConv))
    ]
    assert torch.cat(sizes).sub(1).abs().max() < 1e-3


def test_half_precision():
    model, (x, sigma) = tiny(), x_sigma()
    exact = model(x, sigma)
    with torch.autocast('cpu', torch.bfloat16):
        cast = model(x, sigma)
    assert (cast - exact).abs().max() < 0.1 * exact.abs().max()
    half = copy.deepcopy(model).bfloat16()(x.bfloat16(), sigma)
    assert half.dtype == torch.bfloat16 and (half - exact).abs().max() < 0.1 * exact.abs().max()


@pytest.mark.parametrize(
    'copied', [lambda m: m, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))]
)
def test_parameter_groups(copied):
    model = copied(tiny(num_classes=3, mapping_cond_dim=9))
    (group,) = model.param_groups(0.02)
    assert (
        group['lr'] == 0.02
        and group['weight_decay'] == 0
        and len(group['params']) == len(list(model.parameters()))
    )
    names = {id(p): name for name, p in model.named_parameters()}
    hidden = [names[id(p)] for p in model.hidden_parameters()]
    assert hidden and all(
        name.startswith(('down', 'up')) and '.emb.' not in name and 'gain' not in name
        for name in hidden
    )


def test_config():
    section = {
        'type': 'image_v2',
        'input_channels': 1,
        'input_size': [16, 16],
        'patch_size': 2,
        'mapping_out': 32,
        'depths': [1, 1],
        'channels': [32, 64],
        'self_attn_depths': [False, True],
        'sigma_min': 0.02,
        'sigma_max': 80.0,
        'sigma_sample_density': {'type': 'lognormal', 'mean': -0.8, 'std': 1.6},
    }
    config = MODELS['image_v2'](**section)
    assert isinstance(config, ImageV2Config) and config.has_variance and config.augment_wrapper
    model = config.build(num_classes=11)
    assert model.emb_class.weight.shape == (32, 10) and model.emb_cond.weight.shape == (32, 9)
    with pytest.raises(ValueError, match='^channels must be .* got 100 at level 1'):
        ImageV2Config(**{**section, 'channels': [32, 100]})
    other = ImageV2Config(**{**section, 'patch_size': 4}).build()
    assert inherit(other, config.build()) == ['out_gain', 'conv_in.weight', 'conv_out.weight']
