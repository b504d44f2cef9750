"""Conditioning, attention, embeddings: each against its formula written out plainly."""

import inspect
import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from k_diffusion import layers
from k_diffusion.layers import AdaGN, CrossAttention2d, FourierFeatures, SelfAttention2d
from k_diffusion.layers.attention import attend
from k_diffusion.layers.layout import channels_last

SURFACE = json.loads((Path(__file__).parents[1] / 'golden' / 'surface.json').read_text())['layers']
COND = {'cond': torch.randn(2, 6)}


def fill(module):
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module


def norm(channels):
    return fill(AdaGN(6, channels, 2))


@pytest.mark.parametrize('name', sorted(SURFACE))
def test_the_original_signature(name):
    parameters = list(inspect.signature(getattr(layers, name)).parameters.values())
    theirs = [p.split('=')[0].split(':')[0] for p in SURFACE[name]]
    if theirs != ['*args', '**kwargs']:
        ours = [('*' if p.kind is p.VAR_POSITIONAL else '') + p.name for p in parameters]
        assert ours[: len(theirs)] == theirs
        defaults = {p.name: p.default for p in parameters}
        for parameter, default in (p.split('=') for p in SURFACE[name] if '=' in p):
            assert str(defaults[parameter]) == default.strip("'")


def test_adagn():
    x, module = torch.randn(2, 4, 3, 5), norm(4)
    weight, bias = module.mapper(COND['cond']).chunk(2, dim=1)
    expected = F.group_norm(x, 2) * (1 + weight)[..., None, None] + bias[..., None, None]
    torch.testing.assert_close(module(x, COND), expected)
    torch.testing.assert_close(module(channels_last(x), COND), expected)
    torch.testing.assert_close(
        AdaGN(6, 4, 2)(x, COND), F.group_norm(x, 2)
    )  # the mapper starts at zero


def plain_attention(q, k, v, heads, mask=0.0):
    """[B, N, C] each, head by head."""
    out = []
    for q1, k1, v1 in zip(q.chunk(heads, -1), k.chunk(heads, -1), v.chunk(heads, -1)):
        out.append((q1 @ k1.mT / math.sqrt(q1.shape[-1]) + mask).softmax(-1) @ v1)
    return torch.cat(out, -1)


@pytest.mark.parametrize('layout', [torch.Tensor.contiguous, channels_last])
def test_self_attention(layout):
    module = fill(SelfAttention2d(4, 2, norm))
    x = torch.randn(2, 4, 3, 5)
    q, k, v = module.qkv_proj(module.norm_in(x, COND)).flatten(2).mT.chunk(3, dim=-1)
    y = plain_attention(q, k, v, 2).mT.unflatten(2, (3, 5))
    torch.testing.assert_close(module(layout(x), COND), x + module.out_proj(y))


@pytest.mark.parametrize('padded', [False, True])
def test_cross_attention(padded):
    module = fill(CrossAttention2d(4, 7, 2, norm))
    x, tokens = torch.randn(2, 4, 3, 5), torch.randn(2, 6, 7)
    padding = torch.tensor([[0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 1, 1]])
    q = module.q_proj(module.norm_dec(x, COND)).flatten(2).mT
    k, v = module.kv_proj(module.norm_enc(tokens)).chunk(2, dim=-1)
    y = plain_attention(q, k, v, 2, padding[:, None] * -10000.0 if padded else 0.0).mT.unflatten(
        2, (3, 5)
    )
    cond = {**COND, 'cross': tokens} | ({'cross_padding': padding} if padded else {})
    torch.testing.assert_close(module(x, cond), x + module.out_proj(y))
    if padded:
        shorter = {'cond': COND['cond'][1:], 'cross': tokens[1:, :4]}
        torch.testing.assert_close(module(x, cond)[1:], module(x[1:], shorter))
        assert module(x, {**cond, 'cross_padding': torch.ones(2, 6)}).isfinite().all()


def test_attention_drops_out_in_training_alone():
    module = fill(SelfAttention2d(4, 2, norm, dropout_rate=0.5))
    x = torch.randn(2, 4, 8, 8)
    assert not torch.equal(module(x, COND), module(x, COND))
    module.eval()
    assert torch.equal(module(x, COND), module(x, COND))


def test_heads_must_share_the_channels():
    with pytest.raises(ValueError, match='multiple of the number of heads, 4; got 6'):
        SelfAttention2d(6, 4, norm)


def test_attention_has_a_forward_derivative():
    q, k, v = torch.randn(3, 2, 2, 5, 4, dtype=torch.float64)
    exact = torch.func.jvp(lambda q: attend(q, k, v), (q,), (torch.ones_like(q),))[1]
    torch.testing.assert_close(
        exact, (attend(q + 1e-6, k, v) - attend(q - 1e-6, k, v)) / 2e-6, rtol=0, atol=1e-8
    )


def test_fourier_features():
    module = FourierFeatures(2, 6, std=3.0)
    x = torch.randn(4, 2)
    angle = 2 * math.pi * x @ module.weight.T
    torch.testing.assert_close(module(x), torch.cat([angle.cos(), angle.sin()], dim=1))
    with torch.autocast('cpu', torch.bfloat16):
        torch.testing.assert_close(module(x), torch.cat([angle.cos(), angle.sin()], dim=1))
    assert module.half()(x).dtype == torch.float16
    with pytest.raises(ValueError, match='out_features must be even.*got 5'):
        FourierFeatures(1, 5)


def test_conditions_reach_only_those_who_take_them():
    class Scale(layers.ConditionedModule):
        def forward(self, input, cond):
            return input * cond['by']

    row = layers.ConditionedSequential(nn.Flatten(), Scale(), layers.UnconditionedModule(nn.ReLU()))
    torch.testing.assert_close(
        row(torch.tensor([[-1.0, 2.0]]), {'by': -3}), torch.tensor([[3.0, 0.0]])
    )
    block = layers.ConditionedResidualBlock(Scale(), skip=Scale())
    torch.testing.assert_close(block(torch.ones(1), {'by': 4}), torch.tensor([8.0]))
    torch.testing.assert_close(
        layers.ResidualBlock(nn.ReLU())(torch.tensor([-1.0, 2.0])), torch.tensor([-1.0, 4.0])
    )


def test_a_unet_hands_the_skips_up_in_reverse():
    class Down(nn.Module):
        def forward(self, x, cond):
            return x + 1

    class Up(nn.Module):
        def forward(self, x, cond, skip):
            skips.append(None if skip is None else skip.item())
            return x

    skips = []
    blocks = [Down(), Down(), Down()], [Up(), Up(), Up()]
    assert layers.UNet(*blocks)(torch.zeros(1), {}).item() == 3 and skips == [None, 2, 1]
    skips.clear()
    assert layers.UNet(*blocks, skip_stages=1)(torch.zeros(1), {}).item() == 2 and skips == [
        None,
        1,
    ]
