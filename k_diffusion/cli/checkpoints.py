"""k-diffusion checkpoints: list, verify and pin the checkpoints of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from ..tasks.checkpoints import checkpoints
from .flags import run_command

_EXAMPLE = """examples:
  k-diffusion checkpoints runs/demo
  k-diffusion checkpoints runs/demo --pin 2100

Each file is read whole and compared with the SHA-256 recorded when it was written.
The exit status is 1 if one is damaged."""


def main(argv: Sequence[str] | None = None, prog: str = 'k-diffusion checkpoints') -> int:
    """Run the command.

    Args:
        argv: The arguments; sys.argv by default.
        prog: The name of the program in messages.
    """
    return run_command(
        prog,
        checkpoints,
        str,
        about=__doc__,
        example=_EXAMPLE,
        argv=argv,
        as_json=lambda result: [asdict(entry) for entry in result],
    )
