"""Reports and plans of a run: HTML, CSV, TensorBoard, wandb, dry run, portions, compiling.

Also the commands that work on the folder of a run.
"""

from __future__ import annotations

import csv
import json
import re
import sys
import types

import pytest
import torch
from PIL import Image

import k_diffusion as K
from k_diffusion.cli import main as kd
from k_diffusion.core.weights import load_checkpoint
from k_diffusion.tasks.run import micro_batches as portions
from k_diffusion.tasks.run.report import redact, write_report
from k_diffusion.training import RunFolder, read_log
from k_diffusion.training.fitting import activation_bytes, micro_batch


@pytest.fixture
def train(tiny, tmp_path):
    def run(*more, changes=(), place='run'):
        return kd(
            [
                'train',
                '--config',
                tiny(('model', 'dropout_rate', 0.0), *changes),
                '--run-dir',
                str(tmp_path / place),
                '--name',
                'tiny',
                '--device',
                'cpu',
                '--evaluate-n',
                '0',
                '--sample-n',
                '4',
                *more,
            ]
        )

    return run


def test_the_report_holds_everything_and_asks_for_nothing(trained):
    text = (trained / 'tiny_report.html').read_text()
    assert (
        text.count('data:image/png;base64,') == 2
        and '<svg' in text
        and 'loss by noise level' in text
        and 'sigma 0.' in text
    )
    assert '&quot;sigma_data&quot;: 0.5' in text and torch.__version__ in text
    assert not re.search(r'(src|href)="(?!data:)', text) and '<script' not in text


def test_no_secret_is_shown(trained, tmp_path, monkeypatch):
    monkeypatch.setenv('WANDB_API_KEY', 'sesame123')
    config = {
        'dataset': {
            'config': {
                'hf_token': 'sesame123',
                'url': 'https://me:sesame123@host/x',
                'Password': 'sesame123',
            }
        },
        'model': {'name': '<script>'},
    }
    text = write_report(tmp_path, 'x', config).read_text()
    assert (
        'sesame123' not in text and '<script>' not in text and 'https://(left out)@host/x' in text
    )
    assert redact({'image_key': 0, 'api_key': 1}) == {'image_key': 0, 'api_key': '(left out)'}


def test_the_csv_says_what_the_json_lines_say(train, tmp_path):
    assert train('--end-step', '20', '--demo-every', '0') == 0
    assert train('--end-step', '35', '--demo-every', '0') == 0
    lines = read_log(tmp_path / 'run' / 'tiny_log.jsonl')
    with open(tmp_path / 'run' / 'tiny_log.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    assert (
        [int(row['step']) for row in rows] == [line['step'] for line in lines] == [10, 20, 30, 35]
    )
    for row, line in zip(rows, lines):
        assert (
            float(row['smoothed_loss']) == line['smoothed_loss']
            and float(row['loss_by_noise_3']) == line['loss_by_noise'][3] > 0
        )
    assert len(set(lines[-1]['loss_by_noise'])) == 8


def test_a_run_with_a_pause_has_the_log_of_one_without(train, tmp_path):
    assert train('--end-step', '20', '--demo-every', '0', place='a') == 0
    for end in ('13', '20'):
        assert train('--end-step', end, '--demo-every', '0', place='b') == 0
    timeless = ('step', 'loss', 'smoothed_loss', 'lr', 'ema_decay', 'loss_by_noise', 'epoch')
    a, b = (
        [
            {key: line[key] for key in timeless}
            for line in read_log(tmp_path / place / 'tiny_log.jsonl')
            if line['step'] % 10 == 0
        ]
        for place in 'ab'
    )
    assert a == b and len(a) == 2


