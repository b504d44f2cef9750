"""k-diffusion grid: arrange images in one image."""

from __future__ import annotations

from collections.abc import Sequence

from ..core.names import escape_name
from ..tasks.grid import grid
from .flags import run_command

_EXAMPLE = 'example:\n  k-diffusion grid samples/images/*.png -o grid.png --nrow 10'


def main(argv: Sequence[str] | None = None, prog: str = 'k-diffusion grid') -> int:
    """Run the command.

    Args:
        argv: The arguments; sys.argv by default.
        prog: The name of the program in messages.
    """
    return run_command(prog, grid, escape_name, about=__doc__, example=_EXAMPLE, argv=argv)
