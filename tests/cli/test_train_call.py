"""Training from Python: settings, one call, and what it returns."""

import pytest
import torch

import k_diffusion as K
from k_diffusion.core.weights import load_checkpoint
from k_diffusion.tasks.run.settings import RunSettings, TrainSettings
from k_diffusion.tasks.train import train

QUIET = {'device': 'cpu', 'demo_every': 0, 'evaluate_n': 0, 'show': False}


def test_a_call_by_keywords_and_one_with_settings_are_the_same_run(tiny, tmp_path):
    config = tiny()
    run = K.train(config, name='m', run_dir=tmp_path / 'a', end_step=2, **QUIET)
    settings = TrainSettings(config, name='m', run_dir=tmp_path / 'b', end_step=2, **QUIET)
    other = train(settings)
    assert (
        (run.step, run.status, run.folder)
        == (other.step, other.status, tmp_path / 'a')
        == (2, 'done', tmp_path / 'a')
    )
    a, b = (load_checkpoint(r.checkpoint)['model'] for r in (run, other))
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert RunSettings is TrainSettings and run.loss > 0


def test_the_denoiser_of_a_run_has_the_averaged_weights(tiny, tmp_path):
    run = K.train(tiny(), name='m', run_dir=tmp_path / 'a', end_step=2, **QUIET)
    averaged = load_checkpoint(run.checkpoint)['model_ema']
    own = run.denoiser.inner_model.state_dict()
    assert own.keys() == averaged.keys()
    assert all(torch.equal(own[key], averaged[key]) for key in averaged)
    assert run.denoiser is run.denoiser and not run.denoiser.training
    assert 'denoiser' not in run.summary()


def test_all_wrong_settings_are_named_at_once():
    with pytest.raises(ValueError) as caught:
        K.train(
            'c.json',
            batch_size=0,
            num_workers=-1,
            mixed_precision='fp8',
            name='a/b',
            lr=0.0,
            micro_batch='half',
            shard=True,
            gns=True,
        )
    text = str(caught.value)
    for name in (
        'batch_size',
        'num_workers',
        'mixed_precision',
        'name',
        'lr',
        'micro_batch',
        'shard',
    ):
        assert f'{name} must' in text, name
    assert '--' not in text
    with pytest.raises(TypeError, match="no argument 'endstep', did you mean 'end_step'"):
        K.train('c.json', endstep=3)
