from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from k_diffusion.training import (
    EMA_SCHEDS,
    EMAWarmup,
    PowerEMA,
    ema_update,
    ema_update_dict,
    power_ema_exponent,
)


def values(sched, n):
    out = []
    for _ in range(n):
        out.append(sched.get_value())
        sched.step()
    return out


def test_warmup_equals_the_original(golden):
    expected = golden('utilities')['ema_warmup']
    sched = EMAWarmup(power=2 / 3, max_value=0.9999)
    torch.testing.assert_close(
        torch.tensor(values(sched, len(expected)), dtype=torch.float64),
        expected,
        rtol=1e-12,
        atol=0,
    )


def test_warmup_follows_its_formula_and_clamps():
    sched = EMAWarmup(inv_gamma=2.0, power=0.75, min_value=0.1, max_value=0.6, start_at=2)
    expected = [min(0.6, max(0.1, 1 - (1 + max(0, k - 2) / 2) ** -0.75)) for k in range(8)]
    assert values(sched, 8) == pytest.approx(expected, rel=1e-12)
    assert values(EMAWarmup(), 1) == [0.0]


def test_schedules_go_on_from_their_state():
    for make in (lambda: EMAWarmup(power=0.75, max_value=0.99), lambda: PowerEMA(0.08)):
        straight, first, second = make(), make(), make()
        values(first, 5)
        second.load_state_dict(first.state_dict())
        assert values(straight, 9)[5:] == values(second, 4)
    assert EMAWarmup().state_dict() == {
        'inv_gamma': 1.0,
        'power': 1.0,
        'min_value': 0.0,
        'max_value': 1.0,
        'start_at': 0,
        'last_epoch': 0,
    }


def test_a_run_may_change_its_kind_of_average():
    old, new = EMAWarmup(), PowerEMA(0.05)
    values(old, 7)
    new.load_state_dict(old.state_dict())
    assert new.get_value() == pytest.approx((1 - 1 / 8) ** (power_ema_exponent(0.05) + 1))


@pytest.mark.parametrize('width', [0.01, 0.05, 0.1, 0.2, 0.288])
def test_power_exponent_has_the_width_of_its_profile(width):
    g = power_ema_exponent(width)
    assert (g + 1) / ((g + 2) ** 2 * (g + 3)) == pytest.approx(width**2, rel=1e-10)


@pytest.mark.parametrize('width', [0.0, -1.0, 0.3, float('nan')])
def test_power_width_is_checked(width):
    with pytest.raises(ValueError, match='width must be'):
        PowerEMA(width)


def test_power_average_weighs_steps_by_the_power_of_their_place():
    width, n = 0.1, 4000
    weights = torch.zeros(n, dtype=torch.float64)
    for t, decay in enumerate(values(PowerEMA(width), n)):
        weights *= decay
        weights[t] = 1 - decay
    place = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    mean = (weights * place).sum()
    assert weights.sum().item() == pytest.approx(1, abs=1e-12)
    assert (weights * (place - mean) ** 2).sum().sqrt().item() == pytest.approx(width, rel=2e-3)
    g = power_ema_exponent(width)
    torch.testing.assert_close(weights[500:], (g + 1) / n * place[500:] ** g, rtol=0.02, atol=1e-9)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)


def test_update_is_a_lerp_of_parameters_and_a_copy_of_buffers():
    model, averaged = Net(), Net()
    model.norm.running_mean.fill_(3.0)
    model.norm.num_batches_tracked.fill_(7)
    before = copy.deepcopy(averaged)
    ema_update(model, averaged, 0.75)
    for p, a, b in zip(model.parameters(), averaged.parameters(), before.parameters()):
        torch.testing.assert_close(a, 0.75 * b + 0.25 * p)
    for p, a in zip(model.buffers(), averaged.buffers()):
        assert torch.equal(p, a)
    ema_update(model, averaged, 0.0)
    assert all(torch.equal(p, a) for p, a in zip(model.parameters(), averaged.parameters()))


def test_update_works_across_memory_format_and_type():
    model, averaged = Net(), Net()
    expected = copy.deepcopy(averaged)
    ema_update(model, expected, 0.9)
    ema_update(copy.deepcopy(model).to(memory_format=torch.channels_last), averaged, 0.9)
    for a, e in zip(averaged.parameters(), expected.parameters()):
        torch.testing.assert_close(a, e)
    half = copy.deepcopy(model).bfloat16()
    ema_update(half, averaged, 0.0)
    assert averaged.conv.weight.dtype == torch.float32
    assert torch.equal(averaged.conv.weight, half.conv.weight.float())


def test_update_refuses_other_names():
    with pytest.raises(
        ValueError, match=r"the parameters .*; got 'extra\.bias' only in the averaged model"
    ):
        averaged = Net()
        averaged.extra = nn.Linear(2, 2)
        ema_update(Net(), averaged, 0.9)


def test_update_dict_starts_at_the_first_value():
    values = {}
    ema_update_dict(values, {'loss': 2.0}, 0.9)
    assert ema_update_dict(values, {'loss': 4.0}, 0.75) is values
    assert values == {'loss': 2.5}


def test_configs():
    assert (
        EMA_SCHEDS['inverse']().make().state_dict()
        == EMAWarmup(power=0.6667, max_value=0.9999).state_dict()
    )
    assert EMA_SCHEDS['power'](width=0.07).make().state_dict() == {'width': 0.07, 'last_epoch': 0}
    with pytest.raises(ValueError, match=r'max_value must .*; got 1\.5'):
        EMA_SCHEDS['inverse'](max_value=1.5)
    with pytest.raises(ValueError, match=r'width must be .*; got 0\.5'):
        EMA_SCHEDS['power'](width=0.5)
