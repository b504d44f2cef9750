from __future__ import annotations

import copy
import importlib.util
import io

import pytest
import torch
from torch import nn

from k_diffusion.core.extras import MissingExtra
from k_diffusion.training import OPTIMIZERS, Muon, make_optimizer
from k_diffusion.training.muon import newton_schulz
from k_diffusion.training.optim import match_strides


def backward(net, seed):
    torch.manual_seed(seed)
    net(torch.randn(4, 1, 8, 8), torch.rand(4) + 0.1).square().mean().backward()


def test_newton_schulz_makes_orthogonal():
    for shape in ((3, 16, 16), (2, 8, 40), (2, 40, 8)):
        u = newton_schulz(torch.randn(shape) * 7)
        assert u.shape == shape
        singular = torch.linalg.svdvals(u)
        assert singular.min() > 0.6 and singular.max() < 1.25
    g = torch.randn(1, 12, 20)
    remaining, _, right = torch.linalg.svd(g, full_matrices=False)
    assert (newton_schulz(g) * (remaining @ right)).sum() / 12 > 0.8


def test_newton_schulz_of_a_stack_is_that_of_its_items():
    g = torch.randn(5, 6, 9)
    torch.testing.assert_close(newton_schulz(g), torch.cat([newton_schulz(one[None]) for one in g]))
    assert torch.equal(newton_schulz(torch.zeros(1, 4, 4)), torch.zeros(1, 4, 4))


def test_a_step_is_the_formula_convolutions_flattened():
    conv, linear = nn.Parameter(torch.randn(6, 4, 3, 3)), nn.Parameter(torch.randn(5, 7))
    before = conv.detach().clone(), linear.detach().clone()
    optimizer = Muon(
        [{'params': [conv, linear], 'muon': True}], lr=0.1, momentum=0.9, weight_decay=0.2
    )
    averages = [torch.zeros(6, 36), torch.zeros(5, 7)]
    expected = [before[0].flatten(1), before[1]]
    for _ in range(3):
        grads = [torch.randn(6, 36), torch.randn(5, 7)]
        conv.grad, linear.grad = grads[0].view_as(conv), grads[1]
        for i, g in enumerate(grads):
            averages[i] = 0.9 * averages[i] + 0.1 * g
            u = newton_schulz((0.9 * averages[i] + 0.1 * g)[None])[0]
            expected[i] = (1 - 0.1 * 0.2) * expected[i] - 0.1 * 0.2 * max(g.shape) ** 0.5 * u
        optimizer.step()
    torch.testing.assert_close(conv.detach().flatten(1), expected[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(linear.detach(), expected[1], rtol=1e-4, atol=1e-5)


def test_memory_format_does_not_matter():
    weight = torch.randn(4, 3, 3, 3)
    results = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        p = nn.Parameter(weight.clone().to(memory_format=memory_format))
        optimizer = Muon([{'params': [p], 'muon': True}])
        for seed in range(2):
            p.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed)).to(
                memory_format=memory_format
            )
            optimizer.step()
        results.append(p.detach())
    assert not torch.allclose(results[0], weight)
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize('fused', [False, True])
def test_the_other_groups_are_adamw(toy, fused):
    ours, theirs = toy.TinyNet(), toy.TinyNet()
    theirs.load_state_dict(ours.state_dict())
    options = {'lr': 3e-3, 'betas': (0.8, 0.9), 'eps': 1e-6, 'weight_decay': 0.3, 'fused': fused}
    pairs = (
        (ours, Muon(ours.parameters(), **options)),
        (theirs, torch.optim.AdamW(theirs.parameters(), **options)),
    )
    for seed in range(4):
        for net, optimizer in pairs:
            optimizer.zero_grad()
            backward(net, seed)
            optimizer.step()
    for p, q in zip(ours.parameters(), theirs.parameters()):
        torch.testing.assert_close(p, q)


