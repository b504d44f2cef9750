"""A run that diverges goes back to the last checkpoint whose loss was sane."""

from __future__ import annotations

import json
import math

import pytest
import torch

from k_diffusion.training import CheckpointHook, Diverged, LogHook, Retention, RunFolder
from k_diffusion.training.checkpoints.retention import sane_steps


class Explosion:
    """Multiplies the weights after a step, and again later until nothing is finite."""

    every = 1

    def __init__(self, factors):
        self.factors = factors

    def __call__(self, trainer):
        with torch.no_grad():
            for p in trainer.model.parameters():
                p.mul_(self.factors.get(trainer.step, 1.0))


def diverging(toy, folder, factors, every=2, log=True):
    hooks = [LogHook(folder.path / 'toy_log.jsonl', 1)] if log else []
    return toy.make_trainer(
        end_step=40,
        clip_norm=None,
        read_every=1,
        hooks=[*hooks, CheckpointHook(folder, every), Explosion(factors)],
    )


@pytest.mark.parametrize('log', [True, False])
def test_checkpoints_of_a_loss_that_has_exploded_are_not_gone_back_to(toy, tmp_path, log):
    """The weights explode after step 13, stay finite for eight steps, and are none after step
    21.
    """
    folder = RunFolder(tmp_path, 'toy')
    trainer = diverging(toy, folder, {13: 1e3, 21: 1e15}, log=log)
    with pytest.raises(Diverged, match=r'the last good checkpoint is .*toy_00000012\.pth'):
        trainer.run()
    losses = {record.step: record.metrics['loss'] for record in folder.manifest.read().values()}
    assert (
        losses[12] < 10 and math.isfinite(losses[20]) and losses[20] > 1e10
    )  # (20 is what was named before)
    assert json.loads(folder.pointer_path.read_text()) == {'latest_checkpoint': 'toy_00000012.pth'}
    path, state = folder.newest()
    again = toy.make_trainer(end_step=16, hooks=[CheckpointHook(folder, 2)])
    again.load_state_dict(state, path)
    assert (path.name, again.run()) == ('toy_00000012.pth', 'done') and again.last_loss < 10


def test_one_that_is_damaged_is_not_gone_back_to(toy, tmp_path):
    folder = RunFolder(tmp_path, 'toy')
    trainer = diverging(toy, folder, {13: 1e3, 21: 1e15})
    trainer.hooks.append(
        type(
            'Damage',
            (),
            {'every': 17, '__call__': lambda *_: folder.checkpoint_path(12).write_bytes(b'')},
        )()
    )
    with pytest.raises(Diverged, match=r'the last good checkpoint is .*toy_00000010\.pth'):
        trainer.run()


def test_a_run_that_never_was_sane_begins_anew(toy, tmp_path):
    folder = RunFolder(tmp_path, 'toy', keep=Retention(1, 0))
    with pytest.raises(Diverged, match='no checkpoint was saved with a sane loss: .* start again'):
        diverging(toy, folder, {3: 1e3, 21: 1e15}, every=10).run()


@pytest.mark.parametrize(
    ('losses', 'expected'),
    [
        ([1.0, 0.5, 0.4, 0.3], [0, 1, 2, 3]),  # a run that learns
        ([1.0, 9.0, 51.0, 0.5], [0, 1, 3]),  # of 1 and 9 the median is 5
        ([1.0, 10.1, 1.0], [0, 2]),
        ([1.0, 10.0, 1.0], [0, 1, 2]),
        ([1.0, 1e35, 1e35, 1e35, 1e35, 2.0], [0, 5]),  # none gets used to 1e35
        ([1.0, math.inf, math.nan, 1.0], [0, 3]),
        ([-1.0, -1.1, -0.9, -1.0, 7.9, 8.1], [0, 1, 2, 3, 4]),  # the limit is -1 + 9 * 1
        (
            [0.2, -0.2, 0.1, -0.1, 0.05, 0.9, 1.5],
            [0, 1, 2, 3, 4, 5],
        ),  # 0 + 9 * 0.15; 0.05 + 9 * 0.1
        ([100.0, 1.0, 0.01, 0.5, 30.0], [0, 1, 2, 3]),  # the median of the last sane ones is 0.75
    ],
    ids=str,
)
def test_sane_losses_by_hand(losses, expected):
    assert sane_steps([], dict(enumerate(losses))) == expected


def test_losses_are_compared_with_those_of_their_meaning_alone():
    """From after step 3 on the loss is 100 times what it was; at step 6 it explodes."""
    losses = {1: 1.0, 2: 0.9, 3: 0.8, 4: 80.0, 5: 75.0, 6: 9e9}
    assert sane_steps([], losses) == [1, 2, 3]
    assert sane_steps([], losses, [0.0, 3.0]) == [1, 2, 3, 4, 5]
    assert sane_steps([(4, 80.0), (5, 1e12)], {3: 0.8, 6: 9e9, 7: 60.0}, [3.0]) == [3, 7]
    old, new = {1: {'loss': 0.1}, 2: {'loss': 0.2}}, {3: {'loss': 9.0, 'loss_since': 2.0}}
    reasons = Retention(1, 1).reasons([1, 2, 3], {**old, **new})
    assert reasons == {3: ['last', 'best'], 2: [], 1: []}


@pytest.mark.parametrize(('is_new_loss', 'step'), [(True, 20), (False, 10)])
def test_a_run_goes_back_to_a_checkpoint_of_its_new_loss(toy, tmp_path, is_new_loss, step):
    """The first ten steps take a thousandth of the loss; the weights are not finite after step
    21.
    """
    folder = RunFolder(tmp_path, 'toy')
    first = diverging(toy, folder, {})
    plain, first.end_step = first.loss, 10
    first.loss = lambda batch: plain(batch) / 1000
    first.run()
    path, state = folder.newest()
    trainer = diverging(toy, folder, {21: 1e30})
    trainer.load_state_dict(state, path)
    if is_new_loss:
        trainer.begin_losses()
    with pytest.raises(Diverged, match=rf'the last good checkpoint is .*toy_000000{step}\.pth'):
        trainer.run()


def test_losses_of_the_log_count_but_are_not_named():
    assert sane_steps([(1, 1.0), (2, 1.1), (4, 1e20)], {3: 12.0, 5: 9.0}) == [5]
