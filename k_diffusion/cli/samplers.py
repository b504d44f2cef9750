"""k-diffusion samplers: list the samplers and schedules as a table."""

from __future__ import annotations

from collections.abc import Sequence

from ..tasks.samplers import list_samplers
from .flags import run_command

_EXAMPLE = 'example:\n  k-diffusion samplers\n  k-diffusion samplers --schedules --json'


def main(argv: Sequence[str] | None = None, prog: str = 'k-diffusion samplers') -> int:
    """Run the command.

    Args:
        argv: The arguments; sys.argv by default.
        prog: The name of the program in messages.
    """
    return run_command(
        prog,
        list_samplers,
        lambda table: table.text,
        about=__doc__,
        example=_EXAMPLE,
        argv=argv,
        as_json=lambda table: table.rows,
    )
