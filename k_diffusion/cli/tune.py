"""k-diffusion tune: tune a trained model to raise a reward of its samples."""

from __future__ import annotations

from collections.abc import Sequence

from ..tasks.run.settings import Run
from ..tasks.tune import tune
from .flags import run_command

_EXAMPLE = """examples:
  k-diffusion tune --checkpoint runs/demo --reward class:7 --name sevens
  k-diffusion tune --checkpoint runs/demo --reward mine.py:reward --allow-code --method grpo
  k-diffusion sample --checkpoint runs/sevens --guidance 0

Run the same command again to resume. Everything is written to runs/NAME."""


def main(argv: Sequence[str] | None = None, prog: str = 'k-diffusion tune') -> int:
    """Run the command.

    Args:
        argv: The arguments; sys.argv by default.
        prog: The name of the program in messages.
    """
    return run_command(
        prog, tune, lambda run: '', about=__doc__, example=_EXAMPLE, as_json=Run.summary, argv=argv
    )
