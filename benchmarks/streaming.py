"""Memory and speed of streaming: shards are read once through the loader while the memory of all
its processes is watched.

    python benchmarks/streaming.py --gib 2
    python benchmarks/streaming.py --files 100000

The first writes arrays in shards and removes them at the end; the second makes a folder of that
many small pictures and prints the seconds to the first step.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch

from k_diffusion.core.images import from_bytes, to_pil_image
from k_diffusion.data import (
    ImageFolderConfig,
    Loader,
    ShardsConfig,
    icons,
    open_dataset,
    pack_shards,
)

SIDE, SMALL = 256, 32


def resident(pid: int) -> int:
    """Return the bytes of memory of a process and its children that nobody shares (on Linux)."""
    total = 0
    try:
        lines = Path(f'/proc/{pid}/smaps_rollup').read_text().splitlines()
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith('Pss:'))
        for task in Path(f'/proc/{pid}/task').iterdir():
            total += sum(resident(int(child)) for child in (task / 'children').read_text().split())
    except (OSError, IndexError):
        pass
    return total


class Watch:
    """The largest memory of this process and its children while it is entered."""

    def __enter__(self) -> Watch:
        self.before = self.most = resident(os.getpid())
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._look)
        self.thread.start()
        return self

    def _look(self) -> None:
        while not self.done.wait(0.5):
            self.most = max(self.most, resident(os.getpid()))

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()


def write_arrays(folder: Path, gib: float) -> int:
    """Write random arrays [1, 256, 256], 64 KiB each, as .npy files; return how many."""
    import numpy

    count = int(gib * 2**30 / SIDE**2)
    source = numpy.random.default_rng(0)
    folder.mkdir()
    for i in range(count):
        numpy.save(
            folder / f'{i:07}.npy', source.integers(0, 256, (1, SIDE, SIDE), dtype=numpy.uint8)
        )
    return count


def stream(folder: Path, workers: int, batch_size: int) -> None:
    """Read an epoch of shards and say what it took."""
    dataset = open_dataset(ShardsConfig(location=str(folder)), (SIDE, SIDE), 1)
    torch.set_num_threads(1)
    with Watch() as watch:
        start, steps = time.perf_counter(), len(dataset) // batch_size
        batches = Loader(dataset, batch_size, num_workers=workers).iterate()
        next(batches)
        first = resident(os.getpid())
        for _ in range(steps - 1):
            next(batches)
        seconds = time.perf_counter() - start
    print(
        f'{workers} workers: {steps * batch_size:,} samples, '
        f'{steps * batch_size * SIDE**2 / 2**30:.2f} GiB in {seconds:.1f} s; memory '
        f'{watch.before / 2**20:.0f} MiB before, {first / 2**20:.0f} with the first batch, at '
        f'most {watch.most / 2**20:.0f}'
    )


def small_files(folder: Path, count: int) -> None:
    """Write small pictures, open the folder and take the first batch; say how long each takes
    and the memory.
    """
    images = icons(1000, SMALL)
    for i in range(count):
        place = folder / f'{i // 1000:04}'
        place.mkdir(exist_ok=True)
        buffer = io.BytesIO()
        to_pil_image(from_bytes(images[i % 1000])).save(buffer, 'png')
        (place / f'{i:07}.png').write_bytes(buffer.getvalue())
    code = (
        f'import sys; sys.argv = ["", "--opened", {str(folder)!r}]; exec(open({__file__!r}).read())'
    )
    subprocess.run([sys.executable, '-c', code], check=True)


def first_batch(folder: str) -> None:
    """Open a folder of pictures and take its first batch."""
    torch.set_num_threads(1)
    with Watch() as watch:
        start, cpu = time.perf_counter(), time.process_time()
        dataset = open_dataset(ImageFolderConfig(location=folder), (SMALL, SMALL), 3)
        batch = next(iter(Loader(dataset, 64).iterate()))
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    held = len(dataset) * 3 * SMALL**2
    print(
        f'{len(dataset):,} pictures, first batch {list(batch["image"].shape)} after {seconds:.1f} '
        f's ({cpu:.1f} s of processor time); '
        f'memory at most {(watch.most - watch.before) / 2**20:.0f} MiB more, {held / 2**20:.0f} '
        'of them the decoded pictures'
    )


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--gib', type=float, default=0.0, help='stream so many GiB of arrays')
    parser.add_argument('--files', type=int, default=0, help='open a folder of so many pictures')
    parser.add_argument('--workers', type=int, nargs='+', default=[0, 2])
    parser.add_argument('--batch-size', type=int, default=64)
    parser.add_argument(
        '--folder', default=None, help="where files are written (default: the system's)"
    )
    parser.add_argument('--opened', default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.opened:
        first_batch(args.opened)
        return
    folder = Path(tempfile.mkdtemp(dir=args.folder))
    try:
        if args.gib:
            count = write_arrays(folder / 'arrays', args.gib)
            start = time.perf_counter()
            packed = pack_shards(folder / 'arrays', folder / 'shards')
            print(
                f'packed {count:,} files into {packed.shards} shards in '
                f'{time.perf_counter() - start:.1f} s'
            )
            shutil.rmtree(folder / 'arrays')
            for workers in args.workers:
                stream(folder / 'shards', workers, args.batch_size)
        if args.files:
            (folder / 'files').mkdir()
            small_files(folder / 'files', args.files)
    finally:
        shutil.rmtree(folder)


if __name__ == '__main__':
    main()
