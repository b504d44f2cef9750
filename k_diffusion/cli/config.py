"""k-diffusion config: write the config in a .safetensors or .pth file as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..core.names import escape_name
from ..tasks.config import extract_config
from .flags import run_command

_EXAMPLE = """examples:
  k-diffusion config demo.safetensors -o demo.json
  k-diffusion config --list"""


def _show(result: Any) -> str:
    if not isinstance(result, list):
        return escape_name(result)
    rows = [
        (
            c.name,
            'x'.join(map(str, (*reversed(c.size), c.channels))),
            c.network,
            f'{c.dataset} {c.location or ""}',
        )
        for c in result
    ]
    widths = [max(map(len, column)) for column in zip(*rows)]
    return '\n'.join('  '.join(map(str.ljust, row, widths)).rstrip() for row in rows)


def main(argv: Sequence[str] | None = None, prog: str = 'k-diffusion config') -> int:
    """Run the command.

    Args:
        argv: The arguments; sys.argv by default.
        prog: The name of the program in messages.
    """
    return run_command(prog, extract_config, _show, about=__doc__, example=_EXAMPLE, argv=argv)