def test_portions_change_nothing_that_is_drawn(train, tmp_path, capsys):
    assert train('--end-step', '3', '--demo-every', '0', place='whole') == 0
    assert train('--end-step', '3', '--demo-every', '0', '--micro-batch', '2', place='parts') == 0
    assert 'each batch of 8 is split into micro-batches of 2' in capsys.readouterr().err
    whole, parts = (
        load_checkpoint(tmp_path / place / 'tiny_00000003.pth') for place in ('whole', 'parts')
    )
    assert whole['items'] == parts['items'] == 24
    for name, value in whole['model'].items():
        torch.testing.assert_close(parts['model'][name], value, atol=1e-5, rtol=1e-4)
    assert (
        train('--micro-batch', '3', place='odd') == 1
        and 'must divide the batch size 8' in capsys.readouterr().err
    )
    assert (
        train('--micro-batch', 'x', place='odd') == 1
        and "'auto' or a number" in capsys.readouterr().err
    )


def test_a_portion_is_what_fits_into_memory(train, monkeypatch, capsys):
    assert [micro_batch(12, 10, 100, free) for free in (None, 10_000, 250, 160, 155)] == [
        12,
        12,
        4,
        1,
        1,
    ]
    with pytest.raises(MemoryError, match='one picture takes'):
        micro_batch(12, 10, 100, 140)
    x = torch.randn(3, 1000, requires_grad=True)
    assert activation_bytes(lambda: x.exp().sum()) == 12_000
    monkeypatch.setattr(portions, 'free_bytes', lambda device: 2_000_000)
    assert train('--end-step', '1', '--demo-every', '0', '--micro-batch', 'auto') == 0
    portion = int(re.search(r'into micro-batches of (\d+)', capsys.readouterr().err)[1])
    assert 1 <= portion < 8


def test_a_compiler_that_fails_is_told_and_done_without(train, tmp_path, monkeypatch, capsys):
    def broken(network):
        def call(*_, **__):
            raise RuntimeError('no C++ compiler was found')

        wrapped = torch.nn.Module()
        wrapped._orig_mod, wrapped.forward = network, call
        return wrapped

    monkeypatch.setattr(torch, 'compile', broken)
    assert train('--end-step', '2', '--demo-every', '0', '--compile') == 0
    assert 'torch.compile failed (no C++ compiler was found)' in capsys.readouterr().err
    monkeypatch.undo()
    assert train('--end-step', '2', '--demo-every', '0', place='plain') == 0
    a, b = (
        load_checkpoint(tmp_path / place / 'tiny_00000002.pth')['model']
        for place in ('run', 'plain')
    )
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_dry_run_tells_the_plan_and_trains_nothing(train, tmp_path, capsys):
    assert train('--end-step', '500', '--dry-run') == 0
    err = capsys.readouterr().err
    for words in (
        'begins        at step 0',
        '8 images',
        '500 (4,000 images)',
        'GFLOP',
        'images/s',
        'MB every 10,000 steps',
    ):
        assert words in err, words
    assert [path.name for path in (tmp_path / 'run').iterdir()] == ['tiny_first_batch.png']
    assert Image.open(tmp_path / 'run' / 'tiny_first_batch.png').size == (50, 50)


def test_wandb_and_tensorboard_are_fed_and_their_absence_is_told(
    train, tmp_path, monkeypatch, capsys
):
    records = []
    wandb = types.SimpleNamespace(
        init=lambda **options: records.append(options),
        log=lambda values, step: records.append((step, values)),
    )
    monkeypatch.setitem(sys.modules, 'wandb', wandb)
    board = types.ModuleType('torch.utils.tensorboard')
    board.SummaryWriter = lambda place: types.SimpleNamespace(
        add_scalar=lambda *what: records.append(what), flush=lambda: None
    )
    monkeypatch.setitem(sys.modules, 'tensorboard', types.ModuleType('tensorboard'))
    monkeypatch.setitem(sys.modules, 'torch.utils.tensorboard', board)
    assert (
        train(
            '--end-step',
            '10',
            '--demo-every',
            '0',
            '--wandb-project',
            'p',
            '--wandb-offline',
            '--tensorboard',
            '--held-out',
            '40',
            '--evaluate-every',
            '7',
        )
        == 0
    )
    assert records[0]['mode'] == 'offline' and records[0]['project'] == 'p'
    assert {what[0] for what in records[1:] if isinstance(what[0], str)} >= {
        'loss',
        'lr',
        'loss_by_noise_0',
        'held_out_loss',
        'held_out_loss_by_noise_7',
    }
    logged = [what for what in records[1:] if what[0] == 10 and 'held_out_loss' in what[1]]
    assert len(logged) == 1 and logged[0][1]['held_out_step'] == 7
    monkeypatch.setitem(sys.modules, 'tensorboard', None)
    assert train('--end-step', '10', '--tensorboard', place='other') == 1
    assert "pip install 'k-diffusion[tensorboard]'" in capsys.readouterr().err


