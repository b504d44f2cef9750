"""k-diffusion ema: puts together the averaged weights of any width from the snapshots of a run."""
from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from ..core.weights import save_safetensors
from ..training.posthoc import Snapshot, find_snapshots, reconstruct, snapshot_config
from .entry import Parser, guarded

_EXAMPLE = '''examples:
  k-diffusion ema --checkpoint-dir runs/demo                                 which snapshots there are
  k-diffusion ema --checkpoint-dir runs/demo --width 0.08 -o ema08.safetensors
  k-diffusion sample --checkpoint ema08.safetensors

A run writes snapshots where its config sets training.ema_snapshots, or with the flag --ema-snapshots 8 of train. The width is the
standard deviation of the average's profile as a share of the run: 0.05 follows the last weights closely, 0.2 averages over most.'''


def ema(checkpoint_dir: str | os.PathLike[str], width: float, out: str | os.PathLike[str] | None = None, step: int | None = None,
        name: str | None = None, verify: bool = True) -> Path:
    """Writes the average of a width at a step (the last) as a .safetensors file that carries the run's config; returns its path."""
    snapshots = snapshots_of(checkpoint_dir, name, verify)
    weights = reconstruct(snapshots, width, step)
    last = step if step is not None else snapshots[-1].step
    path = Path(out) if out is not None else Path(checkpoint_dir) / f'{_name(snapshots)}_ema_{last:08}_width_{width:g}.safetensors'
    if path.suffix != '.safetensors':
        raise ValueError(f'-o is {path}; the file written is a .safetensors file and must be named so')
    if any(path.resolve() == snapshot.path.resolve() for snapshot in snapshots):
        raise ValueError(f'{path} would overwrite a snapshot; name another file with -o')
    save_safetensors(path, weights, snapshot_config(snapshots[-1]))
    return path


def snapshots_of(folder: str | os.PathLike[str], name: str | None = None,
                 verify: bool = False) -> list[Snapshot]:
    """The snapshots of the one run in a folder; several runs or none raise a ValueError."""
    if not Path(folder).is_dir():
        raise FileNotFoundError(f'there is no folder {folder}; give the folder of a run with --checkpoint-dir')
    snapshots = find_snapshots(folder, name, verify)
    if not snapshots:
        raise ValueError(f'{folder} holds no snapshots; train with --ema-snapshots 8, or set training.ema_snapshots in the config')
    names = sorted({_name([snapshot]) for snapshot in snapshots})
    if len(names) > 1:
        raise ValueError(f'{folder} holds snapshots of the runs {", ".join(names)}; name one with --name')
    return snapshots


def _name(snapshots: Sequence[Snapshot]) -> str:
    return snapshots[-1].path.name.rpartition('_ema_')[0]


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
