"""Memory and speed of streaming: shards are read once through the loader while the memory of all
its processes is watched.

    python benchmarks/streaming.py --gib 2
    python benchmarks/streaming.py --files 100000

The first writes arrays in shards and removes them at the end; the second makes a folder of that
many small pictures and times the first batch, and the first training step of `K.train`. Each
figure is that of a process of its own.
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


def stream(folder: str, workers: int, batch_size: int, start_method: str | None) -> None:
    """Read an epoch of shards and say what it took."""
    dataset = open_dataset(ShardsConfig(location=folder), (SIDE, SIDE), 1)
    torch.set_num_threads(1)
    with Watch() as watch:
        start, steps = time.perf_counter(), len(dataset) // batch_size
        loader = Loader(dataset, batch_size, num_workers=workers, start_method=start_method)
        batches = loader.iterate()
        next(batches)
        first = resident(os.getpid())
        for _ in range(steps - 1):
            next(batches)
        seconds = time.perf_counter() - start
    before, first, most = (round(x / 2**20) for x in (watch.before, first, watch.most))
    print(
        f'{workers} workers: {steps * batch_size:,} samples, '
        f'{steps * batch_size * SIDE**2 / 2**30:.2f} GiB in {seconds:.1f} s; memory {before} MiB '
        f'before, {first} with the first batch, at most {most}: growth {most - before}'
    )


def small_files(folder: Path, count: int) -> None:
    """Write small pictures."""
    images = icons(1000, SMALL)
    for i in range(count):
        place = folder / f'{i // 1000:04}'
        place.mkdir(exist_ok=True)
        buffer = io.BytesIO()
        to_pil_image(from_bytes(images[i % 1000])).save(buffer, 'png')
        (place / f'{i:07}.png').write_bytes(buffer.getvalue())


def first_batch(folder: str) -> None:
    """Open a folder of pictures and take its first batch."""
    torch.set_num_threads(1)
    with Watch() as watch:
        start, cpu = time.perf_counter(), time.process_time()
        dataset = open_dataset(ImageFolderConfig(location=folder), (SMALL, SMALL), 3)
        batch = next(iter(Loader(dataset, 64).iterate()))
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    decoded_bytes = len(dataset) * 3 * SMALL**2
    print(
        f'{len(dataset):,} pictures, first batch {list(batch["image"].shape)} after {seconds:.1f} '
        f's ({cpu:.1f} s of processor time); '
        f'memory at most {(watch.most - watch.before) / 2**20:.0f} MiB more, '
        f'{decoded_bytes / 2**20:.0f} of them the decoded pictures'
    )


def first_step(folder: str) -> None:
    """Train one step of a small network on a folder of pictures, as `k-diffusion train` would."""
    import k_diffusion as K

    def note(_: object) -> None:
        took.append((time.perf_counter() - start, time.process_time() - cpu))

    took: list[tuple[float, float]] = []
    config = {
        'model': {
            'type': 'image_v1',
            'input_channels': 3,
            'input_size': [SMALL, SMALL],
            'depths': [1, 1],
            'channels': [32, 64],
            'mapping_out': 64,
            'self_attn_depths': [False, False],
            'sigma_min': 0.01,
            'sigma_max': 80,
            'sigma_sample_density': {'type': 'lognormal', 'mean': -1.2, 'std': 1.2},
        },
        'dataset': {'type': 'imagefolder', 'location': folder},
    }
    with Watch() as watch, tempfile.TemporaryDirectory() as place:
        start, cpu = time.perf_counter(), time.process_time()
        K.train(
            config,
            run_dir=place,
            end_step=1,
            demo_every=0,
            evaluate_n=0,
            hooks=[note],
            device='cpu',
        )
    print(
        f'first step of K.train after {took[0][0]:.1f} s ({took[0][1]:.1f} s of processor time); '
        f'memory at most {(watch.most - watch.before) / 2**20:.0f} MiB more'
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
    parser.add_argument('--start-method', default=None, help='of the workers')
    parser.add_argument('--part', nargs=2, help=argparse.SUPPRESS)  # a figure, and its folder
    args = parser.parse_args()
    if args.part:
        kind, place = args.part
        if kind == 'stream':
            stream(place, args.workers[0], args.batch_size, args.start_method)
        else:
            {'batch': first_batch, 'step': first_step}[kind](place)
        return

    def measure(kind: str, place: Path, *more: str) -> None:
        command = [sys.executable, __file__, '--part', kind, str(place), *more]
        subprocess.run(command, check=True)

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
            more = ['--start-method', args.start_method] if args.start_method else []
            for workers in args.workers:
                sizes = '--workers', str(workers), '--batch-size', str(args.batch_size)
                measure('stream', folder / 'shards', *sizes, *more)
        if args.files:
            (folder / 'files').mkdir()
            small_files(folder / 'files', args.files)
            start = time.perf_counter()
            subprocess.run([sys.executable, '-c', 'import torch'], check=True)
            print(f'import of torch, not in what follows: {time.perf_counter() - start:.1f} s')
            measure('batch', folder / 'files')
            measure('step', folder / 'files')
    finally:
        shutil.rmtree(folder)


if __name__ == '__main__':
    main()
