"""The warm-up of new layers: a learning rate of their own, to the last digit, and exact
resuming.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from k_diffusion.training import Muon, NewLayersWarmup


def network():
    return nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2)).double()


def train(model, optimizer, steps, before=lambda step: None):
    for step in range(steps):
        before(step)
        loss = (
            (model(torch.linspace(-1, 1, 12, dtype=torch.float64).view(4, 3)) - 1).square().mean()
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def adamw(groups):
    return torch.optim.AdamW(groups, lr=0.01, weight_decay=0.1)


def muon(groups):
    return Muon([{**group, 'muon': False} for group in groups], lr=0.01, weight_decay=0.1)


@pytest.mark.parametrize(
    'make', [adamw, muon, lambda groups: torch.optim.SGD(groups, lr=0.01, momentum=0.9)]
)
def test_equals_a_learning_rate_that_rises_for_the_new_layers(make):
    model = network()
    other = copy.deepcopy(model)
    warmup = NewLayersWarmup(model, ['2.weight', '2.bias'], 5)
    optimizer = make([{'params': list(model.parameters())}])
    warmup.attach(optimizer)
    train(model, optimizer, 8)
    by_hand = make(
        [{'params': list(other[0].parameters())}, {'params': list(other[2].parameters())}]
    )
    rates = [group['lr'] for group in by_hand.param_groups]
    train(
        other,
        by_hand,
        8,
        lambda step: by_hand.param_groups[1].update(lr=rates[1] * min(1, (step + 1) / 5)),
    )
    for mine, theirs in zip(model.parameters(), other.parameters()):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-14)


def test_goes_on_from_its_state():
    model = network()
    warmup = NewLayersWarmup(model, ['2.weight'], 6)
    optimizer = adamw(model.parameters())
    warmup.attach(optimizer)
    train(model, optimizer, 3)
    later = copy.deepcopy(model)
    resumed = NewLayersWarmup(later, [], 0)
    resumed.load_state_dict(warmup.state_dict())
    optimizer_later = adamw(later.parameters())
    optimizer_later.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    resumed.attach(optimizer_later)
    train(model, optimizer, 5)
    train(later, optimizer_later, 5)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), later.parameters()))
    with pytest.raises(ValueError, match='warms up 9.weight'):
        resumed.load_state_dict({'names': ['9.weight'], 'steps': 1, 'done': 0})
