"""k-diffusion train: train the model of a config, or resume a run."""

from __future__ import annotations

from collections.abc import Sequence

from ..tasks.run.settings import Run, RunSettings
from ..tasks.train import train
from .flags import run_command

__all__ = ['RunSettings', 'main', 'train']

_EXAMPLE = """examples:
  k-diffusion train --config configs/config_mnist_small.json --name digits --end-step 2000
  accelerate launch train.py --config configs/config_cifar10.json --name cifar \\
    --mixed-precision bf16
  torchrun --nproc-per-node 2 train.py --config configs/config_mnist_small.json --name digits

Run the same command again to resume. Everything is written to runs/NAME."""


def main(argv: Sequence[str] | None = None, prog: str = 'k-diffusion train') -> int:
    """Run the command.

    Args:
        argv: The arguments; sys.argv by default.
        prog: The name of the program in messages.
    """
    return run_command(
        prog, train, lambda run: '', about=__doc__, example=_EXAMPLE, as_json=Run.summary, argv=argv
    )
