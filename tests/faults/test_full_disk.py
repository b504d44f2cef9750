"""Checkpoints on a disk that is full, with and without a rule of what is kept."""

from __future__ import annotations

import errno
import os
import re
import subprocess

import pytest
import torch

from k_diffusion.core import weights
from k_diffusion.training import Retention, RunFolder

SIZE = 100_000  # bytes of the tensor in a checkpoint of these tests


def state(step):
    return {
        'model': {'w': torch.full((SIZE // 4,), float(step))},
        'model_ema': {},
        'opt': {},
        'sched': {},
        'ema_sched': {},
        'step': step,
    }


class SmallDisk:
    """Lets `torch.save` write only while the checkpoints of a folder take less than `capacity`."""

    def __init__(self, folder, capacity, monkeypatch):
        self.folder, self.capacity, self.real = folder, capacity, torch.save
        monkeypatch.setattr(weights.torch, 'save', self)

    def __call__(self, value, file):
        used = sum(path.stat().st_size for path in self.folder.glob('*.pth'))
        if used + SIZE > self.capacity:
            file.write(b'half')
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.real(value, file)


def steps_of(run):
    return [int(path.stem[-8:]) for path in run.checkpoints()]


def test_old_checkpoints_go_first_where_the_disk_is_full(tmp_path, monkeypatch):
    run = RunFolder(tmp_path, 'm', keep=Retention(2, 0))
    SmallDisk(tmp_path, 2.5 * SIZE, monkeypatch)
    for step in (1, 2, 3, 4):
        run.save(state(step))
    assert steps_of(run) == [4, 3] and sorted(run.manifest.read()) == [
        'm_00000003.pth',
        'm_00000004.pth',
    ]
    assert run.newest()[1]['model']['w'][0] == 4


def test_the_only_whole_checkpoint_is_never_deleted_for_a_new_one(tmp_path, monkeypatch):
    run = RunFolder(tmp_path, 'm', keep=Retention(1, 0))
    run.save(state(1))
    SmallDisk(tmp_path, 1.5 * SIZE, monkeypatch)
    with pytest.raises(
        OSError,
        match=r'could not be written: the disk of .* is full .*'
        r'the checkpoint takes about 0\.2 MB',
    ):
        run.save(state(2))
    assert steps_of(run) == [1]


def test_a_damaged_checkpoint_does_not_count_as_the_whole_one(tmp_path, monkeypatch):
    run = RunFolder(tmp_path, 'm')
    for step in (1, 2, 3):
        run.save(state(step))
    path = run.checkpoint_path(3)
    path.write_bytes(path.read_bytes()[:-1] + b'?')
    run.keep = Retention(2, 0)
    disk = SmallDisk(tmp_path, 3.5 * SIZE, monkeypatch)
    run.save(state(4))
    assert steps_of(run) == [4, 3]  # 2 was the whole one until 4 was written
    path = run.checkpoint_path(4)
    path.write_bytes(path.read_bytes()[:-1] + b'?')
    disk.capacity = 2.5 * SIZE
    with pytest.raises(OSError, match='is full'):
        run.save(state(5))
    assert steps_of(run) == [4, 3]  # none is whole, so that none is deleted


def test_without_a_rule_nothing_is_deleted_and_the_missing_room_is_named(tmp_path, monkeypatch):
    run = RunFolder(tmp_path, 'm')
    SmallDisk(tmp_path, 2.5 * SIZE, monkeypatch)
    usage = type('Usage', (), {'free': 50_000})
    monkeypatch.setattr('shutil.disk_usage', lambda path: usage)
    run.save(state(1))
    run.save(state(2))
    with pytest.raises(OSError, match='are free: free at least') as error:
        run.save(state(3))
    takes, free, missing = map(float, re.findall(r'([\d.]+) MB', str(error.value)))
    assert SIZE / 1e6 <= takes <= 2 * SIZE / 1e6 and free == 0.1 and missing <= takes
    assert steps_of(run) == [2, 1] and 'keep_last=3' in str(error.value)


@pytest.mark.faults
@pytest.mark.skipif(os.geteuid() != 0, reason='needs the right to mount a file system')
def test_the_advice_of_the_message_helps_on_a_disk_that_is_really_full(program, tmp_path):
    """Fill a small file system with checkpoints, then run again with --keep-last."""
    disk = tmp_path / 'disk'
    disk.mkdir()
    mounted = ['mount', '-t', 'tmpfs', '-o', 'size=1500k', 'none', str(disk)]
    if subprocess.run(mounted, capture_output=True).returncode:
        pytest.skip('mounting is not permitted here')
    try:
        steps = ['--save-every', '1', '--no-report', '--end-step', '40']
        first = program.run(*steps, run_dir=disk / 'run')
        assert first.returncode == 1 and 'free at least' in first.stderr, first.stderr
        assert 'Traceback' not in first.stderr
        again = program.run(*steps, '--keep-last', '2', run_dir=disk / 'run')
        assert again.returncode == 0, again.stderr
        run = RunFolder(disk / 'run', 'tiny')
        assert steps_of(run)[:2] == [40, 39] and run.newest()[1]['step'] == 40
    finally:
        subprocess.run(['umount', str(disk)], check=True)
