import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import k_diffusion as K
from k_diffusion.cli.train import main
from k_diffusion.core.weights import load_checkpoint


def run(config, folder, *more):
    quiet = ['--demo-every', '0', '--evaluate-n', '0', '--device', 'cpu']
    return main(['--config', config, '--run-dir', str(folder), '--name', 'tiny', *quiet, *more])


def same(a, b):
    """Return whether two checkpoints hold the same numbers, bit for bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def test_a_run_leaves_what_the_original_leaves(trained):
    names = sorted(path.name for path in trained.iterdir())
    assert names == [
        'tiny_00000003.pth',
        'tiny_config.json',
        'tiny_demo_00000002.png',
        'tiny_demo_00000003.png',
        'tiny_log.csv',
        'tiny_log.jsonl',
        'tiny_manifest.json',
        'tiny_report.html',
        'tiny_state.json',
    ]
    assert json.loads((trained / 'tiny_state.json').read_text()) == {
        'latest_checkpoint': 'tiny_00000003.pth'
    }
    checkpoint = load_checkpoint(trained / 'tiny_00000003.pth')
    original = {
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
    assert original <= checkpoint.keys() and checkpoint['step'] == 3
    assert Image.open(trained / 'tiny_demo_00000003.png').size == (32, 32)
    log = [json.loads(line) for line in (trained / 'tiny_log.jsonl').read_text().splitlines()]
    assert log[-1]['step'] == 3 and log[-1]['loss'] > 0
    filled = json.loads((trained / 'tiny_config.json').read_text())
    assert filled['model']['skip_stages'] == 0 and filled['lr_sched']['type'] == 'constant'


def test_stopping_and_going_on_changes_nothing(tiny, tmp_path, capsys):
    config = tiny()
    accumulated = ['--grad-accum-steps', '2', '--batch-size', '4']
    assert run(config, tmp_path / 'straight', '--end-step', '4', *accumulated) == 0
    assert run(config, tmp_path / 'parted', '--end-step', '2', *accumulated) == 0
    assert run(config, tmp_path / 'parted', '--end-step', '4', *accumulated) == 0
    straight, parted = (
        load_checkpoint(tmp_path / name / 'tiny_00000004.pth') for name in ('straight', 'parted')
    )
    for key in ('model', 'model_ema', 'opt', 'sched', 'ema_sched', 'step', 'items', 'ema_stats'):
        assert same(straight[key], parted[key]), key
    assert not same(straight['model'], straight['model_ema'])


def test_looking_changes_nothing(tiny, tmp_path):
    config = tiny()
    assert run(config, tmp_path / 'blind', '--end-step', '2') == 0
    assert (
        main(
            [
                '--config',
                config,
                '--run-dir',
                str(tmp_path / 'seeing'),
                '--name',
                'tiny',
                '--device',
                'cpu',
                '--demo-every',
                '1',
                '--sample-n',
                '2',
                '--end-step',
                '2',
            ]
        )
        == 0
    )
    blind, seeing = (
        load_checkpoint(tmp_path / name / 'tiny_00000002.pth')['model']
        for name in ('blind', 'seeing')
    )
    assert same(blind, seeing)


def test_weights_held_to_a_constraint_stay_there(tiny, tmp_path):
    config = tiny(
        ('model', 'type', 'image_v2'),
        ('model', 'channels', [32, 32]),
        ('optimizer', 'type', 'adamw'),
        ('optimizer', 'lr', 0.01),
    )
    assert run(config, tmp_path / 'run', '--end-step', '2') == 0
    weights = load_checkpoint(tmp_path / 'run' / 'tiny_00000002.pth')['model']
    convolutions = [value for name, value in weights.items() if name.endswith('weight')]
    assert max((w.flatten(1).square().mean(1).sqrt() - 1).abs().max() for w in convolutions) < 1e-3
    assert weights['inner_model.out_gain'] != 0
    denoiser, _ = K.load_model(tmp_path / 'run')
    assert type(denoiser) is K.layers.DenoiserWithVariance


def test_the_end_is_reached_once(trained, capsys):
    before = (trained / 'tiny_00000003.pth').stat().st_mtime_ns
    assert run(str(trained.parent / 'tiny.json'), trained, '--end-step', '3') == 0
    assert 'tiny has reached end_step at step 3' in capsys.readouterr().err
    assert (trained / 'tiny_00000003.pth').stat().st_mtime_ns == before


def test_the_seed_decides(tiny, tmp_path):
    config = tiny()
    for name, seed in (('a', '1'), ('b', '1'), ('c', '2')):
        assert run(config, tmp_path / name, '--end-step', '1', '--seed', seed) == 0
    a, b, c = (load_checkpoint(tmp_path / name / 'tiny_00000001.pth')['model'] for name in 'abc')
    assert same(a, b) and not same(a, c)


def test_json_line(tiny, tmp_path, capsys):
    assert run(tiny(), tmp_path / 'run', '--end-step', '1', '--json') == 0
    done = json.loads(capsys.readouterr().out)
    assert (
        done['step'] == 1
        and done['status'] == 'done'
        and done['processes'] == 1
        and done['loss'] > 0
    )


@pytest.mark.parametrize(
    'change, complaint',
    [
        (('model', 'sigma_dat', 0.5), 'did you mean model.sigma_data'),
        (('model', 'my_key', 1), 'model.my_key is not a key'),
        (
            ('dataset', 'num_classes', 'ten'),
            "dataset.num_classes is 'ten'; it takes an integer",
        ),
        (('model', 'channels', '32'), 'model.channels'),
        (('dataset', 'type', 'dmeo'), "did you mean 'demo'"),
        (('training', 'batch_size', 20000), '10000 images, fewer than the 20000'),
        (('optimizer', 'type', 'adam'), 'unknown type'),
        (('model', 'augment_wrapper', False), 'network learns augmented pictures as real ones'),
        (
            ('model', 'mapping_cond_dim', 3),
            'model.mapping_cond_dim is 3, and no condition uses it',
        ),
        (
            ('model', 'sigma_sample_density', {'type': 'loguniform', 'min_value': 100}),
            'model.sigma_sample_density.min_value and max_value must satisfy',
        ),
        (('sampling', 'schedule', 'vp'), 'sampling.schedule: unknown schedule'),
    ],
)
def test_a_mistake_is_one_sentence(tiny, tmp_path, capsys, change, complaint):
    assert run(tiny(change), tmp_path / 'run', '--end-step', '1') == 1
    err = capsys.readouterr().err
    assert complaint in err and 'Traceback' not in err
    assert not (tmp_path / 'run').exists()


def test_all_mistakes_of_a_config_are_told_at_once(tiny, tmp_path, capsys):
    assert (
        run(
            tiny(
                ('model', 'input_chanels', 1), ('optimizer', 'betas', 3), ('lr_sched', 'type', 'x')
            ),
            tmp_path / 'run',
        )
        == 1
    )
    err = capsys.readouterr().err
    assert 'model.input_channels' in err and 'optimizer.betas' in err and 'lr_sched.type' in err


def test_another_shape_is_told_and_nothing_is_touched(tiny, trained, capsys):
    before = {path.name: path.read_bytes() for path in trained.iterdir()}
    assert run(tiny(('model', 'channels', [16, 32])), trained, '--end-step', '9') == 1
    err = capsys.readouterr().err
    assert 'model.channels [16, 16] -> [16, 32]; keep it, or start a new run' in err
    assert {path.name: path.read_bytes() for path in trained.iterdir()} == before


def test_a_missing_folder_and_an_empty_one(tiny, tmp_path, capsys):
    for location in ('nowhere', 'empty'):
        (tmp_path / 'empty').mkdir(exist_ok=True)
        config = tiny(
            ('dataset', 'type', 'imagefolder'),
            ('dataset', 'location', str(tmp_path / location)),
            ('dataset', 'num_classes', 0),
        )
        assert run(config, tmp_path / 'run', '--end-step', '1') == 1
        assert location in capsys.readouterr().err


def test_nan_stops_the_run_and_saves_nothing(tiny, tmp_path, capsys):
    assert run(tiny(('optimizer', 'lr', 1e30)), tmp_path / 'run', '--end-step', '30') == 1
    err = capsys.readouterr().err
    assert 'not finite' in err or 'the loss is' in err
    assert 'no checkpoint was saved before' in err and not list((tmp_path / 'run').glob('*.pth'))


def test_a_picture_folder_trains_and_names_what_it_skips(tiny, tmp_path, capsys):
    folder = tmp_path / 'pictures' / 'deep'
    folder.mkdir(parents=True)
    for i in range(10):
        Image.new('RGB', (40, 20 + i), (25 * i, 0, 0)).save(folder / f'{i}.png')
    (folder / 'broken.png').write_bytes(b'no picture')
    config = tiny(
        ('dataset', 'type', 'imagefolder'),
        ('dataset', 'location', str(tmp_path / 'pictures')),
        ('dataset', 'num_classes', 0),
        ('model', 'input_channels', 3),
    )
    assert run(config, tmp_path / 'run', '--end-step', '2', '--num-workers', '0') == 0
    assert 'broken.png' in capsys.readouterr().err
    assert 'broken.png' in (tmp_path / 'run' / 'tiny_skipped.txt').read_text()


def test_wrong_usage_names_the_nearest_option(capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(['--config', 'x', '--batchsize', '3'])
    assert exit_info.value.code == 2 and 'did you mean --batch-size' in capsys.readouterr().err


def test_weights_of_an_inference_file_start_a_run(tiny, trained, tmp_path, capsys):
    from k_diffusion.tasks.convert import convert

    file = convert(trained / 'tiny_00000003.pth', tmp_path / 'w.safetensors', 'fp32')
    still = tiny(('optimizer', 'lr', 1e-9), ('optimizer', 'adamw_lr', 1e-9))
    assert run(still, tmp_path / 'run', '--end-step', '1', '--resume-inference', str(file)) == 0
    new, old = (
        load_checkpoint(tmp_path / 'run' / 'tiny_00000001.pth')['model'],
        load_checkpoint(trained / 'tiny_00000003.pth')['model_ema'],
    )
    assert all(torch.allclose(new[key], old[key], atol=1e-6) for key in old)


def test_two_processes_are_one_run(tiny, tmp_path):
    """train.py under torchrun: the same items, noise and weights as one process with the whole
    batch.
    """
    config = tiny(('model', 'dropout_rate', 0.0), ('model', 'skip_stages', 1))
    quiet = [
        '--config',
        config,
        '--name',
        'tiny',
        '--demo-every',
        '0',
        '--evaluate-n',
        '0',
        '--end-step',
        '3',
        '--device',
        'cpu',
    ]
    door = Path(__file__).parents[2] / 'train.py'
    launcher = [
        sys.executable,
        '-m',
        'torch.distributed.run',
        '--standalone',
        '--nproc-per-node',
        '2',
    ]
    command = [
        *launcher,
        str(door),
        *quiet,
        '--batch-size',
        '4',
        '--run-dir',
        str(tmp_path / 'two'),
        '--json',
    ]
    launched = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert 'tiny: 2 processes on cpu' in launched.stderr, launched.stderr
    assert [json.loads(line)['processes'] for line in launched.stdout.splitlines()] == [2]
    assert main([*quiet, '--batch-size', '8', '--run-dir', str(tmp_path / 'one')]) == 0
    one, two = (load_checkpoint(tmp_path / name / 'tiny_00000003.pth') for name in ('one', 'two'))
    assert one['items'] == two['items'] == 24
    for key, value in one['model'].items():
        torch.testing.assert_close(two['model'][key], value, atol=1e-5, rtol=1e-4)


def test_the_state_is_saved_before_a_grid_is_drawn(tiny, tmp_path, capsys, monkeypatch):
    def broken(*_, **__):
        raise OSError('No space left on device')

    monkeypatch.setattr('k_diffusion.tasks.run.demo_grid.save_image', broken)
    assert (
        main(
            [
                '--config',
                tiny(),
                '--run-dir',
                str(tmp_path / 'run'),
                '--name',
                'tiny',
                '--device',
                'cpu',
                '--end-step',
                '1',
                '--demo-every',
                '5',
                '--sample-n',
                '1',
            ]
        )
        == 0
    )
    assert (
        'No space left' in capsys.readouterr().err
        and (tmp_path / 'run' / 'tiny_00000001.pth').exists()
    )


def test_a_checkpoint_of_the_original_is_gone_on_with(tiny, tmp_path, capsys):
    """Its keys, its optimizer (not fused), its schedule's state with `verbose`, its place in
    NAME_state.json.
    """
    config = tiny(('optimizer', 'type', 'adamw'))
    filled = K.config.load_config(config)
    model = K.config.make_model(filled)
    optimizer = torch.optim.AdamW(
        model.param_groups(1e-4), betas=(0.95, 0.999), eps=1e-6, weight_decay=1e-3
    )
    model(torch.randn(2, 1, 16, 16), torch.ones(2)).square().mean().backward()
    optimizer.step()
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    sched = {
        'warmup': 0.0,
        'base_lrs': [1e-4, 1e-4],
        'last_epoch': 7,
        'verbose': False,
        '_step_count': 8,
        '_get_lr_called_within_step': False,
        '_last_lr': [1e-4, 1e-4],
    }
    ema_sched = {
        'inv_gamma': 1.0,
        'power': 0.6667,
        'min_value': 0.0,
        'max_value': 0.9999,
        'start_at': 0,
        'last_epoch': 7,
    }
    state = {
        'config': json.loads(Path(config).read_text()),
        'model': weights,
        'model_ema': weights,
        'opt': optimizer.state_dict(),
        'sched': sched,
        'ema_sched': ema_sched,
        'epoch': 0,
        'step': 7,
        'gns_stats': None,
        'ema_stats': {'loss': 0.5},
        'demo_gen': torch.Generator().get_state(),
        'elapsed': 12.5,
    }
    torch.save(state, tmp_path / 'tiny_00000007.pth')
    (tmp_path / 'tiny_state.json').write_text(
        json.dumps({'latest_checkpoint': 'tiny_00000007.pth'})
    )
    assert run(config, tmp_path, '--end-step', '9') == 0
    assert 'resuming from' in capsys.readouterr().err
    after = load_checkpoint(tmp_path / 'tiny_00000009.pth')
    assert (after['step'], after['ema_sched']['last_epoch'], after['sched']['last_epoch']) == (
        9,
        9,
        9,
    ) and after['elapsed'] > 12.5
    moved = [key for key in weights if not torch.equal(after['model'][key], weights[key])]
    assert 'inner_model.proj_in.weight' in moved
    denoiser, _ = K.load_model(tmp_path / 'tiny_00000007.pth')
    assert denoiser(torch.randn(1, 1, 16, 16), torch.ones(1)).shape == (1, 1, 16, 16)


def test_the_noise_scale_in_one_process(tiny, tmp_path, capsys):
    """It is logged, and taking batches in halves leaves the run what it was."""
    config = tiny(('model', 'dropout_rate', 0.0))
    assert run(config, tmp_path / 'plain', '--end-step', '10') == 0
    assert run(config, tmp_path / 'followed', '--end-step', '10', '--gns') == 0
    last = json.loads((tmp_path / 'followed' / 'tiny_log.jsonl').read_text().splitlines()[-1])
    assert last['step'] == 10 and last['gns'] > 0
    plain, followed = (
        load_checkpoint(tmp_path / name / 'tiny_00000010.pth') for name in ('plain', 'followed')
    )
    assert plain['items'] == followed['items'] == 80 and followed['gns_stats']['ema_var'] > 0
    for key, value in plain['model'].items():
        torch.testing.assert_close(followed['model'][key], value, atol=1e-3, rtol=1e-2)
    assert run(config, tmp_path / 'odd', '--end-step', '1', '--gns', '--batch-size', '7') == 1
    assert '--batch-size must be even with --gns in one process' in capsys.readouterr().err
