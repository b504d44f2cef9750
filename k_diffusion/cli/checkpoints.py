"""k-diffusion checkpoints: lists the checkpoints of a run, verifies them, pins those to keep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from ..tasks.checkpoints import checkpoints
from .flags import run_command

_EXAMPLE = """examples:
  k-diffusion checkpoints runs/demo
  k-diffusion checkpoints runs/demo --pin 1450

Each file is read whole and compared with the SHA-256 that was noted when it was written.
The exit status is 1 where one is damaged."""


def main(argv: Sequence[str] | None = None, prog: str = 'k-diffusion checkpoints') -> int:
    """Run the command."""
    return run_command(
        prog,
        checkpoints,
        str,
        about=__doc__,
        example=_EXAMPLE,
        argv=argv,
        as_json=lambda result: [asdict(entry) for entry in result],
    )
