"""k-diffusion ema: puts together the averaged weights of any width from the snapshots of a run."""
from __future__ import annotations

import json
from collections.abc import Sequence

from ..tasks.ema import ema, snapshots_of
from .entry import Parser, guarded

_EXAMPLE = '''examples:
  k-diffusion ema --checkpoint-dir runs/demo                                 which snapshots there are
  k-diffusion ema --checkpoint-dir runs/demo --width 0.08 -o ema08.safetensors
  k-diffusion sample --checkpoint ema08.safetensors

A run writes snapshots where its config sets training.ema_snapshots, or with the flag --ema-snapshots 8 of train. The width is the
standard deviation of the average's profile as a share of the run: 0.05 follows the last weights closely, 0.2 averages over most.'''


def main(argv: Sequence[str] | None = None, prog: str = 'k-diffusion ema') -> int:
    parser = Parser(prog=prog, description=__doc__, epilog=_EXAMPLE)
    parser.add_argument('--checkpoint-dir', required=True, help='the folder of a run')
    parser.add_argument('--width', type=float, help='the relative width wanted, say 0.08 (default: list the snapshots)')
    parser.add_argument('--step', type=int, help='after which step (default: the last snapshot)')
    parser.add_argument('--name', help='the run, where the folder holds several')
    parser.add_no_verify()
    parser.add_argument('-o', '--out', help='the file to write (default: NAME_ema_STEP_width_WIDTH.safetensors in the folder)')
    parser.add_argument('--json', action='store_true', help='one machine-readable line on stdout')
    args = parser.parse_args(argv)

    def work() -> None:
        if args.width is not None:
            path = ema(args.checkpoint_dir, args.width, args.out, args.step, args.name, args.verify)
            print(json.dumps({'file': str(path), 'width': args.width}) if args.json else path)
            return
        found = [{'step': s.step, 'width': s.width, 'file': str(s.path)} for s in snapshots_of(args.checkpoint_dir, args.name)]
        print(json.dumps(found) if args.json else '\n'.join(f'step {s["step"]:>9,}  width {s["width"]:g}  {s["file"]}' for s in found))
    return guarded(prog, work)
