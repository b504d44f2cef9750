"""k-diffusion distill: turn a trained model into one that samples in one to four model calls."""

from __future__ import annotations

from collections.abc import Sequence

from ..tasks.distill import distill
from ..tasks.run.settings import Run
from .flags import run_command

_EXAMPLE = """examples:
  k-diffusion distill --checkpoint runs/demo --name fast
  k-diffusion sample --checkpoint runs/fast -n 100 --steps 1
  k-diffusion evaluate --checkpoint runs/fast --steps 4

Run the same command again to resume. Everything is written to runs/NAME."""


def main(argv: Sequence[str] | None = None, prog: str = 'k-diffusion distill') -> int:
    """Run the command.

    Args:
        argv: The arguments; sys.argv by default.
        prog: The name of the program in messages.
    """
    return run_command(
        prog,
        distill,
        lambda run: '',
        about=__doc__,
        example=_EXAMPLE,
        as_json=Run.summary,
        argv=argv,
    )