def test_vectors_are_refused():
    with pytest.raises(ValueError, match=r'shape \[3\]'):
        Muon([{'params': [nn.Parameter(torch.zeros(3))], 'muon': True}])


@pytest.mark.parametrize('name', ['adamw', 'sgd', 'muon'])
def test_state_round_trip_is_exact(toy, name):
    config = OPTIMIZERS[name](**({'momentum': 0.9} if name == 'sgd' else {}))
    net = toy.TinyNet().to(memory_format=torch.channels_last)
    optimizer = make_optimizer(net, config)
    for seed in range(3):
        backward(net, seed)
        optimizer.step()
    other = copy.deepcopy(net)
    resumed = make_optimizer(other, config)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    match_strides(resumed)
    start = copy.deepcopy(list(net.parameters()))
    for seed in range(3, 6):
        for one, opt in (net, optimizer), (other, resumed):
            opt.zero_grad()
            backward(one, seed)
            opt.step()
    for p, q, s in zip(net.parameters(), other.parameters(), start):
        assert torch.equal(p, q)
        assert not torch.equal(p, s)


def test_match_strides_follows_the_parameter(toy):
    net = toy.TinyNet()
    optimizer = make_optimizer(net, OPTIMIZERS['adamw']())
    backward(net, 0)
    optimizer.step()
    last = toy.TinyNet().to(memory_format=torch.channels_last)
    resumed = make_optimizer(last, OPTIMIZERS['adamw']())
    resumed.load_state_dict(optimizer.state_dict())
    match_strides(resumed)
    state, was = resumed.state[last.conv.weight], optimizer.state[net.conv.weight]
    assert state['exp_avg'].stride() == last.conv.weight.stride() != was['exp_avg'].stride()
    assert torch.equal(state['exp_avg'], was['exp_avg'])


def test_groups_keep_their_factors_and_their_decay(toy):
    net = toy.TinyNet()
    optimizer = make_optimizer(net, OPTIMIZERS['muon'](lr=4e-3, adamw_lr=2e-3, weight_decay=0.1))
    result = [
        (g['muon'], g['lr'], g['weight_decay'], len(g['params'])) for g in optimizer.param_groups
    ]
    assert result == [(True, 4e-3, 0.1, 2), (False, 1e-3, 0.0, 7)]
    halved = make_optimizer(net, OPTIMIZERS['muon'](lr=4e-3, adamw_lr=2e-3), lr=2e-3)
    assert [g['lr'] for g in halved.param_groups] == [2e-3, 5e-4]
    adamw = make_optimizer(
        net, OPTIMIZERS['adamw'](lr=1e-3, betas=(0.9, 0.99), weight_decay=0.2), lr=1e-2
    )
    assert [(g['lr'], g['weight_decay'], g['betas']) for g in adamw.param_groups] == [
        (1e-2, 0.2, (0.9, 0.99)),
        (5e-3, 0.0, (0.9, 0.99)),
    ]


@pytest.mark.parametrize(
    ('name', 'options', 'key'),
    [
        ('adamw', {'lr': -1.0}, 'lr'),
        ('adamw', {'betas': (0.9, 1.0)}, 'betas'),
        ('sgd', {'nesterov': True}, 'momentum'),
        ('muon', {'lr': 0.0}, 'lr'),
        ('muon', {'momentum': 1.0}, 'momentum'),
        ('muon', {'ns_steps': 0}, 'ns_steps'),
        ('adam8bit', {'weight_decay': float('nan')}, 'weight_decay'),
    ],
)
def test_values_are_checked(name, options, key):
    with pytest.raises(ValueError, match=f'^{key} must be .*; got'):
        OPTIMIZERS[name](**options)


@pytest.mark.skipif(
    importlib.util.find_spec('bitsandbytes') is not None, reason='bitsandbytes is installed'
)
def test_adam8bit_names_its_package(toy):
    with pytest.raises(MissingExtra, match='pip install bitsandbytes'):
        make_optimizer(toy.TinyNet(), OPTIMIZERS['adam8bit']())
