from __future__ import annotations

import math
import warnings

import pytest
import torch

from k_diffusion.training import (
    LR_SCHEDS,
    ConstantLRWithWarmup,
    ExponentialLR,
    InverseLR,
    WarmupDecayLR,
)


def optimizer():
    first, second = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
    return torch.optim.SGD([{'params': [first], 'lr': 0.1}, {'params': [second], 'lr': 0.04}])


def rates(make, n, state=None):
    """[n, 2] the rates of both groups at each step."""
    opt = optimizer()
    sched = make(opt)
    if state:
        sched.load_state_dict(state)
        sched.step()
    out = []
    for _ in range(n):
        out.append([group['lr'] for group in opt.param_groups])
        opt.step()
        sched.step()
    return torch.tensor(out, dtype=torch.float64), sched


def expected(factor, n, min_lr=0.0):
    warm_factors = [factor(k) for k in range(n)]
    return torch.tensor(
        [[warm * max(min_lr, base * f) for base in (0.1, 0.04)] for warm, f in warm_factors],
        dtype=torch.float64,
    )


CASES = {
    'inverse': (
        lambda o: InverseLR(o, inv_gamma=3.0, power=0.5, warmup=0.9, min_lr=0.03),
        lambda k: (1 - 0.9 ** (k + 1), (1 + k / 3) ** -0.5),
        0.03,
    ),
    'exponential': (
        lambda o: ExponentialLR(o, 4, decay=0.5, warmup=0.8, min_lr=0.01),
        lambda k: (1 - 0.8 ** (k + 1), 0.5 ** (k / 4)),
        0.01,
    ),
    'constant': (lambda o: ConstantLRWithWarmup(o, 0.7), lambda k: (1 - 0.7 ** (k + 1), 1.0), 0.0),
    'linear': (
        lambda o: WarmupDecayLR(o, 20, 4, 0.5, 0.1),
        lambda k: (min(1, (k + 1) / 4), 1 - 0.9 * min(1, max(0, (k - 10) / 10))),
        0.0,
    ),
    'cosine': (
        lambda o: WarmupDecayLR(o, 20, 0, 0.25, 0.02, 'cosine'),
        lambda k: (1.0, 0.02 + 0.98 * (1 + math.cos(math.pi * min(1, max(0, (k - 5) / 15)))) / 2),
        0.0,
    ),
}


@pytest.mark.parametrize('name', CASES)
def test_closed_form(name):
    make, factor, min_lr = CASES[name]
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        result, _ = rates(make, 25)
    torch.testing.assert_close(result, expected(factor, 25, min_lr), rtol=1e-12, atol=0)


@pytest.mark.parametrize('name', CASES)
def test_state_goes_on(name):
    make = CASES[name][0]
    straight, _ = rates(make, 20)
    _, half = rates(make, 8)
    state = half.state_dict()
    rest, _ = rates(make, 11, state)
    assert torch.equal(rest, straight[9:])


def test_the_old_arguments_are_taken():
    for make in (
        lambda o: InverseLR(o, 1.0, 1.0, 0.0, 0.0, -1, False),
        lambda o: ExponentialLR(o, 5, verbose=True),
        lambda o: ConstantLRWithWarmup(o, 0.0, -1, False),
    ):
        result, _ = rates(make, 1)
        assert result.tolist() == [[0.1, 0.04]]


def test_another_length_changes_the_rest_of_the_run():
    _, half = rates(lambda o: WarmupDecayLR(o, 10, 0, 0.0, 0.0), 8)
    rest, _ = rates(lambda o: WarmupDecayLR(o, 20, 0, 0.0, 0.0), 1, half.state_dict())
    assert rest[0, 0].item() == pytest.approx(0.1 * (1 - 9 / 20))


@pytest.mark.parametrize('warmup', [-0.1, 1.0, 2.0])
def test_warmup_is_checked(warmup):
    for make in (InverseLR, ConstantLRWithWarmup):
        with pytest.raises(ValueError, match='warmup must be'):
            make(optimizer(), warmup=warmup)


@pytest.mark.parametrize(
    ('options', 'what'),
    [
        ({'num_steps': 0}, 'num_steps'),
        ({'warmup_steps': -1}, 'warmup_steps'),
        ({'decay_start': 1.5}, 'decay_start'),
        ({'final': -0.1}, 'final'),
        ({'shape': 'square'}, 'shape'),
    ],
)
def test_decay_is_checked(options, what):
    with pytest.raises(ValueError, match=f'^{what} must be'):
        LR_SCHEDS['warmup-decay'](**options)
    with pytest.raises(ValueError, match=f'^{what} must be'):
        WarmupDecayLR(optimizer(), **{'num_steps': 10, **options})


def test_configs_make_their_schedule():
    result = {
        'constant': LR_SCHEDS['constant'](warmup=0.5),
        'inverse': LR_SCHEDS['inverse'](inv_gamma=7.0),
        'exponential': LR_SCHEDS['exponential'](num_steps=9.0),
        'warmup-decay': LR_SCHEDS['warmup-decay'](num_steps=50),
    }
    assert set(result) == set(LR_SCHEDS)
    scheds = {name: config.make(optimizer(), 30) for name, config in result.items()}
    assert scheds['constant'].warmup == 0.5
    assert scheds['inverse'].inv_gamma == 7.0
    assert scheds['exponential'].num_steps == 9.0
    assert scheds['warmup-decay'].num_steps == 50
    assert LR_SCHEDS['warmup-decay']().make(optimizer(), 30).num_steps == 30
    with pytest.raises(ValueError, match='end_step='):
        LR_SCHEDS['warmup-decay']().make(optimizer())
