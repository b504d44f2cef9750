"""Heartbeats between the processes of a run, to detect one that hangs or is disconnected."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch

from .launcher import launcher_pid

#: Seconds between heartbeats, and without one until a process counts as lost.
EVERY, LIMIT = 3.0, 30.0


@contextmanager
def heartbeat(rank: int, world: int, every: float = EVERY, limit: float = LIMIT) -> Iterator[None]:
    """Update this process's counter in the launcher's TCPStore, and watch that of the next rank.

    If the watched rank is silent for `limit` seconds, this process reports it and exits at once.
    It does nothing for one process, or without the launcher's MASTER_ADDR and MASTER_PORT.

    Args:
        rank: The number of this process.
        world: The number of processes.
        every: Seconds between updates.
        limit: Seconds without an update after which a process counts as lost.
    """
    address, port = os.environ.get('MASTER_ADDR'), os.environ.get('MASTER_PORT')
    if world == 1 or not address or not port:
        yield
        return
    store = torch.distributed.TCPStore(
        address, int(port), is_master=False, timeout=timedelta(seconds=limit)
    )
    names = torch.distributed.PrefixStore(
        f'signs of life {os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)} {_round(rank)}', store
    )
    end = threading.Event()
    thread = threading.Thread(
        target=_watch, args=(names, rank, (rank + 1) % world, every, limit, end), daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join(2 * every)


def _round(rank: int) -> str:
    """Return a name of this start, shared by all processes, to ignore earlier heartbeats."""
    name = [f'{time.time():.3f}' if rank == 0 else '']
    torch.distributed.broadcast_object_list(name)
    return name[0]


def _watch(
    store: Any, rank: int, other: int, every: float, limit: float, end: threading.Event
) -> None:
    """Send heartbeats, and end the process if those of another one stop."""
    last_sign, heard_at, count, launcher = b'', time.monotonic(), 0, launcher_pid()
    while not end.wait(every):
        count += 1
        try:
            store.set(str(rank), str(count))
            sign = store.get(str(other)) if store.check([str(other)]) else b''
        except (RuntimeError, ValueError):  # the store has ended, or the run is over
            sign = last_sign
            if launcher_pid() != launcher:  # the trainer notices, saves and stops
                heard_at = time.monotonic()
        if sign != last_sign or sign == b'done':
            last_sign, heard_at = sign, time.monotonic()
        if time.monotonic() - heard_at > limit and not end.is_set():
            print(
                f'process {other} has not been heard of for {limit:.0f} s: it hangs, or its '
                f'machine is cut off; process {rank} ends. '
                'Run the same command again: it goes on from the last checkpoint',
                file=sys.stderr,
                flush=True,
            )
            os._exit(1)
    try:
        store.set(str(rank), 'done')
    except (RuntimeError, ValueError):
        return
