from __future__ import annotations

import copy
import json
import os

import pytest
import torch

from k_diffusion.config.weights import read_weights
from k_diffusion.core import files
from k_diffusion.core.weights import load_checkpoint
from k_diffusion.training import (
    CheckpointHook,
    CSVLogger,
    RunFolder,
    load_weights,
    read_training_checkpoint,
    unwrap,
)
from k_diffusion.training.optim import OPTIMIZERS

KEYS = {
    'config',
    'model',
    'model_ema',
    'opt',
    'sched',
    'ema_sched',
    'epoch',
    'step',
    'gns_stats',
    'ema_stats',
    'demo_gen',
    'elapsed',
}


@pytest.fixture
def saved(toy, tmp_path):
    """A folder with the checkpoints of steps 2 and 4, and its trainer."""
    folder = RunFolder(tmp_path, 'toy', {'config': {'model': {'type': 'toy'}}})
    trainer = toy.make_trainer(end_step=4, hooks=[CheckpointHook(folder, every=2)])
    trainer.run()
    return folder, trainer


def test_a_checkpoint_has_the_original_keys_and_loads_safely(saved):
    folder, trainer = saved
    assert sorted(p.name for p in folder.path.iterdir()) == [
        'toy_00000002.pth',
        'toy_00000004.pth',
        'toy_manifest.json',
        'toy_state.json',
    ]
    assert json.loads(folder.pointer_path.read_text()) == {'latest_checkpoint': 'toy_00000004.pth'}
    state = load_checkpoint(folder.checkpoint_path(4))
    assert state.keys() >= KEYS
    assert (
        state['config'] == {'model': {'type': 'toy'}}
        and state['step'] == 4
        and state['items'] == 16
    )
    assert state['demo_gen'].dtype == torch.uint8 and state['demo_gen'].shape == (5056,)
    assert state['ema_stats'] == {'loss': trainer.ema_stats['loss']} and state['elapsed'] > 0
    for name, p in unwrap(trainer.model).state_dict().items():
        assert torch.equal(state['model'][name], p)
    assert trainer.last_checkpoint == folder.checkpoint_path(4)


def test_the_pointer_is_followed_and_its_loss_is_survived(saved, monkeypatch):
    folder, _ = saved
    folder.pointer_path.write_text(json.dumps({'latest_checkpoint': 'toy_00000002.pth'}))
    assert folder.newest()[0].name == 'toy_00000002.pth'
    for damage in ('{"latest_ch', '[]', '{"latest_checkpoint": 3}'):
        folder.pointer_path.write_text(damage)
        monkeypatch.setattr(files, '_notes', set())
        with pytest.warns(UserWarning, match=r'toy_state\.json is skipped'):
            assert folder.newest()[0].name == 'toy_00000004.pth'
    folder.pointer_path.unlink()
    assert folder.newest()[0].name == 'toy_00000004.pth'


@pytest.mark.parametrize('size', [0, 1000, 20_000])
def test_a_truncated_checkpoint_is_passed_over_with_the_reason(saved, size):
    folder, _ = saved
    os.truncate(folder.checkpoint_path(4), size)
    with pytest.warns(UserWarning, match=r'toy_00000004\.pth is skipped: .*(damaged|cut short)'):
        path, state = folder.newest()
    assert path.name == 'toy_00000002.pth' and state['step'] == 2


def test_only_damaged_checkpoints_do_not_start_anew(saved, tmp_path):
    folder, _ = saved
    for step in (2, 4):
        os.truncate(folder.checkpoint_path(step), 10)
    with pytest.warns(UserWarning), pytest.raises(ValueError, match='none of the checkpoints'):
        folder.newest()
    assert RunFolder(tmp_path, 'another').newest() is None
    assert RunFolder(tmp_path / 'absent').newest() is None


def test_a_crash_before_the_rename_leaves_the_old_checkpoint(saved, monkeypatch):
    folder, trainer = saved
    state = {**trainer.state_dict(), 'step': 4, 'elapsed': -1.0}

    def crash(*paths):
        raise OSError('the machine went away')

    with monkeypatch.context() as patch:
        patch.setattr(os, 'replace', crash)
        with pytest.raises(OSError, match='went away'):
            folder.save(state)
    assert sorted(p.name for p in folder.path.iterdir()) == [
        'toy_00000002.pth',
        'toy_00000004.pth',
        'toy_manifest.json',
        'toy_state.json',
    ]
    assert folder.newest()[1]['elapsed'] > 0


def test_names_that_contain_one_another_are_kept_apart(saved, tmp_path):
    folder, _ = saved
    (tmp_path / 'toy_state.json').unlink()
    (tmp_path / 'my_toy_00000009.pth').write_bytes(b'')
    (tmp_path / 'toy_0000000x.pth').write_bytes(b'')
    assert [p.name for p in folder.checkpoints()] == ['toy_00000004.pth', 'toy_00000002.pth']


