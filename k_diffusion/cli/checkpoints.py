"""k-diffusion checkpoints: lists the checkpoints of a run, verifies them, pins those that are to stay."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from ..core.names import escape_name
from ..tasks.checkpoints import CheckpointEntry, CheckpointList, checkpoints
from .flags import run_command

_EXAMPLE = '''examples:
  k-diffusion checkpoints runs/demo
  k-diffusion checkpoints runs/demo --pin 1450

Each file is read whole and compared with the SHA-256 that was noted when it was written. The exit status is 1 where one is damaged.'''


def _show(result: CheckpointList) -> str:
    return '\n'.join(_line(entry, result.verified) for entry in result) or 'no checkpoints'


def _line(entry: CheckpointEntry, verified: bool) -> str:
    state = f'DAMAGED: {escape_name(entry.fault)}' if entry.fault else 'not verified' if not verified else \
        'whole' if entry.recorded else 'can be read (it is not on record)'
    size = '?' if entry.bytes is None else f'{entry.bytes / 1e6:,.1f} MB'
    loss = '' if entry.loss is None else f'loss {entry.loss:.4f}'
    return f'{escape_name(entry.run)}  step {entry.step:>9,}  {size:>12}  {loss:<12}  {" ".join(entry.notes):<11}  {state}'


def _as_json(result: CheckpointList) -> list[dict[str, Any]]:
    return [asdict(entry) for entry in result]


def main(argv: Sequence[str] | None = None, prog: str = 'k-diffusion checkpoints') -> int:
    """Run the command."""
    return run_command(prog, checkpoints, _show, about=__doc__, example=_EXAMPLE, as_json=_as_json, argv=argv)
