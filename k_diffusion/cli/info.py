"""k-diffusion info: report parameters, arithmetic, memory and time of a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from ..tasks.info import info
from .flags import run_command

_EXAMPLE = """examples:
  k-diffusion info config_icons
  k-diffusion info runs/demo --json
  k-diffusion info config_256_transformer --batch-size 32 --rate 3e14
  k-diffusion info config_256_transformer --gpus 64 --gpu h100 --network 400"""


def main(argv: Sequence[str] | None = None, prog: str = 'k-diffusion info') -> int:
    """Run the command.

    Args:
        argv: The arguments; sys.argv by default.
        prog: The name of the program in messages.
    """
    return run_command(prog, info, str, about=__doc__, example=_EXAMPLE, as_json=asdict, argv=argv)
