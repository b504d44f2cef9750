"""Runs go on with the draws that they began with, and begin with the newest."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import k_diffusion as K
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
