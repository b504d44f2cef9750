"""Progress in a pipe: a line every few seconds."""

from __future__ import annotations

import re
import time

import pytest

from k_diffusion.cli import main as kd
from k_diffusion.tasks import likelihood, progress, sample


@pytest.fixture
def often(monkeypatch):
    monkeypatch.setattr(progress, 'EVERY', 0.05)


def slow(monkeypatch, module, name, seconds):
    """Have `module.name` take longer."""
    real = getattr(module, name)

    def slowed(*arguments, **options):
        time.sleep(seconds)
        result = real(*arguments, **options)
        time.sleep(seconds)
        return result

    monkeypatch.setattr(module, name, slowed)


def test_lines_say_how_far_it_is(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, 'monotonic', lambda: now[0])
    lines = progress.Lines('sample', 1200, 'step')
    now[0] = 130.0
    assert lines.describe() == 'sample: 0 of 1,200 steps after 0:30'
    lines.update(300)
    assert lines.describe() == 'sample: 300 of 1,200 steps after 0:30, 1:30 left'
    share = progress.Lines('calibrate', 1000, '')
    now[0] = 200.0
    share.update(375)
    share.set_description('rab, 5 calls')
    assert share.describe() == 'calibrate: 37 % (rab, 5 calls) after 1:10, 1:57 left'
    assert progress.Lines('clip', None, 'step').describe() == 'clip: 0 steps after 0:00'


def test_sample_speaks_in_a_pipe(trained, tmp_path, often, monkeypatch, capsys):
    slow(monkeypatch, sample, 'generate', 0.2)
    command = [
        'sample',
        '--checkpoint',
        str(trained),
        '-n',
        '2',
        '--steps',
        '2',
        '--sampler',
        'euler',
        '--device',
        'cpu',
    ]
    assert kd([*command, '--out', str(tmp_path / 'a')]) == 0
    err = capsys.readouterr().err
    lines = re.findall(r'^sample: (\d) of 2 steps after 0:0\d', err, re.MULTILINE)
    assert lines[0] == '0' and lines[-1] == '2' and '\r' not in err


@pytest.mark.parametrize('seconds', [0, 0.2])
def test_likelihood_speaks_in_a_pipe(trained, tmp_path, often, monkeypatch, capsys, seconds):
    slow(monkeypatch, likelihood, 'image_bits', seconds)
    monkeypatch.setattr(progress, 'EVERY', 0.05 if seconds else 100.0)
    command = ['likelihood', '--checkpoint', str(trained), '-n', '2', '--steps', '1']
    assert kd([*command, '--device', 'cpu', '--out', str(tmp_path / 'l')]) == 0
    assert ('likelihood: 0 of 2 images' in capsys.readouterr().err) == bool(seconds)


def test_a_terminal_has_a_bar_and_silence_is_kept(monkeypatch, capsys):
    with progress.show_progress('sample', 3, 'step', show=False) as bar:
        bar.update(3)
    assert capsys.readouterr().err == ''
    monkeypatch.setattr('sys.stderr.isatty', lambda: True, raising=False)
    with progress.show_progress('sample', 3, 'step') as bar:
        bar.update(3)
    assert '3/3' in capsys.readouterr().err