def test_a_checkpoint_of_another_shape_is_named(toy, saved):
    folder, _ = saved
    weights = folder.newest()[1]['model']
    with pytest.raises(
        ValueError,
        match=r'file\.pth holds proj_in\.weight of shape \[8, 1, 3, 3\], and the model has '
        r'\[16, 1, 3, 3\]; use the config',
    ):
        load_weights(toy.TinyNet(16), weights, 'file.pth')
    less = {name: p for name, p in weights.items() if name != 'mix.weight'}
    with pytest.raises(ValueError, match=r'mix\.weight is in the model and not in the checkpoint'):
        load_weights(toy.TinyNet(), less)
    with pytest.raises(ValueError, match=r'more is not in the model but in the checkpoint'):
        load_weights(toy.TinyNet(), {**weights, 'more': torch.zeros(2)})


def test_another_optimizer_is_refused(toy, saved):
    folder, _ = saved
    path, state = folder.newest()
    with pytest.raises(ValueError, match=r'optimizer state in .*toy_00000004\.pth does not fit'):
        toy.make_trainer(OPTIMIZERS['muon']()).load_state_dict(
            {**state, 'opt': {'state': {}, 'param_groups': state['opt']['param_groups'][:1]}}, path
        )


def test_the_original_checkpoint_resumes_at_the_step_it_names(toy, saved):
    folder, trainer = saved
    _, ours = folder.newest()
    head = {key: ours[key] for key in KEYS}
    seed_time = {key: head[key] for key in KEYS - {'config', 'ema_stats', 'demo_gen', 'elapsed'}}
    for state in (head, seed_time):
        resumed = toy.make_trainer(end_step=7)
        resumed.load_state_dict(copy.deepcopy(state))
        assert resumed.step == 4 and resumed.items == 16
        resumed.run()
        straight = toy.make_trainer(end_step=7)
        straight.run()
        for p, q in zip(resumed.model.parameters(), straight.model.parameters()):
            assert torch.equal(p, q)
    assert trainer.step == 4


def test_the_average_can_be_reset(toy, saved):
    folder, _ = saved
    state = folder.newest()[1]
    trainer = toy.make_trainer()
    trainer.load_state_dict(state, reset_ema=True)
    assert torch.equal(trainer.ema_model.conv.weight, state['model']['conv.weight'])
    assert not torch.equal(state['model_ema']['conv.weight'], state['model']['conv.weight'])
    assert trainer.ema_sched.last_epoch == 0


def test_parts_travel_with_the_run(toy, tmp_path):
    class Counter:
        n = 0

        def state_dict(self):
            return {'n': self.n}

        def load_state_dict(self, state):
            self.n = state['n']

    first, second = Counter(), Counter()
    first.n = 5
    folder = RunFolder(tmp_path, 'toy')
    toy.make_trainer(
        end_step=1, parts={'counter': first}, hooks=[CheckpointHook(folder, every=0)]
    ).run()
    toy.make_trainer(parts={'counter': second}).load_state_dict(folder.newest()[1])
    assert second.n == 5


def test_other_files_are_no_training_checkpoints(tmp_path):
    torch.save({'model': {}}, tmp_path / 'a.pth')
    torch.save(torch.zeros(2), tmp_path / 'b.pth')
    for name in ('a.pth', 'b.pth'):
        with pytest.raises(ValueError, match=r'lacks .*model_ema'):
            read_training_checkpoint(tmp_path / name)


@pytest.mark.parametrize(
    'value', [5, 'x', [], [None], torch.zeros(2), -1, 2**70, {'a': None}], ids=repr
)
def test_a_checkpoint_may_hold_anything(toy, saved, value):
    """Whatever stands in the place of a value, it is read or refused in a sentence, and the one
    before is gone on from.
    """
    folder, _ = saved
    path = folder.checkpoint_path(4)
    good = load_checkpoint(path)
    folder.manifest.path.unlink()
    refused = set()
    for key in good:
        torch.save({**good, key: value}, path)
        try:
            read_training_checkpoint(path)
        except ValueError as error:
            assert str(path) in str(error) and repr(key) in str(error)
            refused.add(key)
            with pytest.warns(UserWarning, match='toy_00000004.pth is skipped'):
                assert folder.newest()[1]['step'] == 2
    trees = {'model', 'model_ema', 'opt', 'sched', 'ema_sched'}
    assert refused >= (trees if not isinstance(value, dict) else {'step', 'items'})


def test_weights_must_be_tensors_by_name(saved):
    folder, _ = saved
    path = folder.checkpoint_path(4)
    good = load_checkpoint(path)
    for value in (3, [1], None, {**good['model_ema'], next(iter(good['model_ema'])): 1.5}):
        torch.save({**good, 'model_ema': value}, path)
        with pytest.raises(ValueError, match='among its weights, which must be tensors'):
            read_weights(path, verify=False)
    torch.save({**good, 'config': 7}, path)
    with pytest.raises(ValueError, match='must hold a dict as its config; got int'):
        read_weights(path, verify=False)


def test_csv_logger_appends(tmp_path):
    for row in ((1, 2.5), (2, 3.5)):
        CSVLogger(tmp_path / 'm.csv', ['step', 'fid']).write(*row)
    assert (tmp_path / 'm.csv').read_text() == 'step,fid\n1,2.5\n2,3.5\n'
