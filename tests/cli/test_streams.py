"""Standard output and error that are closed, full or without a reader."""

from __future__ import annotations

import errno
import io
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from k_diffusion.cli import main as kd
from k_diffusion.training import RunFolder

ROOT = Path(__file__).parents[2]


class Refusing(io.StringIO):
    """A stream that the system lets nothing be written to."""

    def __init__(self, number):
        super().__init__()
        self.number = number

    def write(self, text):
        raise OSError(self.number, os.strerror(self.number))

    def flush(self):
        raise OSError(self.number, os.strerror(self.number))


def commands(trained, out):
    """Cheap commands by name: their arguments, and a file that says their work is done."""
    checkpoint = str(trained / 'tiny_00000003.pth')
    (out / 'pictures').mkdir()
    grid = next(trained.glob('*_demo_*.png'))
    for name in 'ab':
        (out / 'pictures' / f'{name}.png').write_bytes(grid.read_bytes())
    picture = str(out / 'pictures' / 'a.png')
    return {
        'convert': (['convert', checkpoint, '-o', str(out / 'm.safetensors')], 'm.safetensors'),
        'grid': (['grid', picture, picture, '-o', str(out / 'g.png')], 'g.png'),
        'dataset': (['dataset', str(out / 'pictures'), '-o', str(out / 's.png')], 's.png'),
        'sample': (
            [
                'sample',
                '--checkpoint',
                checkpoint,
                '-n',
                '2',
                '--steps',
                '2',
                '--device',
                'cpu',
                '--out',
                str(out / 'samples'),
            ],
            'samples/grid.png',
        ),
        'calibrate': (
            [
                'calibrate',
                '--checkpoint',
                checkpoint,
                '--steps',
                '1',
                '--noises',
                '2',
                '--bases',
                'rab',
                '--device',
                'cpu',
                '--out',
                str(out / 'c.json'),
            ],
            'c.json',
        ),
        'likelihood': (
            [
                'likelihood',
                '--checkpoint',
                checkpoint,
                '-n',
                '2',
                '--steps',
                '1',
                '--device',
                'cpu',
                '--out',
                str(out / 'l'),
            ],
            'l/bits.csv',
        ),
        'train': (
            [
                'train',
                '--config',
                str(trained.parent / 'tiny.json'),
                '--run-dir',
                str(out / 'run'),
                '--name',
                'tiny',
                '--end-step',
                '2',
                '--device',
                'cpu',
                '--demo-every',
                '0',
                '--evaluate-n',
                '0',
                '--num-workers',
                '0',
                '--json',
            ],
            'run/tiny_00000002.pth',
        ),
        'info': (['info', checkpoint], None),
        'checkpoints': (['checkpoints', str(trained)], None),
        'version': (['--version'], None),
        'help': (['--help'], None),
        'config': (['config', str(out / 'm.safetensors')], None),
    }


NAMES = [
    'convert',
    'grid',
    'dataset',
    'sample',
    'calibrate',
    'likelihood',
    'train',
    'info',
    'checkpoints',
    'version',
    'help',
    'config',
]
QUICK = [name for name in NAMES if name != 'calibrate']


@pytest.mark.parametrize('kind', ['closed', 'full', 'unread'])
def test_every_command_does_its_work(trained, tmp_path, monkeypatch, kind):
    streams = {
        'closed': lambda: None,
        'full': lambda: Refusing(errno.ENOSPC),
        'unread': lambda: Refusing(errno.EPIPE),
    }
    cases = commands(trained, tmp_path)
    for name in QUICK:
        arguments, file = cases[name]
        with monkeypatch.context() as patch:
            patch.setattr(sys, 'stderr', streams[kind]())
            patch.setattr(sys, 'stdout', streams[kind]())
            status = kd(arguments)
        assert status == (0 if kind == 'closed' else 1), name
        assert file is None or (tmp_path / file).exists(), name


def test_a_full_standard_output_is_told_and_a_full_standard_error_is_not(
    trained, monkeypatch, capsys
):
    with monkeypatch.context() as patch:
        patch.setattr(sys, 'stderr', Refusing(errno.ENOSPC))
        assert kd(['checkpoints', str(trained)]) == 0
    assert 'step         3' in capsys.readouterr().out
    with monkeypatch.context() as patch:
        patch.setattr(sys, 'stdout', Refusing(errno.ENOSPC))
        assert kd(['checkpoints', str(trained)]) == 1
    assert (
        'standard output cannot be written to (No space left on device)' in capsys.readouterr().err
    )
    with monkeypatch.context() as patch:
        patch.setattr(sys, 'stdout', Refusing(errno.EPIPE))
        assert kd(['checkpoints', str(trained)]) == 1
    assert capsys.readouterr().err == ''


def test_a_closed_descriptor_is_not_taken_by_a_file(tmp_path):
    """Output to descriptor 2 must not end up in the next file that is opened."""
    script = (
        'import os, sys\n'
        'from k_diffusion.cli.streams import safe_streams\n'
        'with safe_streams():\n'
        f'    file = open({str(tmp_path / "file")!r}, "w")\n'
        '    os.write(2, b"noise"); os.write(1, b"noise"); print("x", file=sys.stderr)\n'
        '    sys.exit(file.fileno())\n'
    )
    done = subprocess.run(
        ['bash', '-c', 'exec "$@" <&- >&- 2>&-', 'x', sys.executable, '-c', script],
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
        check=False,
    )
    assert done.returncode > 2 and (tmp_path / 'file').read_text() == ''


@pytest.mark.faults
@pytest.mark.parametrize(
    ('name', 'streams'),
    [
        *itertools.product(NAMES, ['<&- >&- 2>&-', '>/dev/full']),
        *itertools.product(['train', 'sample'], ['2>&-', '>&-', '2>/dev/full']),
    ],
)
def test_every_program_does_its_work(trained, tmp_path, name, streams):
    cases = commands(trained, tmp_path)
    arguments, file = cases[name]
    if name == 'config':
        assert kd(cases['convert'][0]) == 0
    command = [sys.executable, '-m', 'k_diffusion.cli', *arguments]
    done = subprocess.run(
        ['bash', '-c', f'"$@" {streams}', 'x', *command],
        capture_output=True,
        text=True,
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
        check=False,
    )
    lost = streams == '>/dev/full'
    assert done.returncode == (1 if lost else 0), done.stderr
    assert 'Traceback' not in done.stderr and 'Exception' not in done.stderr
    assert ('standard output cannot be written to' in done.stderr) == lost
    assert file is None or (tmp_path / file).exists()
    if name == 'train':
        assert RunFolder(tmp_path / 'run', 'tiny').newest()[1]['step'] == 2
        if streams in ('2>&-', '2>/dev/full'):
            assert json.loads(done.stdout)['step'] == 2
