"""Several processes of one command (torchrun): who does what, each piece of work kept on the
disk.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, distributed

from ..core.devices import choose_device
from ..core.files import remove_stale
from ..core.tensor_cache import load_cache, save_cache
from ..training.launcher import launcher_pid
from .launch import warn_of_one_process

# items in a piece; a constant, so that another batch size or number of processes finds the same
# pieces
CHUNK = 256


@dataclass(frozen=True)
class World:
    """The processes that work together: how many, and which of them this is."""

    size: int = 1
    rank: int = 0

    @property
    def main(self) -> bool:
        return self.rank == 0

    def wait(self) -> None:
        """Until all have come here."""
        if self.size > 1:
            distributed.barrier()

    @contextlib.contextmanager
    def main_first(self) -> Iterator[None]:
        """Its body runs on the main process before the others, which then find what it left on
        the disk.
        """
        if not self.main:
            self.wait()
        yield
        if self.main:
            self.wait()

    def device(self, asked: str | None) -> torch.device:
        """The device asked for, or the fastest; of several alike, each process takes its own."""
        device = choose_device(asked)
        local = int(os.environ.get('LOCAL_RANK', 0))
        if self.size > 1 and device.type == 'cuda' and device.index is None:
            return torch.device('cuda', local % torch.cuda.device_count())
        return device


@contextlib.contextmanager
def world() -> Iterator[World]:
    """The processes that torchrun started, or this one alone."""
    size = int(os.environ.get('WORLD_SIZE', 1))
    if size == 1:
        warn_of_one_process()
        yield World()
        return
    distributed.init_process_group('gloo', timeout=datetime.timedelta(days=2))
    try:
        yield World(size, distributed.get_rank())
    finally:
        distributed.destroy_process_group()


def in_pieces(
    folder: Path,
    n: int,
    work: Callable[[range], Tensor],
    world: World,
    report: Callable[[int], object] | None = None,
) -> Tensor:
    """The rows [n, ...] that work(range of items) gives, piece by piece, shared among the processes
    and kept in the folder.

    Pieces that lie there already are not done again, so that a run that was stopped goes on.
    `report` is told how many items of this process's share are done. Every process gets all rows.
    """
    starts = range(0, n, CHUNK)
    if world.main:
        remove_stale(folder, folder.name)
    done, launcher = 0, launcher_pid()
    for start in starts[world.rank :: world.size]:
        if launcher_pid() != launcher:
            raise ChildProcessError(
                f'the launcher (process {launcher}) is gone; run the same '
                f'command again: it goes on with what is kept in {folder}'
            )
        items = range(start, min(start + CHUNK, n))
        path = _path(folder, items)
        if load_cache(path) is None:
            save_cache(path, {'rows': work(items)})
        done += len(items)
        if report is not None:
            report(done)
    world.wait()
    return torch.cat(
        [_rows(_path(folder, range(start, min(start + CHUNK, n)))) for start in starts]
    )


def _rows(path: Path) -> Tensor:
    piece = load_cache(path)
    if piece is None:
        raise FileNotFoundError(
            f'{path} was written and is missing or damaged; check the disk, and run the command '
            'again'
        )
    return piece[0]['rows']


def share_of(n: int, world: World) -> int:
    """How many of n items this process will do."""
    return sum(min(CHUNK, n - start) for start in range(0, n, CHUNK)[world.rank :: world.size])


def _path(folder: Path, items: range) -> Path:
    return folder / f'{items.start:08}-{items.stop:08}.safetensors'
