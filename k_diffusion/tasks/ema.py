"""k-diffusion ema: puts together the averaged weights of any width from the snapshots of a run."""
from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ..core.weights import save_safetensors
from ..training.posthoc import Snapshot, find_snapshots, reconstruct, snapshot_config


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
