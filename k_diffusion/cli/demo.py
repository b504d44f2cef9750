"""k-diffusion demo: trains on the shipped digits for about a minute, then draws a grid of samples."""
from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from ..config import shipped_config
from .entry import Parser, guarded
from .run import Run, RunSettings, train
from .sample import Samples, sample

_EXAMPLE = 'example:\n  k-diffusion demo --name first'


def demo(name: str = 'demo', run_dir: str | None = None, n: int = 64) -> tuple[Run, Samples]:
    """Trains configs/config_demo.json as the run `name` (or finds it trained) and samples a grid of n digits beside it."""
    run = train(RunSettings(shipped_config('config_demo'), name, run_dir, demo_every=0, evaluate_n=0))
    folder = run.folder / 'samples'
    shutil.rmtree(folder, ignore_errors=True)
    return run, sample(run.checkpoint, n, folder)


def main(argv: Sequence[str] | None = None, prog: str = 'k-diffusion demo') -> int:
    parser = Parser(prog=prog, description=__doc__, epilog=_EXAMPLE)
    parser.add_argument('--name', default='demo', help='the name of the run (default: demo)')
    parser.add_argument('--run-dir', help='the folder of the run (default: runs/NAME)')
    parser.add_argument('-n', type=int, default=64, help='how many samples the grid shows (default: 64)')
    args = parser.parse_args(argv)

    def work() -> None:
        start = time.monotonic()
        run, drawn = demo(args.name, args.run_dir, args.n)
        print(_closing(run, drawn.grid, time.monotonic() - start))
    return guarded(prog, work)


def _closing(run: Run, grid: Path, seconds: float) -> str:
    return f"""
{run.step:,} steps and {len(list(grid.parent.glob('images/*.png')))} samples in {seconds:.0f} s.
The grid of digits your machine learned to draw:  {grid}

Try next:
  k-diffusion sample --checkpoint {run.folder} -n 100 --classes 3,7 --seed 1      more of them
  k-diffusion train --config configs/config_icons.json --name mine             after setting "location" to your folder of pictures
  k-diffusion train --config configs/config_demo.json --name {run.name} --end-step {2 * run.step}     go on with this run
(In a clone without an activated environment: .venv/bin/k-diffusion ...)"""
