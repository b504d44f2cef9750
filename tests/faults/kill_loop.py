"""Kill one training run many times: `python tests/faults/kill_loop.py [--kills 1000]`.

The run is forked from a process that has imported everything, so that a kill costs a fraction of a
second. Half of the kills fall at a random time after the start, half while a checkpoint is being
written. After each kill the newest checkpoint must be whole and no older than before. In the end
the run is finished, and its state, log and files are compared with those of a run that was left
alone. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import accelerate  # noqa: F401  (imported before the fork, so that no run imports it anew)
import torch
from conftest import TINY
from torch.utils._pytree import tree_leaves

import k_diffusion.cli.train as cli
import k_diffusion.tasks.train  # noqa: F401
from k_diffusion.core.weights import load_checkpoint
from k_diffusion.training import RunFolder, read_log

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
LOGGED = ('step', 'loss', 'smoothed_loss', 'lr', 'ema_decay', 'loss_by_noise')


def start_run(folder: Path, config: Path, end_step: int) -> int:
    """Fork a training run that saves at each step; return its process id."""
    pid = os.fork()
    if pid:
        return pid
    os.setsid()
    log = os.open(folder.parent / f'{folder.name}.log', os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    status = 1
    try:
        status = cli.main(
            [
                '--config',
                str(config),
                '--name',
                'tiny',
                '--run-dir',
                str(folder),
                '--device',
                'cpu',
                '--evaluate-n',
                '0',
                '--demo-every',
                '0',
                '--num-workers',
                '0',
                '--no-report',
                '--save-every',
                '1',
                '--keep-last',
                '3',
                '--end-step',
                str(end_step),
            ]
        )
    finally:
        os._exit(status)


def is_alive(pid: int) -> bool:
    return os.waitpid(pid, os.WNOHANG)[0] == 0


def wait_for_moment(pid: int, folder: Path, moments: random.Random) -> str:
    """Wait for the moment of a kill; return its kind: 'random' or 'writing'."""
    if moments.random() < 0.5:
        time.sleep(moments.uniform(0.0, 1.5))
        return 'random'
    mark, later = f'.{pid}.tmp', moments.randint(1, 4)
    names: set[str] = set()
    until = time.monotonic() + 20
    while time.monotonic() < until and is_alive(pid):
        names |= {path.name for path in folder.glob('.*') if mark in path.name}
        if len(names) >= later:
            time.sleep(moments.uniform(0.0, 0.004))
            return 'writing'
    return 'random'


def kill_many(folder: Path, config: Path, kills: int, seed: int) -> dict[str, int]:
    """Kill the run `kills` times; return how often each kind of moment was hit."""
    moments, reached = random.Random(seed), 0
    counts = {'random': 0, 'writing': 0}
    run = RunFolder(folder, 'tiny')
    while sum(counts.values()) < kills:
        pid = start_run(folder, config, 1_000_000)
        kind = wait_for_moment(pid, folder, moments)
        os.killpg(pid, signal.SIGKILL) if os.getpgid(pid) == pid else os.kill(pid, signal.SIGKILL)
        if os.waitpid(pid, 0)[1] != signal.SIGKILL:
            raise SystemExit(f'the run ended before kill {sum(counts.values())}: see the log')
        counts[kind] += 1
        newest = run.newest()
        step = newest[1]['step'] if newest else 0
        if step < reached:
            raise SystemExit(f'the newest whole checkpoint went from step {reached} to {step}')
        reached = step
    return {**counts, 'reached': reached}


def finish(folder: Path, config: Path, end_step: int) -> None:
    """Run to `end_step` without a kill."""
    status = os.waitpid(start_run(folder, config, end_step), 0)[1]
    if status:
        raise SystemExit(f'the run in {folder} ended with status {status}: see the log')


def differences(killed: Path, straight: Path, step: int) -> list[str]:
    """Name what differs between the two runs: state, logged values, file names."""
    states = [
        load_checkpoint(RunFolder(folder, 'tiny').checkpoint_path(step))
        for folder in (killed, straight)
    ]
    keys = [key for key in KEYS if not is_same(states[0][key], states[1][key])]
    logs = [
        [
            {key: line[key] for key in LOGGED}
            for line in read_log(folder / 'tiny_log.jsonl')
            if line['step'] % 10 == 0
        ]
        for folder in (killed, straight)
    ]
    files = [sorted(path.name for path in folder.iterdir()) for folder in (killed, straight)]
    more = sorted(set(files[0]) ^ set(files[1]))
    return keys + ['log'] * (logs[0] != logs[1]) + [f'file {name}' for name in more]


def is_same(a: object, b: object) -> bool:
    pairs = list(zip(tree_leaves(a), tree_leaves(b), strict=True))
    return all(torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--folder', type=Path, help='a new folder (default: a temporary one)')
    parser.add_argument('--kills', type=int, default=1000)
    parser.add_argument('--seed', type=int, default=0)
    arguments = parser.parse_args()
    place = arguments.folder or Path(tempfile.mkdtemp())
    place.mkdir(exist_ok=True)
    killed, straight, config = place / 'killed', place / 'straight', place / 'tiny.json'
    config.write_text(json.dumps(TINY))
    began = time.monotonic()
    counts = kill_many(killed, config, arguments.kills, arguments.seed)
    end_step = counts['reached'] + 2
    for folder in (killed, straight):
        finish(folder, config, end_step)
    differing = differences(killed, straight, end_step)
    print(
        json.dumps(
            {
                **counts,
                'steps': end_step,
                'differences': differing,
                'seconds': round(time.monotonic() - began),
            }
        )
    )
    sys.exit(bool(differing))


if __name__ == '__main__':
    main()
