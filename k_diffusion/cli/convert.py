"""k-diffusion convert: write the averaged weights of a checkpoint as a .safetensors file."""

from __future__ import annotations

from collections.abc import Sequence

from ..core.names import escape_name
from ..tasks.convert import convert
from .flags import run_command

_EXAMPLE = (
    'example:\n  k-diffusion convert runs/demo/demo_00002100.pth -o demo.safetensors --dtype fp16'
)


def main(argv: Sequence[str] | None = None, prog: str = 'k-diffusion convert') -> int:
    """Run the command.

    Args:
        argv: The arguments; sys.argv by default.
        prog: The name of the program in messages.
    """
    return run_command(prog, convert, escape_name, about=__doc__, example=_EXAMPLE, argv=argv)
