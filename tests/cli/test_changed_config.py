"""Resuming under another config: changes that take effect are listed, the rest are refused."""

import json
import shutil

import pytest
import torch

from k_diffusion.cli.train import main
from k_diffusion.core.weights import load_checkpoint


def go_on(config, folder, *more):
    quiet = [
        '--demo-every',
        '0',
        '--evaluate-n',
        '0',
        '--device',
        'cpu',
        '--no-report',
        '--end-step',
        '5',
    ]
    return main(['--config', config, '--run-dir', str(folder), '--name', 'tiny', *quiet, *more])


@pytest.fixture
def stopped(trained, tmp_path):
    """A copy of the folder of a run that was stopped at step 3."""
    return shutil.copytree(trained, tmp_path / 'stopped')


def last_rate(folder):
    with open(folder / 'tiny_log.jsonl') as file:
        return json.loads(file.read().splitlines()[-1])['lr']


@pytest.mark.parametrize('by_flag', [True, False])
def test_another_learning_rate_takes_effect_and_is_told(tiny, stopped, capsys, by_flag):
    config = tiny() if by_flag else tiny(('optimizer', 'lr', 0.001))
    assert go_on(config, stopped, *(['--lr', '0.001'] if by_flag else [])) == 0
    err = capsys.readouterr().err
    assert 'note: changed settings take effect: optimizer.lr 0.004 -> 0.001' in err
    assert last_rate(stopped) == pytest.approx(0.001)


def test_losses_of_another_meaning_are_not_compared(tiny, stopped, capsys):
    """The weights of `karras` are at least four times those of `soft-min-snr`; here the loss is
    multiplied by a million.
    """
    record = stopped / 'tiny_manifest.json'
    assert go_on(tiny(('model', 'loss_weighting', 'soft-min-snr')), stopped) == 0
    err = capsys.readouterr().err
    assert 'model.loss_weighting karras -> soft-min-snr' in err
    assert '; losses before and after are not comparable, and their averages restart' in err
    state = load_checkpoint(stopped / 'tiny_00000005.pth')
    lines = [json.loads(line) for line in (stopped / 'tiny_log.jsonl').read_text().splitlines()]
    assert state['ema_stats']['loss_since'] == 3.0 and record.is_file()
    assert (
        state['ema_stats']['loss'] < 0.5 * lines[0]['smoothed_loss']
    )  # (nothing of the old loss is in it)
    assert go_on(tiny(('model', 'loss_weighting', 'soft-min-snr')), stopped, '--end-step', '6') == 0
    assert 'compared' not in capsys.readouterr().err
    assert load_checkpoint(stopped / 'tiny_00000006.pth')['ema_stats']['loss_since'] == 3.0


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (('training', 'batch_size', 4), 'training.batch_size 8 -> 4'),
        (('model', 'augment_prob', 0.0), 'model.augment_prob 0.12 -> 0'),
        (
            ('model', 'sigma_sample_density', {'type': 'lognormal', 'mean': -0.5, 'std': 1.2}),
            'mean -1',
        ),
        (('ema_sched', 'power', 0.75), 'ema_sched.power'),
    ],
)
def test_what_may_change_is_told_with_old_and_new(tiny, stopped, capsys, change, message):
    assert go_on(tiny(change), stopped) == 0
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (('model', 'sigma_data', 1.0), 'model.sigma_data 0.5 -> 1'),
        (('model', 'preconditioning', 'v'), 'model.preconditioning karras -> v'),
        (('model', 'channels', [16, 32]), 'model.channels'),
        (('optimizer', 'type', 'adamw'), 'optimizer.type muon -> adamw'),
    ],
)
def test_what_changes_the_meaning_of_the_weights_is_refused_with_the_way_out(
    tiny, stopped, capsys, change, message
):
    before = {path.name: path.read_bytes() for path in stopped.iterdir()}
    assert go_on(tiny(change), stopped) == 1
    err = capsys.readouterr().err
    assert (
        message in err
        and ('--reset-optimizer' if change[0] == 'optimizer' else 'start a new run') in err
    )
    assert (
        'Traceback' not in err
        and {path.name: path.read_bytes() for path in stopped.iterdir()} == before
    )


def test_another_optimizer_goes_on_with_moments_that_start_anew(tiny, stopped, capsys):
    assert go_on(tiny(('optimizer', 'type', 'adamw')), stopped, '--reset-optimizer') == 0
    assert "the optimizer's moments restart" in capsys.readouterr().err
    state = load_checkpoint(stopped / 'tiny_00000005.pth')['opt']['state']
    assert {int(entry['step']) for entry in state.values() if 'step' in entry} == {
        2
    }  # of steps 4 and 5


def test_another_data_set_is_told(tiny, stopped, tmp_path, capsys):
    """The digests of the pictures are compared, not their names."""
    from PIL import Image

    for label in range(10):
        (tmp_path / 'pictures' / str(label)).mkdir(parents=True)
        for i in range(2):
            pixels = torch.randint(0, 255, (16, 16), dtype=torch.uint8)
            Image.fromarray(pixels.numpy()).save(tmp_path / 'pictures' / str(label) / f'{i}.png')
    config = tiny(
        ('dataset', 'type', 'imagefolder'),
        ('dataset', 'labels', 'folders'),
        ('dataset', 'location', str(tmp_path / 'pictures')),
    )
    assert go_on(config, stopped) == 0
    assert 'the data set 10,000 -> 20 images' in capsys.readouterr().err
