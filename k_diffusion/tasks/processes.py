"""Share work among the processes of one command (torchrun), with each piece kept on disk."""

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
    """The processes that work together.

    Attributes:
        size: Their number.
        rank: The number of this process.
    """

    size: int = 1
    rank: int = 0

    @property
    def main(self) -> bool:
        """True on the first process."""
        return self.rank == 0

    def wait(self) -> None:
        """Wait until all processes call this."""
        if self.size > 1:
            distributed.barrier()

    @contextlib.contextmanager
    def main_first(self) -> Iterator[None]:
        """Run the body on the main process first; the others then find its files on disk."""
        if not self.main:
            self.wait()
        yield
        if self.main:
            self.wait()

    def device(self, name: str | None) -> torch.device:
        """Return the device with the name `name`, or the fastest one.

        Of several GPUs, each process gets its own.
        """
        device = choose_device(name)
        local = int(os.environ.get('LOCAL_RANK', 0))
        if self.size > 1 and device.type == 'cuda' and device.index is None:
            return torch.device('cuda', local % torch.cuda.device_count())
        return device


@contextlib.contextmanager
def world() -> Iterator[World]:
    """Yield the processes that torchrun started, or this one alone."""
    size = int(os.environ.get('WORLD_SIZE', 1))
    if size == 1:
        warn_of_one_process()
        yield World()
        return
    if distributed.is_initialized():  # by a training in this process
        yield World(size, distributed.get_rank())
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
    """Return rows [n, ...] that are computed in pieces, shared among processes and kept on disk.

    Existing pieces are not computed again, so a run that was stopped continues. Every process gets
    all rows.

    Args:
        folder: The folder of the pieces.
        n: The number of rows.
        work: A function from a range of items to their rows.
        world: The processes.
        report: Called with the number of finished items of this process.
    """
    starts = range(0, n, CHUNK)
    if world.main:
        remove_stale(folder, folder.name)
    count, launcher = 0, launcher_pid()
    for start in starts[world.rank :: world.size]:
        if launcher_pid() != launcher:
            raise ChildProcessError(
                f'the launcher (process {launcher}) has exited; run the same command again to '
                f'resume from {folder}'
            )
        items = range(start, min(start + CHUNK, n))
        path = _path(folder, items)
        if load_cache(path) is None:
            save_cache(path, {'rows': work(items)})
        count += len(items)
        if report is not None:
            report(count)
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
    """Return how many of n items this process of `world` computes."""
    return sum(min(CHUNK, n - start) for start in range(0, n, CHUNK)[world.rank :: world.size])


def _path(folder: Path, items: range) -> Path:
    return folder / f'{items.start:08}-{items.stop:08}.safetensors'
