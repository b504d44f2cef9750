"""k-diffusion checkpoints: lists the checkpoints of a run, verifies them, pins those that are to stay."""
from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ..tasks.checkpoints import checkpoints
from .entry import Parser, guarded

_EXAMPLE = '''examples:
  k-diffusion checkpoints runs/demo
  k-diffusion checkpoints runs/demo --pin 1450

Each file is read whole and compared with the SHA-256 that was noted when it was written. The exit status is 1 where one is damaged.'''


def _line(entry: dict[str, Any], verified: bool) -> str:
    state = f'DAMAGED: {entry["fault"]}' if entry['fault'] else 'not verified' if not verified else \
        'whole' if entry['recorded'] else 'can be read (it is not on record)'
    size = '?' if entry['bytes'] is None else f'{entry["bytes"] / 1e6:,.1f} MB'
    loss = '' if entry['loss'] is None else f'loss {entry["loss"]:.4f}'
    return f'{entry["run"]}  step {entry["step"]:>9,}  {size:>12}  {loss:<12}  {" ".join(entry["notes"]):<11}  {state}'


def main(argv: Sequence[str] | None = None, prog: str = 'k-diffusion checkpoints') -> int:
    parser = Parser(prog=prog, description=__doc__, epilog=_EXAMPLE)
    parser.add_argument('folder', help='the folder of a run')
    parser.add_argument('--name', help='the run, where the folder holds several')
    parser.add_argument('--no-verify', dest='verify', action='store_false', help='list only')
    parser.add_argument('--pin', type=int, action='append', default=[], metavar='STEP', help='never delete the checkpoint of this step')
    parser.add_argument('--unpin', type=int, action='append', default=[], metavar='STEP', help='let it go again')
    parser.add_argument('--json', action='store_true', help='one machine-readable line on stdout')
    args = parser.parse_args(argv)

    def work() -> int:
        found = checkpoints(args.folder, args.name, args.verify, args.pin, args.unpin)
        print(json.dumps(found) if args.json else '\n'.join(_line(entry, args.verify) for entry in found) or 'no checkpoints')
        return int(any(entry['fault'] for entry in found))
    return guarded(prog, work)
