from __future__ import annotations

import copy
import math
import os
import signal
import time

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from k_diffusion.core.random import derive_seed
from k_diffusion.training import (
    CheckpointHook,
    Diverged,
    EMAWarmup,
    LogHook,
    PowerEMA,
    RunFolder,
    ema_update,
    read_log,
    unwrap,
)
from k_diffusion.training.optim import OPTIMIZERS

ADAMW = OPTIMIZERS['adamw'](lr=1e-2)
MUON = OPTIMIZERS['muon'](lr=1e-2)


def equal(a, b):
    """Return whether two nested states are the same, bit for bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def state_of(trainer):
    state = trainer.state_dict()
    del state['elapsed']
    return copy.deepcopy(state)


class Every:
    def __init__(self, every, act, at_end=False):
        self.every, self.act, self.at_end = every, act, at_end

    def __call__(self, trainer):
        self.act(trainer)


def test_a_run_is_the_bare_loop(toy):
    trainer = toy.make_trainer(ADAMW, dropout=0.2, end_step=3)
    net = toy.make_trainer(ADAMW, dropout=0.2).model
    averaged = copy.deepcopy(net)
    optimizer, ema = (
        torch.optim.AdamW(net.param_groups(1e-2), weight_decay=1e-4),
        EMAWarmup(power=0.75),
    )
    rates = [1e-2 * (1 - 0.9 ** (k + 1)) for k in range(3)]
    loader = toy.MemoryLoader(toy.images(), 4)
    batches = loader.iterate()
    for step in range(3):
        trainer.items = step * 4
        batch = {**next(batches), 'u': trainer.quantiles(trainer.items)}
        torch.manual_seed(derive_seed(0, 'dropout', step, 0, 0))
        toy.make_loss(net)(batch).mean().backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        for group, scale in zip(optimizer.param_groups, (1, 0.5)):
            group['lr'] = rates[step] * scale
        optimizer.step()
        optimizer.zero_grad()
        ema_update(net, averaged, ema.get_value())
        ema.step()
    trainer.items = 0
    assert trainer.run() == 'done'
    for p, q in zip(trainer.model.parameters(), net.parameters()):
        torch.testing.assert_close(p, q)
    for p, q in zip(trainer.ema_model.parameters(), averaged.parameters()):
        torch.testing.assert_close(p, q)


def test_training_lowers_the_loss(toy):
    trainer = toy.make_trainer(MUON, batch_size=8, end_step=60, read_every=1)
    losses = []
    trainer.hooks = [Every(1, lambda t: losses.append(t.last_loss))]
    trainer.run()
    assert len(losses) == 60 and all(map(math.isfinite, losses))
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


def test_noise_quantiles_are_stratified_and_named_by_position(toy):
    calls = []
    trainer = toy.make_trainer(batch_size=4, grad_accum_steps=2, calls=calls, end_step=3)
    trainer.run()
    us = torch.cat([u for _, u, _ in calls]).view(3, 8)
    assert us.dtype == torch.float64
    for u in us:
        assert (u * 8).floor().sort().values.tolist() == list(range(8))
    assert len({tuple(u.tolist()) for u in us}) == 3
    assert torch.cat([item for item, _, _ in calls]).tolist() == list(range(24))


@pytest.mark.parametrize('config', [ADAMW, MUON], ids=['adamw', 'muon'])
@pytest.mark.parametrize('grad_accum_steps', [1, 2])
def test_a_resumed_run_equals_an_uninterrupted_one(toy, tmp_path, config, grad_accum_steps):
    def make(end_step, records=None, folder=None):
        hooks = [] if folder is None else [CheckpointHook(folder, every=0)]
        return toy.make_trainer(
            config,
            dropout=0.2,
            grad_accum_steps=grad_accum_steps,
            calls=records,
            end_step=end_step,
            hooks=hooks,
            ema_sched=PowerEMA(0.2),
        )

    calls, seen_first, seen_rest = [], [], []
    straight = make(8, calls)
    straight.run()
    folder = RunFolder(tmp_path, 'toy', {'config': {'model': {}}})
    make(4, seen_first, folder).run()
    torch.randn(1000)
    resumed = make(8, seen_rest)
    path, state = folder.newest()
    assert path.name == 'toy_00000004.pth'
    resumed.load_state_dict(state, path)
    assert resumed.step == 4 and resumed.items == 16 * grad_accum_steps
    resumed.run()
    assert equal(seen_first + seen_rest, calls)
    assert equal(state_of(resumed), state_of(straight))
    first = toy.make_trainer(config, dropout=0.2).model.state_dict()
    assert not equal(
        {k: v for k, v in first.items() if v.numel() > 1},
        {k: v for k, v in straight.model.state_dict().items() if v.numel() > 1},
    )


def test_hooks_and_the_global_generator_do_not_matter(toy):
    plain = toy.make_trainer(dropout=0.3, end_step=4)
    plain.run()

    def disturb(trainer):
        torch.manual_seed(5)
        torch.randn(10)
        trainer.read_losses()
        trainer.check_finite()

    watched = toy.make_trainer(dropout=0.3, end_step=4, hooks=[Every(1, disturb)])
    watched.run()
    assert equal(state_of(watched), state_of(plain))


def test_accumulation_equals_one_large_batch(toy):
    whole, parts = (
        toy.make_trainer(batch_size=n, grad_accum_steps=8 // n, end_step=3) for n in (8, 2)
    )
    whole.run(), parts.run()
    for p, q in zip(whole.model.parameters(), parts.model.parameters()):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
    assert whole.last_loss == pytest.approx(parts.last_loss, rel=1e-5)


def test_the_end_is_reached_once(toy):
    steps = []
    trainer = toy.make_trainer(
        end_step=3, hooks=[Every(2, lambda t: steps.append(t.step), at_end=True)]
    )
    assert trainer.run() == 'done'
    before = state_of(trainer)
    assert trainer.run() == 'done'
    assert steps == [2, 3] and trainer.step == 3
    assert equal(state_of(trainer), before)
    trainer.end_step = 4
    trainer.run()
    assert steps == [2, 3, 4]


def test_an_interrupt_finishes_the_step_and_saves_it(toy, tmp_path):
    folder = RunFolder(tmp_path, 'toy')
    fires = iter([False, False, True] + [False] * 10)

    def make(end_step=None):
        return toy.make_trainer(
            dropout=0.1, end_step=end_step, hooks=[CheckpointHook(folder, every=100)]
        )

    trainer = make()
    loss = trainer.loss

    def interrupted_loss(batch):
        if next(fires):
            os.kill(os.getpid(), signal.SIGINT)
        return loss(batch)

    trainer.loss = interrupted_loss
    handler = signal.getsignal(signal.SIGINT)
    assert trainer.run() == 'interrupted'
    assert signal.getsignal(signal.SIGINT) is handler
    assert trainer.step == 3
    path, state = folder.newest()
    resumed, straight = make(6), toy.make_trainer(dropout=0.1, end_step=6)
    resumed.load_state_dict(state, path)
    resumed.run(), straight.run()
    assert equal(state_of(resumed), state_of(straight))


@pytest.mark.parametrize(
    'before', [signal.default_int_handler, signal.SIG_IGN], ids=['terminal', 'background']
)
def test_a_second_interrupt_raises_at_once_and_saves_nothing(toy, tmp_path, before):
    """Also where a shell started the program in the background and with that told it to ignore
    the first.
    """
    was = signal.signal(signal.SIGINT, before)
    try:
        interrupt_twice(toy, tmp_path)
    finally:
        signal.signal(signal.SIGINT, was)


def interrupt_twice(toy, tmp_path):
    trainer = toy.make_trainer(hooks=[CheckpointHook(RunFolder(tmp_path, 'toy'))])
    loss = trainer.loss

    def interrupted_twice(batch):
        """The second comes when the first was heard: the system makes one of two that wait
        together.
        """
        os.kill(os.getpid(), signal.SIGINT)
        deadline = time.monotonic() + 10
        while not trainer.stop_asked() and time.monotonic() < deadline:
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGINT)
        while (
            time.monotonic() < deadline
        ):  # where another thread took it, it is heard a moment later
            time.sleep(0.001)
        return loss(batch)

    trainer.loss = interrupted_twice
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    assert list(tmp_path.iterdir()) == []


def nan_at(trainer, bad):
    loss = trainer.loss
    trainer.loss = lambda batch: loss(batch) * (math.nan if bad(trainer.step) else 1.0)
    return trainer


def test_losses_that_stay_no_numbers_stop_the_run(toy, tmp_path):
    folder = RunFolder(tmp_path, 'toy')
    trainer = nan_at(
        toy.make_trainer(hooks=[CheckpointHook(folder, every=4)], read_every=100, end_step=20),
        lambda step: step >= 5,
    )
    with (
        pytest.warns(UserWarning, match='left out'),
        pytest.raises(
            Diverged,
            match=r'nan at step 9, as at 3 others of the last 1000; the last good checkpoint is '
            r'.*toy_00000008\.pth',
        ) as error,
    ):
        trainer.run()
    assert isinstance(error.value, ValueError)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        'toy_00000004.pth',
        'toy_00000008.pth',
        'toy_manifest.json',
        'toy_state.json',
    ]


def test_one_broken_batch_is_told_and_left_out(toy):
    trainer = nan_at(toy.make_trainer(end_step=8), lambda step: step == 5)
    with pytest.warns(
        UserWarning,
        match=r'the loss is nan at step 6 \(items 20 to 23 of the stream\); its gradient is left '
        r'out',
    ):
        assert trainer.run() == 'done'
    plain = toy.make_trainer(end_step=8)
    plain.run()
    assert all(p.isfinite().all() for p in trainer.model.parameters()) and math.isfinite(
        trainer.ema_stats['loss']
    )
    assert not equal(
        trainer.model.state_dict(), plain.model.state_dict()
    ) and trainer.bad_steps == [6]
    assert not any(value is None for value in trainer.loss_by_noise.values(trainer.accelerator))


def test_without_clipping_one_such_loss_is_enough(toy):
    trainer = nan_at(toy.make_trainer(end_step=8, clip_norm=None), lambda step: step == 5)
    with pytest.raises(Diverged, match='the loss is nan at step 6; no checkpoint'):
        trainer.run()


def test_weights_that_are_no_numbers_are_not_saved(toy, tmp_path):
    trainer = toy.make_trainer(
        hooks=[CheckpointHook(RunFolder(tmp_path, 'toy'), every=1)], clip_norm=None
    )

    def exploding(batch):
        weight = trainer.model.mix.weight
        return (
            torch.ones(4) + (weight - weight.detach()).abs().sqrt().sum()
        )  # loss 1, gradient not finite

    trainer.loss = exploding
    with pytest.raises(
        Diverged, match='the weights are not finite after step 1; no checkpoint was saved before'
    ):
        trainer.run()
    assert list(tmp_path.iterdir()) == []


def test_the_log_holds_the_losses(toy, tmp_path):
    values = []

    def make(end_step, **options):
        return toy.make_trainer(
            end_step=end_step, hooks=[LogHook(tmp_path / 'log.jsonl', 2, **options)]
        )

    trainer = make(6, display=values.append)
    trainer.run()
    lines = read_log(tmp_path / 'log.jsonl')
    assert lines == values
    assert [line['step'] for line in lines] == [2, 4, 6]
    last = lines[-1]
    assert (
        last['loss'] == trainer.last_loss > 0
        and last['smoothed_loss'] == trainer.ema_stats['loss'] > 0
    )
    assert last['end_step'] == 6 and last['lr'] == pytest.approx(1e-2 * (1 - 0.9**6))
    assert (
        last['images_per_second'] > 0 and last['seconds_left'] == 0 and last['memory_bytes'] > 1e7
    )
    assert last['ema_decay'] == EMAWarmup(power=0.75, last_epoch=5).get_value()


def test_the_log_of_a_resumed_run_holds_each_step_once(toy, tmp_path):
    path = tmp_path / 'log.jsonl'
    straight = toy.make_trainer(end_step=6, hooks=[LogHook(tmp_path / 'straight.jsonl', 1)])
    straight.run()
    first = toy.make_trainer(end_step=5, hooks=[LogHook(path, 1)])
    first.end_step = 3
    first.run()
    state = state_of(first)
    first.end_step = 5
    first.run()
    with open(path, 'a') as file:
        file.write('{"step": 6, "lo')
    resumed = toy.make_trainer(end_step=6, hooks=[LogHook(path, 1)])
    resumed.load_state_dict(state)
    resumed.run()

    def losses(p):
        return [
            (line['step'], line['loss'], line['smoothed_loss'], line['lr']) for line in read_log(p)
        ]

    assert losses(path) == losses(tmp_path / 'straight.jsonl')
    assert len(losses(path)) == 6


def test_a_compiled_model_trains_and_saves_like_a_plain_one(toy):
    plain = toy.make_trainer(end_step=3)
    plain.run()
    compiled = toy.make_trainer(end_step=3, wrap=lambda m: torch.compile(m, backend='eager'))
    compiled.run()
    assert equal(state_of(compiled), state_of(plain))


def test_half_precision_is_of_the_computation_not_of_the_weights(toy):
    accelerator = Accelerator(cpu=True, mixed_precision='bf16')
    half = toy.make_trainer(end_step=3, accelerator=accelerator)
    half.run()
    weights = unwrap(half.model).state_dict()
    assert all(v.dtype == torch.float32 for v in weights.values() if v.is_floating_point())
    AcceleratorState._reset_state(True)
    plain = toy.make_trainer(end_step=3)
    plain.run()
    ours, theirs = weights['conv.weight'], plain.model.state_dict()['conv.weight']
    assert not torch.equal(ours, theirs)
    torch.testing.assert_close(ours, theirs, rtol=0.1, atol=0.02)


def test_steps_that_a_loss_scaler_skips_are_survived(toy):
    def make():
        accelerator = Accelerator(cpu=True)
        accelerator.scaler = torch.amp.GradScaler('cpu', init_scale=2.0**127)
        trainer = toy.make_trainer(end_step=8, accelerator=accelerator, clip_norm=None)
        loss = trainer.loss
        trainer.loss = lambda batch: loss(batch) * 8
        return trainer

    trainer = make()
    start = copy.deepcopy(trainer.model.state_dict())
    trainer.end_step = 1
    trainer.run()
    assert equal(trainer.model.state_dict(), start)
    trainer.end_step = 8
    trainer.run()
    assert trainer.step == 8 and not equal(trainer.model.state_dict(), start)
    state = state_of(trainer)
    other = make()
    other.load_state_dict(state)
    assert (
        equal(other.state_dict()['scaler'], state['scaler']) and state['scaler']['scale'] < 2.0**127
    )


def test_what_does_not_fit_together_is_refused(toy):
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    with pytest.raises(ValueError, match='gradient_accumulation_steps .* must be 1; got 2'):
        toy.make_trainer(accelerator=accelerator)
    with pytest.raises(
        ValueError, match='must have its weights in float32; got .* in half precision'
    ):
        toy.make_trainer(wrap=lambda m: m.bfloat16())
    trainer = toy.make_trainer(batch_size=3)
    with pytest.raises(ValueError, match='items_per_step .*; got 3 items per step'):
        type(trainer)(
            trainer.accelerator,
            trainer.model,
            trainer.loss,
            trainer.optimizer,
            trainer.lr_sched,
            trainer.ema_sched,
            trainer.ema_model,
            trainer.loader,
            grad_accum_steps=2,
        )
