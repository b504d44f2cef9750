"""Temporary files of processes that were killed while writing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from k_diffusion.core.files import remove_stale, whole_file
from k_diffusion.training import RunFolder

WRITER = """
import pathlib, sys, time
from k_diffusion.core.files import whole_file
with whole_file(pathlib.Path(sys.argv[1])) as temporary:
    temporary.write_text('half')
    print(temporary, flush=True)
    time.sleep(60)
"""


def start_writer(path):
    """Start a process that stops in the middle of writing `path`; return it and its temporary
    file.
    """
    writer = subprocess.Popen(
        [sys.executable, '-c', WRITER, str(path)], stdout=subprocess.PIPE, text=True
    )
    return writer, path.parent / os.path.basename(writer.stdout.readline().strip())


def test_leftovers_of_killed_writers_are_removed_and_those_of_living_ones_stay(tmp_path):
    (tmp_path / 'cache').mkdir()
    places = [tmp_path / 'm_00000011.pth', tmp_path / 'cache' / 'pictures.uint8']
    writers = [start_writer(path) for path in places]
    alive, living = start_writer(tmp_path / 'm_00000012.pth')
    for writer, leftover in writers:
        assert leftover.exists()
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    dead_pid = writers[0][0].pid
    host = living.name.split('.')[-4]
    old = tmp_path / f'.m_00000011.pth.{dead_pid}.tmp.pth'  # an earlier form, without the host
    pieces = tmp_path / f'.m_00000011.shards.{host}.{dead_pid}.tmp.shards'
    other_host = tmp_path / f'.m_00000011.pth.host-00000000.{dead_pid}.tmp.pth'
    foreign = [
        tmp_path / name
        for name in (
            f'.another.{dead_pid}.tmp.txt',
            '.m_notes.tmp',
            f'm_{dead_pid}.tmp.pth',
            f'.m_x.{dead_pid}.tmp~',
        )
    ]
    pieces.mkdir()
    (pieces / 'rank_00000.pth').write_text('half')
    for path in (old, other_host, *foreign):
        path.write_text('x')
    RunFolder(tmp_path, 'm').sweep()
    alive.kill()
    alive.wait()
    assert not any(leftover.exists() for _, leftover in writers) and not old.exists()
    assert not pieces.exists()
    assert all(path.exists() for path in (living, other_host, *foreign))
    assert remove_stale(tmp_path, 'm') == [living]


def test_leftovers_of_an_earlier_process_of_the_same_number_are_removed(tmp_path):
    """In a container each start is process 1."""
    with whole_file(tmp_path / 'm_x.json') as temporary:
        temporary.write_text('{}')
        leftover = temporary.with_name(temporary.name.replace('m_x', 'm_y'))
    leftover.write_text('half')
    os.utime(leftover, (0, 0))
    with whole_file(tmp_path / 'm_z.json') as being_written:
        being_written.write_text('{}')
        RunFolder(tmp_path, 'm').sweep()
        assert being_written.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ['m_x.json', 'm_z.json']
