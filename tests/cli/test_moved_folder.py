"""The folder of a run that is moved or deleted while it trains: one sentence, and nothing is
written elsewhere.
"""

from __future__ import annotations

import shutil

import pytest

from k_diffusion.cli.entry import main
from k_diffusion.tasks.run import assembly
from k_diffusion.training import RunFolder


class At:
    """Acts once, after a step."""

    every = 1

    def __init__(self, step, act):
        self.step, self.act = step, act

    def __call__(self, trainer):
        if trainer.step == self.step:
            self.act()


@pytest.fixture
def train(tiny, tmp_path, monkeypatch, capsys):
    """train(act, *flags) -> the exit status of a run, which `act` is done to after step 3, and
    what it said.
    """
    make = assembly.make_hooks

    def start(act, *flags):
        monkeypatch.setattr(assembly, 'make_hooks', lambda *args: [At(3, act), *make(*args)])
        status = main(
            [
                'train',
                '--config',
                tiny(),
                '--run-dir',
                str(tmp_path / 'run'),
                '--name',
                'tiny',
                '--end-step',
                '6',
                '--device',
                'cpu',
                '--save-every',
                '2',
                '--demo-every',
                '0',
                '--evaluate-n',
                '0',
                *flags,
            ]
        )
        return status, capsys.readouterr().err

    return start


def test_a_folder_that_is_moved_stops_the_run_at_the_next_save(train, tmp_path):
    status, stderr = train(lambda: (tmp_path / 'run').rename(tmp_path / 'moved'))
    assert status == 1 and stderr.count('was moved or deleted while its run trained') == 1
    assert 'are lost: move the folder back' in stderr.splitlines()[-1]
    assert not (tmp_path / 'run').exists()
    assert [path.name for path in RunFolder(tmp_path / 'moved', 'tiny').checkpoints()] == [
        'tiny_00000002.pth'
    ]
    (tmp_path / 'moved').rename(tmp_path / 'run')
    status, stderr = train(lambda: None)
    assert status == 0 and 'tiny_00000002.pth, step 2' in stderr


def test_a_folder_that_is_deleted_is_not_made_again(train, tmp_path):
    status, stderr = train(lambda: shutil.rmtree(tmp_path / 'run'), '--ema-snapshots', '6')
    assert status == 1 and stderr.count('was moved or deleted while its run trained') == 1
    assert not (tmp_path / 'run').exists()


def test_another_folder_of_the_same_name_is_left_alone(train, tmp_path):
    def swap():
        (tmp_path / 'run').rename(tmp_path / 'moved')
        (tmp_path / 'run').mkdir()
        (tmp_path / 'run' / 'tiny.lock').write_text('of another process')

    status, stderr = train(swap)
    assert status == 1 and stderr.count('was moved or deleted while its run trained') == 1
    assert [path.name for path in (tmp_path / 'run').iterdir()] == ['tiny.lock']


@pytest.mark.parametrize('swap', [False, True])
def test_nothing_is_written_before_the_next_save_either(train, tmp_path, swap):
    """The log, the report and the list of skipped pictures are due before it."""

    def act():
        (tmp_path / 'run').rename(tmp_path / 'moved')
        if swap:
            (tmp_path / 'run').mkdir()
            (tmp_path / 'run' / 'other').touch()

    status, stderr = train(act, '--save-every', '100', '--end-step', '30')
    assert status == 1 and stderr.count('was moved or deleted while its run trained') == 1
    assert [path.name for path in (tmp_path / 'run').rglob('*')] == ['other'] * swap
