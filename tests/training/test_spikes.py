"""Spikes of the loss: noticed, gone back from, passed over, with no bit changed by a pause."""

from __future__ import annotations

import json
import math
import warnings

import pytest
import torch

from k_diffusion.training import CheckpointHook, Diverged, LogHook, RunFolder
from k_diffusion.training.spikes import LEAST, PATIENCE, SpikeGuard

#: Items of the stream (steps 45 to 48 of four each) whose loss is a thousand times what it is.
BAD = range(44 * 4, 48 * 4)


def spoil(trainer, bad, factor):
    """Multiply the loss of the steps that take certain items of the stream."""
    plain, calls = trainer.loss, []

    def loss(batch):
        calls.append(int(batch['item'][0]))
        return plain(batch) * (factor if calls[-1] in bad else 1.0)

    trainer.loss = loss
    return calls


def make(toy, folder, end_step, most=2, bad=BAD, factor=1e3, save_every=8, **options):
    guard = SpikeGuard(folder, save_every, most, every=10)
    log = LogHook(folder.path / 'toy_log.jsonl', 10)
    trainer = toy.make_trainer(
        end_step=end_step,
        hooks=[guard, log, CheckpointHook(folder, save_every)],
        parts={'spikes': guard},
        **options,
    )
    return trainer, guard, spoil(trainer, bad, factor)


def resumed(toy, folder, *args, **options):
    trainer, guard, calls = make(toy, folder, *args, **options)
    path, state = folder.newest()
    trainer.load_state_dict(state, path)
    return trainer, guard, calls


def state_of(trainer):
    state = trainer.state_dict()
    return {key: state[key] for key in ('model', 'model_ema', 'opt', 'sched', 'ema_sched')}, [
        state[key] for key in ('step', 'items', 'ema_stats', 'spikes', 'bad_steps')
    ]


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def test_the_run_goes_back_and_passes_the_bad_items_over(toy, tmp_path):
    """The spike of steps 45 to 48 is noticed at 50; the last checkpoint before it is of step 40."""
    folder = RunFolder(tmp_path, 'toy')
    trainer, guard, calls = make(toy, folder, 70)
    with pytest.warns(UserWarning, match=r'spikes from step 45 on; the run goes back to step 40 '):
        assert trainer.run() == 'done'
    assert guard.rewinds == 1 and trainer.step == 70
    # 50 steps were taken before, 30 after it: each of other items.
    assert calls == [4 * step for step in range(80)] and trainer.items == 320
    weights = {key: value.clone() for key, value in trainer.model.state_dict().items()}
    # By hand: the weights of step 40, trained on for 30 steps from item 200 on.
    clean = toy.make_trainer(end_step=40)
    clean.run()
    clean.items, clean.end_step = 200, 70
    clean.run()
    assert same(dict(clean.model.state_dict()), weights)
    lines = [json.loads(line) for line in (tmp_path / 'toy_log.jsonl').open()]
    assert [line['step'] for line in lines] == [10, 20, 30, 40, 50, 60, 70]
    assert max(line['loss'] for line in lines) < 10


@pytest.mark.parametrize('pause', [43, 46, 48, 50, 55, 64])
def test_a_pause_changes_no_bit(toy, tmp_path, pause):
    """A pause before, in and after the spike, and at the step at which the run goes back."""
    straight, _, _ = make(toy, RunFolder(tmp_path / 'a', 'toy'), 70)
    folder, stopped = RunFolder(tmp_path / 'b', 'toy'), []
    first, _, _ = make(toy, folder, 70)
    first.stop = lambda: first.step == pause and not stopped and not stopped.append(1)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        straight.run()
        assert first.run() == 'interrupted'
        again, guard, _ = resumed(toy, folder, 70)
        assert again.run() == 'done'
    assert guard.rewinds == 1 and same(state_of(straight), state_of(again))


@pytest.mark.parametrize('killed', [47, 50, 52])
def test_a_kill_changes_no_bit(toy, tmp_path, killed):
    """Killed after some steps in all, without a save, the run goes on from its last checkpoint."""
    straight, _, _ = make(toy, RunFolder(tmp_path / 'a', 'toy'), 70)
    folder = RunFolder(tmp_path / 'b', 'toy')
    first, _, calls = make(toy, folder, 70)

    class Killed(BaseException):
        pass

    plain = first.loss

    def loss(batch):
        if len(calls) == killed:
            raise Killed
        return plain(batch)

    first.loss = loss
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        straight.run()
        with pytest.raises(Killed):
            first.run()
        again, _, _ = resumed(toy, folder, 70)
        again.run()
    assert same(state_of(straight), state_of(again))


@pytest.mark.parametrize('mean', [-1.0, 0.0, 0.01])
def test_losses_around_or_below_zero_are_no_spike(tmp_path, mean):
    """As likelihoods have them, or a contrast: normal, of standard deviation 0.1.

    The limit lies nine times 0.067 above the median or more: six standard deviations.
    """
    guard = SpikeGuard(RunFolder(tmp_path, 'toy'), 8, 2)
    losses = torch.randn(5000, generator=torch.Generator().manual_seed(5)) * 0.1 + mean
    guard.see_losses(None, list(enumerate(losses.tolist(), 1)))
    assert guard._count == 0 and guard._spike is None
    guard.see_losses(None, [(step, 100.0) for step in (5001, 5002, 5003)])
    assert guard._spike == 5001


