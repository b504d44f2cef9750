"""k-diffusion ema: combine the snapshots of a run to averaged weights of any width."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..core.names import escape_name
from ..tasks.ema import ema
from .flags import run_command

_EXAMPLE = """examples:
  k-diffusion ema --checkpoint-dir runs/demo                                 list the snapshots
  k-diffusion ema --checkpoint-dir runs/demo --width 0.08 -o ema08.safetensors
  k-diffusion sample --checkpoint ema08.safetensors

A run writes snapshots if its config sets training.ema_snapshots, or with --ema-snapshots 8 of
train. The width is the standard deviation of the averaging profile as a share of the run: 0.05
follows the last weights closely, 0.2 averages over most of the run."""


def _show(result: Any) -> str:
    if not isinstance(result, list):
        return escape_name(result.path)
    return '\n'.join(f'step {s.step:>9,}  width {s.width:g}  {escape_name(s.path)}' for s in result)


def _as_json(result: Any) -> Any:
    if not isinstance(result, list):
        return {'file': str(result.path), 'width': result.width}
    return [{'step': s.step, 'width': s.width, 'file': str(s.path)} for s in result]


def main(argv: Sequence[str] | None = None, prog: str = 'k-diffusion ema') -> int:
    """Run the command.

    Args:
        argv: The arguments; sys.argv by default.
        prog: The name of the program in messages.
    """
    return run_command(
        prog, ema, _show, about=__doc__, example=_EXAMPLE, as_json=_as_json, argv=argv
    )