def test_ema_writes_a_file_that_samples(train, tmp_path, capsys):
    assert train('--end-step', '8', '--demo-every', '0', '--ema-snapshots', '4') == 0
    assert kd(['ema', '--checkpoint-dir', str(tmp_path / 'run'), '--json']) == 0
    assert {(s['step'], s['width']) for s in json.loads(capsys.readouterr().out)} == {
        (n, w) for n in (2, 4, 6, 8) for w in (0.05, 0.1)
    }
    assert (
        kd(
            [
                'ema',
                '--checkpoint-dir',
                str(tmp_path / 'run'),
                '--width',
                '0.1',
                '-o',
                str(tmp_path / 'e.safetensors'),
            ]
        )
        == 0
    )
    denoiser, config = K.load_model(tmp_path / 'e.safetensors')
    assert config['model']['sigma_data'] == 0.5
    tracked = load_checkpoint(tmp_path / 'run' / 'tiny_00000008.pth')['posthoc']['0.1']['model']
    for name, value in tracked.items():
        torch.testing.assert_close(
            denoiser.inner_model.state_dict()[name], value, atol=1e-5, rtol=1e-4
        )
    assert (
        kd(['ema', '--checkpoint-dir', str(tmp_path / 'run'), '--width', '0.5']) == 1
        and 'got 0.5' in capsys.readouterr().err
    )
    assert (
        kd(['ema', '--checkpoint-dir', str(tmp_path), '--width', '0.1']) == 1
        and 'holds no snapshots' in capsys.readouterr().err
    )


def test_dataset_tells_what_to_write_into_the_config(tmp_path, capsys):
    for i in range(6):
        Image.new('L', (20 + i, 20), 40 * i).save(tmp_path / f'{i}.png')
    (tmp_path / 'broken.jpg').write_bytes(b'x')
    assert (
        kd(
            [
                'dataset',
                str(tmp_path),
                '--size',
                '16',
                '-o',
                str(tmp_path / 'sheet.png'),
                '--broken',
                str(tmp_path / 'list.txt'),
            ]
        )
        == 0
    )
    out = capsys.readouterr().out
    values = torch.tensor([40.0 * i for i in range(6)]) / 127.5 - 1
    assert (
        f'"input_channels": 1, "sigma_data": {values.std(correction=0).item():.3f}' in out
        and 'broken     1' in out
    )
    assert (
        Image.open(tmp_path / 'sheet.png').width > 40
        and 'broken.jpg' in (tmp_path / 'list.txt').read_text()
    )
    assert kd(['dataset', str(tmp_path / 'nowhere')]) == 1 and 'nowhere' in capsys.readouterr().err


def test_weights_of_pieces_are_loaded_as_of_a_file(trained, tmp_path):
    """A checkpoint in pieces, cut here by hand as two processes cut it."""
    state = load_checkpoint(trained / 'tiny_00000003.pth')
    flat = [state['model_ema'][name] for name in state['model_ema']]
    tree = {
        **state,
        'model_ema': {name: {'sharded': i} for i, name in enumerate(state['model_ema'])},
    }
    place = tmp_path / 'tiny_00000003.shards'
    place.mkdir()
    for rank in range(2):
        pieces = {
            i: (x.chunk(2)[rank] if rank < len(x.chunk(2)) else x[:0]).clone()
            for i, x in enumerate(flat)
        }
        torch.save(
            {'world': 2, 'pieces': pieces, **({'tree': tree} if rank == 0 else {})},
            place / f'rank_0000{rank}.pth',
        )
    ours, theirs = (
        K.load_model(place)[0].state_dict(),
        K.load_model(trained / 'tiny_00000003.pth')[0].state_dict(),
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert RunFolder(tmp_path, 'tiny').newest()[1]['step'] == 3