@pytest.mark.parametrize(('bad', 'rewinds'), [(range(0), 0), (range(54 * 4, 58 * 4), 1)])
def test_a_loss_of_another_meaning_is_no_spike(toy, tmp_path, bad, rewinds):
    """From step 30 on the loss is a thousand times what it was before.

    With bad items (steps 55 to 58) the only checkpoint before them is of the old loss.
    """
    folder = RunFolder(tmp_path, 'toy')
    make(toy, folder, 30, bad=(), save_every=30)[0].run()
    path, state = folder.newest()
    trainer, guard, _ = make(toy, folder, 70, bad=bad, save_every=30)
    plain = trainer.loss
    trainer.loss = lambda batch: 1000 * plain(batch)
    trainer.load_state_dict(state, path)
    trainer.begin_losses()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        assert trainer.run() == 'done'
    texts = [str(one.message) for one in caught if 'spikes' in str(one.message)]
    assert guard.rewinds == rewinds == len(texts)
    assert all('from step 55 on; the run goes back to step 30 ' in text for text in texts)
    assert trainer.ema_stats['loss_since'] == 30.0


def test_the_run_goes_back_so_many_times_at_most(toy, tmp_path):
    """Every item from the 176th on is bad: after two ways back the spike is only reported."""
    trainer, guard, calls = make(toy, RunFolder(tmp_path, 'toy'), 70, bad=range(176, 10**9))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        assert trainer.run() == 'done'
    texts = [str(one.message) for one in caught if 'spikes' in str(one.message)]
    assert [('goes back to step 40' in text, 'gone back 2 times' in text) for text in texts] == [
        (True, False),
        (True, False),
        (False, True),
    ]
    assert guard.rewinds == 2 and len(calls) == 70 + 10 + 10


def test_a_run_that_diverges_is_taken_back_too(toy, tmp_path):
    """Four losses in a row that are not numbers would end the run without the guard."""
    folder = RunFolder(tmp_path, 'toy')
    trainer, guard, _ = make(toy, folder, 70, factor=math.nan)
    with pytest.warns(UserWarning, match='the run goes back to step 40'):
        assert trainer.run() == 'done'
    assert guard.rewinds == 1 and trainer.bad_steps == []
    assert trainer.items == 4 * (48 + 30)  # (noticed when step 48 was to be saved)
    trainer, _, _ = make(toy, RunFolder(tmp_path / 'b', 'toy'), 70, most=0, factor=math.nan)
    with pytest.warns(UserWarning), pytest.raises(Diverged, match=r'good checkpoint is .*00000040'):
        trainer.run()


def test_without_a_checkpoint_from_before_it_the_spike_is_reported(toy, tmp_path):
    trainer, guard, _ = make(toy, RunFolder(tmp_path, 'toy'), 60, save_every=46)
    with pytest.warns(UserWarning, match='no checkpoint from before it is whole'):
        assert trainer.run() == 'done'
    assert guard.rewinds == 0 and trainer.items == 240


def test_a_learning_rate_that_is_too_large_is_a_spike_again_and_again(toy, tmp_path):
    """The rate is 3,000 times as large from step 45 on; other data does not help."""
    trainer, guard, calls = make(toy, RunFolder(tmp_path, 'toy'), 60, most=1, bad=())
    trainer.lr_sched = torch.optim.lr_scheduler.LambdaLR(
        trainer.optimizer.optimizer, lambda step: 3000.0 if step >= 45 else 1.0
    )
    with pytest.warns(UserWarning, match='the run goes back to step 40 .*1 of 1') as caught:
        assert trainer.run() == 'done'
    assert guard.rewinds == 1 and len(calls) == 60 + 10
    assert any('has gone back 1 times already' in str(one.message) for one in caught)


@pytest.mark.parametrize(
    ('losses', 'spike'),
    [
        ([1.0] * LEAST + [10.0] * PATIENCE, None),  # ten times the median is not above it
        ([1.0] * LEAST + [10.1] * PATIENCE, LEAST + 1),
        ([1.0] * LEAST + [10.1] * (PATIENCE - 1) + [1.0, 10.1], None),  # not in a row
        ([1.0] * (LEAST - 1) + [99.0] * PATIENCE, None),  # too few to compare with
        ([1.0] * (LEAST - 1) + [math.nan] * PATIENCE, LEAST),
        ([1.0] * LEAST + [11.0] * 50, LEAST + 1),  # it does not get used to them
    ],
)
def test_what_a_spike_is(tmp_path, losses, spike):
    """Three losses in a row above ten times the median of the last hundred."""
    guard = SpikeGuard(RunFolder(tmp_path, 'toy'), 8, 1)
    guard.see_losses(None, list(enumerate(losses, 1)))
    assert guard.state_dict()['spike'] == spike
