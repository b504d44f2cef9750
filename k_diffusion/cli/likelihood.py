"""k-diffusion likelihood: measure bits per dimension of images under a trained model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..tasks.likelihood import Likelihood, likelihood
from .flags import run_command

_EXAMPLE = """examples:
  k-diffusion likelihood --checkpoint runs/demo -n 1000
  k-diffusion likelihood --checkpoint model.safetensors --dataset pictures/held_out \\
    -n 500 --probes 4
  torchrun --nproc-per-node 2 -m k_diffusion.cli likelihood --checkpoint runs/demo -n 1000

Run the same command again to resume."""


def _show(result: Likelihood) -> str:
    return (
        f'{result.mean:.4f} +- {result.stderr:.4f} bits per dimension over {len(result.bits):,} '
        'images\n'
        f'values: {result.csv}, histogram: {result.histogram}'
    )


def _as_json(result: Likelihood) -> dict[str, Any]:
    return {
        'bits_per_dim': result.mean,
        'stderr': None if math.isnan(result.stderr) else result.stderr,
        'n': len(result.bits),
        'csv': str(result.csv),
        'histogram': str(result.histogram),
    }


def main(argv: Sequence[str] | None = None, prog: str = 'k-diffusion likelihood') -> int:
    """Run the command.

    Args:
        argv: The arguments; sys.argv by default.
        prog: The name of the program in messages.
    """
    return run_command(
        prog, likelihood, _show, about=__doc__, example=_EXAMPLE, as_json=_as_json, argv=argv
    )
