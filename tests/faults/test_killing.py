"""Processes killed, interrupted and starved, from outside; `make test-faults` runs these."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from k_diffusion.core.weights import load_checkpoint
from k_diffusion.training import RunFolder, read_log

pytestmark = pytest.mark.faults
KEYS = (
    'model',
    'model_ema',
    'opt',
    'sched',
    'ema_sched',
    'step',
    'items',
    'ema_stats',
    'loss_by_noise',
)


def wait_for(condition, seconds=60):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError('it did not come to pass in time')


def kill_group(process, number=signal.SIGKILL):
    os.killpg(process.pid, number)
    return process.communicate(timeout=60)


def test_kill_9_at_twenty_random_moments(program, same):
    """A run that saves each step is killed again and again, and ends as one that was left alone."""
    moments, kills = random.Random(7), 0
    folder = RunFolder(program.run_dir, 'tiny')
    steps = ['--save-every', '1', '--keep-last', '3', '--end-step', '600', '--no-report']
    while kills < 20:
        before = len(list(program.run_dir.glob('*.pth'))) if program.run_dir.exists() else 0
        process = program.start(*steps)
        newest = (folder.checkpoints() or [None])[0]
        wait_for(
            lambda newest=newest, process=process: (
                process.poll() is not None or (folder.checkpoints() or [None])[0] != newest
            )
        )
        time.sleep(moments.random() * 0.4)
        assert process.poll() is None, process.communicate()
        kill_group(process)
        kills += 1
        assert len(folder.checkpoints()) >= min(1, before)
        path, state = folder.newest()
        assert state['step'] >= kills, path
    reached = folder.newest()[1]['step']
    last = str(reached + 2)
    steps[steps.index('600')] = last
    done = program.run(*steps)
    assert done.returncode == 0, done.stderr
    straight = program.run(
        '--end-step', last, '--no-report', run_dir=program.folder / 'straight', timeout=300
    )
    assert straight.returncode == 0, straight.stderr
    ours = load_checkpoint(folder.checkpoint_path(int(last)))
    theirs = load_checkpoint(
        RunFolder(program.folder / 'straight', 'tiny').checkpoint_path(int(last))
    )
    for key in KEYS:
        assert same(ours[key], theirs[key]), key
    timeless = ('step', 'loss', 'smoothed_loss', 'lr', 'ema_decay', 'loss_by_noise')
    logs = [
        [
            {key: line[key] for key in timeless}
            for line in read_log(place / 'tiny_log.jsonl')
            if line['step'] % 10 == 0
        ]
        for place in (program.run_dir, program.folder / 'straight')
    ]
    assert logs[0] == logs[1]
    assert not list(program.run_dir.glob('*.lock'))


def test_forty_kills_of_which_half_fall_into_a_save(program):
    command = [
        sys.executable,
        str(Path(__file__).with_name('kill_loop.py')),
        '--kills',
        '40',
        '--folder',
        str(program.folder / 'kills'),
        '--seed',
        '3',
    ]
    done = subprocess.run(
        command, env=program.environment(), capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report['random'] + report['writing'] == 40 and report['writing'] >= 10
    assert report['differences'] == []


@pytest.mark.parametrize(('number', 'status'), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_signals_end_a_run_within_ten_seconds_in_the_middle_of_a_grid(program, number, status):
    process = program.start('--demo-every', '3', '--sample-n', '3000', '--no-report')
    wait_for(lambda: (program.run_dir / 'tiny_config.json').exists())
    time.sleep(2.5)  # some steps, and well into the grid
    began = time.monotonic()
    os.kill(process.pid, number)
    _, err = process.communicate(timeout=30)
    assert time.monotonic() - began < 10
    assert process.returncode == status, err
    assert 'is cancelled by a stop request' in err and 'Traceback' not in err
    assert 'tiny interrupted at step 3' in err
    assert RunFolder(program.run_dir, 'tiny').newest()[1]['step'] == 3


def test_the_second_ctrl_c_leaves_at_once(program):
    process = program.start('--demo-every', '3', '--sample-n', '3000', '--no-report')
    wait_for(lambda: (program.run_dir / 'tiny_config.json').exists())
    time.sleep(2.5)
    for _ in range(2):
        os.kill(process.pid, signal.SIGINT)
        time.sleep(0.005)
    began = time.monotonic()
    _, err = process.communicate(timeout=30)
    assert (
        time.monotonic() - began < 5 and process.returncode in (0, 130) and 'Traceback' not in err
    )


def test_two_processes_on_one_folder(program):
    first = program.start()
    wait_for(lambda: (program.run_dir / 'tiny_config.json').exists())
    second = program.run('--end-step', '3')
    assert second.returncode == 1
    assert (
        f'is locked by process {first.pid} on host ' in second.stderr
        and 'Traceback' not in second.stderr
    )
    kill_group(first)
    assert (program.run_dir / 'tiny.lock').exists()
    third = program.run('--end-step', '3')
    assert third.returncode == 0, third.stderr
    assert not (program.run_dir / 'tiny.lock').exists()


def test_a_dead_rank_ends_the_run_and_is_named(program):
    process = program.start('--save-every', '1', '--batch-size', '4', '--no-report', processes=2)
    folder = RunFolder(program.run_dir, 'tiny')
    wait_for(lambda: len(folder.checkpoints()) > 2)
    children = subprocess.run(
        ['ps', '--ppid', str(process.pid), '-o', 'pid='], capture_output=True, text=True
    ).stdout.split()
    ranks = {
        Path(f'/proc/{pid}/environ').read_text().split('\0LOCAL_RANK=')[1][0]: int(pid)
        for pid in children
    }
    began = time.monotonic()
    os.kill(ranks['1'], signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert time.monotonic() - began < 60 and process.returncode != 0
    assert 'process 0 lost contact with another process of the run' in err
    assert re.search(r'rank\s*: 1 .*\n\s*exitcode\s*: -9', err), err
    reached = folder.newest()[1]['step']
    done = program.run(
        '--save-every', '1', '--batch-size', '4', '--end-step', str(reached + 2), processes=2
    )
    assert done.returncode == 0 and 'resuming from' in done.stderr, done.stderr


def test_a_rank_that_hangs_ends_the_run_and_is_named(program):
    process = program.start(
        '--save-every', '5', '--keep-last', '2', '--batch-size', '4', '--no-report', processes=2
    )
    folder = RunFolder(program.run_dir, 'tiny')
    wait_for(lambda: len(folder.checkpoints()) > 1)
    children = subprocess.run(
        ['ps', '--ppid', str(process.pid), '-o', 'pid='], capture_output=True, text=True
    ).stdout.split()
    ranks = {
        Path(f'/proc/{pid}/environ').read_text().split('\0LOCAL_RANK=')[1][0]: int(pid)
        for pid in children
    }
    time.sleep(5)
    began = time.monotonic()
    os.kill(ranks['1'], signal.SIGSTOP)
    wait_for(
        lambda: (
            not Path(f'/proc/{ranks["0"]}').exists()
            or 'Z' in Path(f'/proc/{ranks["0"]}/stat').read_text().split()[2]
        )
    )
    assert time.monotonic() - began < 60
    os.kill(ranks['1'], signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert 'process 1 has not been heard of for 30 s' in err and process.returncode != 0


def test_torchrun_restarts_resume(program, monkeypatch):
    # Without it the new processes find the old ones' addresses in the launcher's store (torch 2.13;
    # docs/training.md says so).
    monkeypatch.setenv('TORCH_DISABLE_SHARE_RDZV_TCP_STORE', '1')
    process = program.start(
        '--save-every',
        '1',
        '--batch-size',
        '4',
        '--no-report',
        '--end-step',
        '100000',
        processes=2,
        launcher=('--standalone', '--max-restarts', '2'),
    )
    folder = RunFolder(program.run_dir, 'tiny')
    wait_for(lambda: len(folder.checkpoints()) > 2)

    def workers():
        lines = subprocess.run(
            ['ps', '--ppid', str(process.pid), '-o', 'pid='], capture_output=True, text=True
        ).stdout.split()
        return [int(pid) for pid in lines]

    before = workers()
    os.kill(before[-1], signal.SIGKILL)
    wait_for(lambda: (now := workers()) and len(now) == 2 and not set(now) & set(before))
    reached = folder.newest()[1]['step']
    wait_for(lambda: folder.newest()[1]['step'] > reached + 2)
    _, err = kill_group(process, signal.SIGTERM)
    assert 'resuming from' in err


def test_sigterm_stops_all_processes_at_one_step_and_saves(program):
    process = program.start('--batch-size', '4', '--no-report', processes=2)
    wait_for(lambda: (program.run_dir / 'tiny_config.json').exists())
    time.sleep(2)
    began = time.monotonic()
    kill_group(process, signal.SIGTERM)
    assert time.monotonic() - began < 10
    assert RunFolder(program.run_dir, 'tiny').newest()[1]['step'] > 0


def test_a_disk_that_fills_up(program, tmp_path):
    command = program.command('--save-every', '2', '--end-step', '6', '--no-report')
    limit = ['bash', '-c', 'ulimit -f 100; exec "$@"', 'limited', *command]  # blocks of 1 KiB
    done = subprocess.run(
        limit, env=program.environment(), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert (
        'the checkpoint of step 2 could not be written' in done.stderr
        and 'is full' in done.stderr
        and 'Traceback' not in done.stderr
    )
    assert [p.name for p in program.run_dir.iterdir() if '.pth' in p.name] == []
    assert program.run('--save-every', '2', '--end-step', '6').returncode == 0


def test_pieces_are_gone_on_with_by_another_number_of_processes(program):
    """Two processes, then four, then one: the weights of one process with the whole batch."""
    import torch

    steps = ['--no-report', '--ema-snapshots', '2']
    for processes, batch, end, shard in ((2, 4, 2, True), (4, 2, 4, True), (1, 8, 6, False)):
        done = program.run(
            '--batch-size',
            str(batch),
            '--end-step',
            str(end),
            *steps,
            *(['--shard'] if shard else []),
            processes=processes,
        )
        assert done.returncode == 0, done.stderr
    names = sorted(path.name for path in RunFolder(program.run_dir, 'tiny').checkpoints())
    assert names == ['tiny_00000002.shards', 'tiny_00000004.shards', 'tiny_00000006.pth']
    assert (
        program.run(
            '--batch-size', '8', '--end-step', '6', *steps, run_dir=program.folder / 'one'
        ).returncode
        == 0
    )
    ours, theirs = (
        load_checkpoint(program.run_dir / names[-1]),
        load_checkpoint(program.folder / 'one' / names[-1]),
    )
    for key in ('model', 'model_ema'):
        for name, value in theirs[key].items():
            torch.testing.assert_close(ours[key][name], value, atol=2e-5, rtol=1e-3)
    manifest = json.loads((program.run_dir / 'tiny_manifest.json').read_text())['checkpoints']
    assert len(manifest['tiny_00000004.shards']['files']) == 4


def test_grids_drawn_by_two_processes_are_those_of_one(program):
    from PIL import Image

    from k_diffusion.core.images import pil_bytes

    for processes, batch in ((2, 4), (1, 8)):
        done = program.run(
            '--batch-size',
            str(batch),
            '--end-step',
            '3',
            '--demo-every',
            '3',
            '--sample-n',
            '5',
            processes=processes,
            run_dir=program.folder / str(processes),
        )
        assert done.returncode == 0, done.stderr
    two, one = (
        pil_bytes(Image.open(program.folder / name / 'tiny_demo_00000003.png')).int()
        for name in '21'
    )
    assert two.shape == one.shape == (1, 32, 48)
    assert (two - one).abs().max() <= 2 and one.float().std() > 5


@pytest.mark.skipif(
    shutil.which('ip') is None or os.geteuid() != 0,
    reason='needs the right to make network namespaces',
)
def test_two_network_namespaces_are_two_machines(program):
    """Two launchers, each alone in its network, joined by a wire."""

    def ip(*words):
        return subprocess.run(['ip', *words], check=True)

    names = [f'kd{os.getpid()}a', f'kd{os.getpid()}b']
    wires = [f'v{os.getpid()}a'[:15], f'v{os.getpid()}b'[:15]]
    try:
        for name in names:
            ip('netns', 'add', name)
        ip('link', 'add', wires[0], 'type', 'veth', 'peer', 'name', wires[1])
        for i, (name, wire) in enumerate(zip(names, wires)):
            ip('link', 'set', wire, 'netns', name)
            ip('-n', name, 'addr', 'add', f'10.77.0.{i + 1}/24', 'dev', wire)
            ip('-n', name, 'link', 'set', wire, 'up')
            ip('-n', name, 'link', 'set', 'lo', 'up')
        machines = []
        for i, (name, wire) in enumerate(zip(names, wires)):
            launcher = (
                '--nnodes',
                '2',
                '--node-rank',
                str(i),
                '--master-addr',
                '10.77.0.1',
                '--master-port',
                '29511',
            )
            command = program.command(
                '--batch-size',
                '2',
                '--end-step',
                '3',
                '--no-report',
                processes=2,
                launcher=launcher,
            )
            machines.append(
                subprocess.Popen(
                    ['ip', 'netns', 'exec', name, *command],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    env={**program.environment(), 'GLOO_SOCKET_IFNAME': wire},
                    text=True,
                )
            )
        outs = [machine.communicate(timeout=120) for machine in machines]
        assert [machine.returncode for machine in machines] == [0, 0], outs
        assert 'tiny: 4 processes on cpu' in outs[0][1]
    finally:
        for name in names:
            subprocess.run(['ip', 'netns', 'del', name], check=False)
    import torch

    assert (
        program.run(
            '--batch-size', '8', '--end-step', '3', run_dir=program.folder / 'one'
        ).returncode
        == 0
    )
    ours, theirs = (
        load_checkpoint(place / 'tiny_00000003.pth')['model']
        for place in (program.run_dir, program.folder / 'one')
    )
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, atol=2e-5, rtol=1e-3)
