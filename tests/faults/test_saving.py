"""Faults of the disk and of checkpoints, injected into this process."""

from __future__ import annotations

import json
import os
import resource
import signal
import stat

import pytest
import torch

import k_diffusion as K
from k_diffusion.cli import main as kd
from k_diffusion.cli.train import main
from k_diffusion.training import Retention, RunFolder, RunLocked, run_lock


@pytest.fixture
def train(tmp_path):
    from .conftest import TINY

    (tmp_path / 'tiny.json').write_text(json.dumps(TINY))

    def run(*more):
        return main(
            [
                '--config',
                str(tmp_path / 'tiny.json'),
                '--run-dir',
                str(tmp_path / 'run'),
                '--name',
                'tiny',
                '--device',
                'cpu',
                '--demo-every',
                '0',
                '--evaluate-n',
                '0',
                '--no-report',
                *more,
            ]
        )

    run.folder = RunFolder(tmp_path / 'run', 'tiny')
    return run


def flip(path, at=0.5):
    data = bytearray(path.read_bytes())
    data[int(len(data) * at)] ^= 1
    path.write_bytes(data)


def test_a_flipped_bit_is_found_and_the_checkpoint_before_is_gone_on_from(train, capsys):
    assert train('--end-step', '4', '--save-every', '2') == 0
    flip(train.folder.checkpoint_path(4))
    torch.load(train.folder.checkpoint_path(4), weights_only=True)  # torch itself says nothing
    with pytest.raises(ValueError, match=r'its SHA-256 is not .*; `k-diffusion checkpoints'):
        K.load_model(train.folder.path)
    assert kd(['checkpoints', str(train.folder.path)]) == 1
    assert 'DAMAGED: tiny_00000004.pth is damaged: its SHA-256' in capsys.readouterr().out
    assert train('--end-step', '6', '--save-every', '2') == 0
    err = capsys.readouterr().err
    assert (
        'tiny_00000004.pth is skipped: tiny_00000004.pth is damaged' in err
        and 'tiny_00000002.pth, step 2' in err
    )
    assert kd(['checkpoints', str(train.folder.path), '--json']) == 0
    assert [entry['step'] for entry in json.loads(capsys.readouterr().out)] == [6, 4, 2]


@pytest.mark.parametrize('size', [0, 5000])
def test_an_emptied_and_a_cut_checkpoint_are_passed_over(train, capsys, size):
    assert train('--end-step', '4', '--save-every', '2') == 0
    os.truncate(train.folder.checkpoint_path(4), size)
    assert train('--end-step', '4', '--save-every', '2') == 0
    assert f'has {size:,} bytes and was written with' in capsys.readouterr().err
    assert train.folder.newest()[1]['step'] == 4


def test_a_lost_or_broken_manifest_is_survived(train, capsys):
    assert train('--end-step', '2') == 0
    train.folder.manifest.path.write_text('{"checkpoints": [')
    assert train('--end-step', '3') == 0
    assert 'checkpoints are not verified' in capsys.readouterr().err
    assert kd(['checkpoints', str(train.folder.path)]) == 0
    out = capsys.readouterr().out
    assert 'whole' in out and 'it is not on record' in out


def test_a_write_limit_is_a_sentence_and_leaves_nothing_half_written(train, capsys):
    assert train('--end-step', '2') == 0
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, limits[1]))
    try:
        assert train('--end-step', '4') == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    err = capsys.readouterr().err
    assert (
        'the checkpoint of step 4 could not be written: the disk of' in err
        and 'tiny_00000002.pth, is whole' in err
    )
    assert 'Traceback' not in err and not [
        p for p in train.folder.path.iterdir() if '.tmp' in p.name
    ]
    assert train('--end-step', '4') == 0


def test_a_place_that_cannot_be_written_to_is_told_before_training(train, tmp_path, capsys):
    (tmp_path / 'run').write_text('a file, no folder')
    assert train('--end-step', '2') == 1
    assert 'cannot write to' in capsys.readouterr().err


def test_a_read_only_disk_is_a_sentence(train, capsys, monkeypatch):
    real = os.open

    def read_only(path, flags, *more, **options):
        if str(path).endswith('.lock'):
            raise OSError(30, 'Read-only file system', str(path))
        return real(path, flags, *more, **options)

    monkeypatch.setattr(os, 'open', read_only)
    assert train('--end-step', '2') == 1
    assert (
        '(Read-only file system); choose another folder with --run-dir' in capsys.readouterr().err
    )


def test_the_lock_is_the_kernels_and_ends_with_its_holder(tmp_path):
    folder = tmp_path / 'a' / 'b'
    ready, write_end = os.pipe()
    child = os.fork()
    if child == 0:  # holds the lock until it is killed
        with run_lock(folder, 'x'):
            os.write(write_end, b'!')
            signal.pause()
    os.read(ready, 1)
    with (
        pytest.raises(RunLocked, match=f"run 'x' in .* is locked by process {child} on host "),
        run_lock(folder, 'x'),
    ):
        pass
    with run_lock(folder, 'another'):
        pass
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert (folder / 'x.lock').exists()
    with run_lock(folder, 'x'), pytest.raises(RunLocked), run_lock(folder, 'x'):
        pass
    assert list(folder.iterdir()) == []


