"""k-diffusion train: trains the model of a config, or goes on with a run that was stopped."""

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

The same command again goes on where the run stopped. Everything lands in runs/NAME."""


def main(argv: Sequence[str] | None = None, prog: str = 'k-diffusion train') -> int:
    """Run the command."""
    return run_command(
        prog, train, lambda run: '', about=__doc__, example=_EXAMPLE, as_json=Run.summary, argv=argv
    )
