from __future__ import annotations

import copy

import pytest
import torch

from k_diffusion.training import (
    PowerEMA,
    Snapshot,
    SnapshotHook,
    combination,
    ema_update,
    find_snapshots,
    power_ema_exponent,
    reconstruct,
)
from k_diffusion.training.posthoc import remainder_product


def test_remainder_product_is_the_integral():
    t = torch.linspace(0, 1, 200_001, dtype=torch.float64)

    def remainder(step, width):
        return 1 - (t / step).clamp(max=1) ** (power_ema_exponent(width) + 1)

    for a in ((0.5, 0.05), (1.0, 0.1)):
        for b in ((1.0, 0.2), (0.5, 0.1)):
            expected = torch.trapezoid(remainder(*a) * remainder(*b), t).item()
            assert remainder_product(*a, *b) == pytest.approx(expected, rel=1e-5)
            assert remainder_product(*b, *a) == pytest.approx(remainder_product(*a, *b), rel=1e-12)


def test_a_tracked_width_is_itself():
    snapshots = [(step, width) for step in (250, 500, 750, 1000) for width in (0.05, 0.1)]
    factors = combination(snapshots, 1000, 0.1)
    assert factors[snapshots.index((1000, 0.1))].item() == pytest.approx(1, abs=1e-4)
    assert factors.abs().sum().item() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize('width', [0.03, 0.07, 0.12, 0.15, 0.2])
def test_other_widths_are_rebuilt_along_a_noisy_path(width):
    """Averages of a random walk with a pull, tracked directly and put together from 8 snapshots
    of each width.
    """
    n, dim = 2000, 400
    generator = torch.Generator().manual_seed(1)
    x, goal = (
        torch.zeros(dim, dtype=torch.float64),
        torch.randn(dim, generator=generator, dtype=torch.float64),
    )
    scheds = {w: PowerEMA(w) for w in (0.05, 0.1, width)}
    averages = {w: torch.zeros(dim, dtype=torch.float64) for w in scheds}
    snapshots = {}
    for step in range(1, n + 1):
        x = (
            x
            + 0.003 * (goal - x)
            + 0.002 * torch.randn(dim, generator=generator, dtype=torch.float64)
        )
        for w, sched in scheds.items():
            averages[w].lerp_(x, 1 - sched.get_value())
            sched.step()
        if step % (n // 8) == 0:
            snapshots.update({(step, w): averages[w].clone() for w in (0.05, 0.1)})
    factors = combination(list(snapshots), n, width)
    rebuilt = sum(f * s for f, s in zip(factors, snapshots.values()))
    error = (rebuilt - averages[width]).norm() / averages[width].norm()
    assert error < 1e-3
    assert (rebuilt - averages[0.1]).norm() / averages[0.1].norm() > 5 * error


def test_a_run_writes_snapshots_from_which_weights_are_rebuilt(toy, tmp_path):
    def make(end_step, folder, direct=None):
        trainer = toy.make_trainer(end_step=end_step)
        snapshots = SnapshotHook(trainer.ema_model, folder, 'toy', 10, {'model': {}})
        trainer.hooks, trainer.parts = [snapshots], {'posthoc': snapshots}
        return trainer

    straight = make(80, tmp_path / 'a')
    direct, sched = copy.deepcopy(straight.ema_model), PowerEMA(0.07)

    class Direct:
        every = 1

        def __call__(self, trainer):
            ema_update(trainer.model, direct, sched.get_value())
            sched.step()

    straight.hooks = [*straight.hooks, Direct()]
    straight.run()
    result = find_snapshots(tmp_path / 'a')
    assert len(result) == 16 and {s.width for s in result} == {0.05, 0.1} and result[-1].step == 80
    weights = reconstruct(result, 0.07)
    for name, value in direct.state_dict().items():
        if value.is_floating_point():
            assert (weights[name] - value).norm() / value.norm() < 1e-2, name
        else:
            assert torch.equal(weights[name], value)
    assert weights['conv.weight'].dtype == torch.float32

    first = make(35, tmp_path / 'b')
    first.run()
    second = make(80, tmp_path / 'b')
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    second.run()
    again = reconstruct([s for s in find_snapshots(tmp_path / 'b') if s.step % 10 == 0], 0.07)
    assert all(torch.equal(again[name], value) for name, value in weights.items())


def test_a_step_without_snapshot_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r'step must be .*\[10, 20\]; got no snapshot at step 7'):
        reconstruct([Snapshot(10, 0.05, tmp_path), Snapshot(20, 0.05, tmp_path)], 0.1, 7)
