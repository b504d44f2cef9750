"""k-diffusion demo: trains on the shipped digits for about a minute, then draws a grid of samples."""
from __future__ import annotations

import time
from collections.abc import Sequence

from ..tasks.demo import demo
from ..tasks.output import Samples
from ..tasks.run.settings import Run
from .entry import Parser, guarded

_EXAMPLE = 'example:\n  k-diffusion demo --name first'


def main(argv: Sequence[str] | None = None, prog: str = 'k-diffusion demo') -> int:
    parser = Parser(prog=prog, description=__doc__, epilog=_EXAMPLE)
    parser.add_argument('--name', default='demo', help='the name of the run (default: demo)')
    parser.add_argument('--run-dir', help='the folder of the run (default: runs/NAME)')
    parser.add_argument('-n', type=int, default=64, help='how many samples the grid shows (default: 64)')
    args = parser.parse_args(argv)

    def work() -> int:
        start = time.monotonic()
        run, drawn = demo(args.name, args.run_dir, args.n)
        if drawn is not None:
            print(_closing(run, drawn, args.run_dir, time.monotonic() - start))
        return run.exit_status
    return guarded(prog, work)


def _closing(run: Run, drawn: Samples, run_dir: str | None, seconds: float) -> str:
    where = '' if run_dir is None else f' --run-dir {run_dir}'
    return f"""
{run.step:,} steps and {len(drawn.pictures)} samples in {seconds:.0f} s.
The grid of digits your machine learned to draw:  {drawn.grid}

Try next:
  k-diffusion sample --checkpoint {run.folder} -n 100 --classes 3,7 --seed 1      more of them
  k-diffusion train --config configs/config_icons.json --name mine             after setting "location" to your folder of pictures
  k-diffusion train --config configs/config_demo.json --name {run.name}{where} --end-step {2 * run.step}     go on with this run
(In a clone without an activated environment: .venv/bin/k-diffusion ...)"""