def test_the_last_the_best_and_the_pinned_are_kept(train, capsys):
    assert Retention(2, 1).reasons(
        [1, 2, 3, 4, 5], {1: {'loss': 3.0}, 2: {'loss': 1.0}, 5: {'loss': 2.0}}, {3, 9}
    ) == {5: ['last'], 4: ['last'], 3: ['pinned'], 2: ['best'], 1: []}
    assert train('--end-step', '3', '--save-every', '1') == 0
    assert kd(['checkpoints', str(train.folder.path), '--pin', '1']) == 0
    assert 'pinned' in capsys.readouterr().out
    assert (
        train('--end-step', '9', '--save-every', '1', '--keep-last', '2', '--keep-best', '0') == 0
    )
    assert [int(path.stem[-8:]) for path in train.folder.checkpoints()] == [9, 8, 1]
    assert len(train.folder.manifest.read()) == 3
    assert kd(['checkpoints', str(train.folder.path), '--pin', '7']) == 1
    assert 'got 7' in capsys.readouterr().err


def test_sigterm_is_status_143_and_ctrl_c_status_0(train, monkeypatch, capsys):
    from k_diffusion.training import Trainer

    real = Trainer.train_step

    def interrupted(number):
        def step(self, batches):
            if self.step % 3 == 1:
                os.kill(os.getpid(), number)
            real(self, batches)

        return step

    for number, status in ((signal.SIGTERM, 143), (signal.SIGINT, 0)):
        monkeypatch.setattr(Trainer, 'train_step', interrupted(number))
        assert train('--end-step', '9') == status
    assert 'tiny interrupted at step 5' in capsys.readouterr().err
    assert [int(path.stem[-8:]) for path in train.folder.checkpoints()] == [5, 2]


def test_a_grid_is_given_up_when_a_stop_is_asked(train, monkeypatch, capsys):
    from k_diffusion.tasks.run import demo_grid as hooks

    real = hooks.generate

    def generate(*arguments, callback, **options):
        def wrapped(i, info):
            if info['i'] == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            assert info['i'] < 5, 'it went on after the signal'
            callback(i, info)

        return real(*arguments, callback=wrapped, **options)

    monkeypatch.setattr(hooks, 'generate', generate)
    assert train('--end-step', '9', '--demo-every', '2', '--sample-n', '2') == 143
    assert 'the demo grid of step 2 is cancelled' in capsys.readouterr().err
    assert not list(train.folder.path.glob('*demo*')) and train.folder.newest()[1]['step'] == 2


def test_a_fault_of_the_data_saves_the_finished_steps(train, monkeypatch, capsys):
    from k_diffusion.data import Loader

    real = Loader._batches

    def dying(self, first):
        for i, batch in enumerate(real(self, first)):
            if i == 3:
                raise ChildProcessError('a process that reads died')
            yield batch

    monkeypatch.setattr(Loader, '_batches', dying)
    assert train('--end-step', '9') == 1
    assert (
        'a process that reads died' in capsys.readouterr().err
        and train.folder.newest()[1]['step'] == 3
    )


def test_one_percent_of_broken_pictures_is_skipped_and_listed(train, tmp_path, capsys):
    from PIL import Image

    from .conftest import TINY

    pictures = tmp_path / 'pictures'
    pictures.mkdir()
    for i in range(200):
        Image.new('L', (16, 16), i).save(pictures / f'{i:03}.png')
    broken = [pictures / '050.png', pictures / '150.png']
    broken[0].write_bytes(b'')
    os.truncate(broken[1], 45)
    config = {**TINY, 'dataset': {'type': 'imagefolder', 'location': str(pictures)}}
    (tmp_path / 'tiny.json').write_text(json.dumps(config))
    assert train('--end-step', '3', '--num-workers', '0') == 0
    assert '198 images' in capsys.readouterr().err
    lines = (train.folder.path / 'tiny_skipped.txt').read_text().splitlines()
    assert [line.split(': ')[0] for line in lines] == [str(path) for path in broken]


def test_code_in_a_checkpoint_is_not_run(train, tmp_path, capsys):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / 'pwned'),)

    for flag in ('--resume', '--resume-inference'):
        torch.save({'model': Evil()}, tmp_path / 'evil.pth')
        assert train('--end-step', '1', flag, str(tmp_path / 'evil.pth')) == 1
    (train.folder.path / 'tiny_00000007.shards').mkdir(parents=True)
    torch.save(Evil(), train.folder.path / 'tiny_00000007.shards' / 'rank_00000.pth')
    assert train('--end-step', '1') == 1
    err = capsys.readouterr().err
    assert (
        err.count('because reading anything else could run code') >= 3
        and not (tmp_path / 'pwned').exists()
    )


def test_a_checkpoint_is_readable_by_others(train):
    assert train('--end-step', '1') == 0
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(train.folder.checkpoint_path(1).stat().st_mode) == 0o666 & ~umask
