"""k-diffusion demo: train on the shipped digits for a minute, then draw a grid of samples."""

from __future__ import annotations

from collections.abc import Sequence

from ..tasks.demo import Demo, demo
from .flags import run_command

_EXAMPLE = 'example:\n  k-diffusion demo --name first'


def _show(result: Demo) -> str:
    run, samples = result.run, result.samples
    if samples is None:
        return ''
    where = '' if result.run_dir is None else f' --run-dir {result.run_dir}'
    return f"""
{run.step:,} steps and {len(samples.pictures)} samples in {result.seconds:.0f} s.
The grid of digits that the model draws:  {samples.grid}

Try next:
  k-diffusion sample --checkpoint {run.folder} -n 100 --classes 3,7 --seed 1      more of them
  k-diffusion train --config configs/config_icons.json --name mine
          (after setting "location" in that file to your folder of images)
  k-diffusion train --config configs/config_demo.json --name {run.name}{where} \\
    --end-step {2 * run.step}      (continues this run)
(In a clone without an activated environment: .venv/bin/k-diffusion ...)"""


def main(argv: Sequence[str] | None = None, prog: str = 'k-diffusion demo') -> int:
    """Run the command.

    Args:
        argv: The arguments; sys.argv by default.
        prog: The name of the program in messages.
    """
    return run_command(prog, demo, _show, about=__doc__, example=_EXAMPLE, argv=argv)
