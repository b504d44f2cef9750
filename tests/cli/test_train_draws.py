"""Runs go on with the draws that they began with, and begin with the newest."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import k_diffusion as K
from k_diffusion.core import philox
from k_diffusion.core.weights import load_checkpoint, load_safetensors

GOLDEN = Path(__file__).parents[1] / 'golden'
#: A run's checkpoint at step 2 and its weights at step 4, written before draws had a version.
OLD, LATER = GOLDEN / 'draws_1_step_2.pth', GOLDEN / 'draws_1_step_4.safetensors'


def train(folder, checkpoint=None, end_step=4, **settings):
    run = K.train(
        load_checkpoint(OLD)['config'],
        name='run',
        run_dir=folder,
        end_step=end_step,
        resume=checkpoint,
        demo_every=0,
        evaluate_n=0,
        seed=3,
        **settings,
    )
    return load_checkpoint(run.checkpoint)


def distance(state, weights):
    return max(float((state['model'][key] - value).abs().max()) for key, value in weights.items())


def test_a_run_of_before_goes_on_as_it_began(tmp_path):
    assert 'draws' not in load_checkpoint(OLD)
    state, weights = train(tmp_path, OLD), load_safetensors(LATER)
    assert state['step'] == 4 and state['draws'] == 1
    assert distance(state, weights) < 1e-5
    assert train(tmp_path, end_step=5)['draws'] == 1


def test_the_versions_draw_differently(tmp_path):
    torch.save({**load_checkpoint(OLD), 'draws': 2}, tmp_path / 'newer.pth')
    state = train(tmp_path / 'run', tmp_path / 'newer.pth')
    assert state['draws'] == 2
    assert distance(state, load_safetensors(LATER)) > 1e-4


def test_a_new_run_draws_in_the_newest_way_and_goes_on_with_it(tmp_path):
    straight = train(tmp_path / 'straight')
    assert train(tmp_path / 'paused', end_step=2)['draws'] == 2
    paused = train(tmp_path / 'paused')
    assert straight['draws'] == paused['draws'] == 2
    assert distance(paused, straight['model']) == 0


def test_a_run_of_a_newer_version_is_refused(tmp_path):
    torch.save({**load_checkpoint(OLD), 'draws': 3}, tmp_path / 'newer.pth')
    with pytest.raises(ValueError, match='this run needs a newer k-diffusion'):
        train(tmp_path / 'run', tmp_path / 'newer.pth')


def test_one_item_a_step_is_exact_on_resume(tmp_path):
    """Noise of a single item, in a process that has drawn before and in one that has not."""
    straight = train(tmp_path / 'straight', batch_size=1)
    train(tmp_path / 'paused', end_step=1, batch_size=1)
    philox._counters.cache_clear()  # as another process would begin
    paused = train(tmp_path / 'paused', batch_size=1)
    assert distance(paused, straight['model']) == 0


@pytest.mark.parametrize('contrast', [0.0, 0.2])
def test_parts_of_a_batch_train_as_the_whole(tiny, tmp_path, contrast):
    """To rounding, with the contrast between items of a part too."""
    config = tiny(
        ('model', 'loss_contrast', contrast),
        ('model', 'dropout_rate', 0.0),
        ('model', 'augment_prob', 0.0),
        ('optimizer', 'type', 'sgd'),
        ('optimizer', 'lr', 0.1),
    )
    states = []
    for i, settings in enumerate(
        ({}, {'micro_batch': 4}, {'batch_size': 2, 'grad_accum_steps': 4})
    ):
        run = K.train(
            config,
            name='run',
            run_dir=tmp_path / str(i),
            end_step=2,
            demo_every=0,
            evaluate_n=0,
            num_workers=0,
            held_out=0,
            **settings,
        )
        states.append(load_checkpoint(run.checkpoint))
    for state in states[1:]:
        assert distance(state, states[0]['model']) < 1e-6
    if contrast:
        with pytest.raises(ValueError, match=r'must be at least 2 with model.loss_contrast 0.2'):
            K.train(config, name='run', run_dir=tmp_path / 'one', end_step=2, micro_batch=1)
