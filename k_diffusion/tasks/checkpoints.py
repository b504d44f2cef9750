"""k-diffusion checkpoints: lists the checkpoints of a run, verifies them, pins those that are to stay."""
from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..core.files import write_json
from ..training import RunFolder, find_runs, read_training_checkpoint
from ..training.checkpoints.folder import step_of


def checkpoints(folder: str | os.PathLike[str], name: str | None = None, verify: bool = True, pin: Sequence[int] = (),
                unpin: Sequence[int] = ()) -> list[dict[str, Any]]:
    """The checkpoints of a run's folder, the newest first: step, file, bytes, saved, loss, kept (why), fault (None: it is whole)."""
    runs = [run for run in find_runs(folder) if name in (None, run.name)]
    if not runs:
        raise ValueError(f'{folder} holds no run{f" named {name!r}" if name else ""}; give the folder that training wrote')
    if (pin or unpin) and len(runs) > 1:
        raise ValueError(f'{folder} holds the runs {", ".join(run.name for run in runs)}; name one of them with --name')
    for run in runs:
        _set_pins(run, set(pin), set(unpin))
    return [entry for run in runs for entry in _listed(run, verify)]


def _set_pins(run: RunFolder, pin: set[int], unpin: set[int]) -> None:
    known = {step_of(path) for path in run.checkpoints()}
    for step in sorted(pin - known):
        raise ValueError(f'there is no checkpoint of step {step} in {run.path}; those there are of the steps {sorted(known)}')
    if pin or unpin:
        write_json(run.pins_path, sorted((run.pinned() | pin) - unpin))


def _listed(run: RunFolder, verify: bool) -> list[dict[str, Any]]:
    records, pinned = run.manifest.read(), run.known_pins() or set()
    losses = {record.step: record.metrics['loss'] for record in records.values() if 'loss' in record.metrics}
    best = min(losses, key=lambda step: losses[step], default=None)
    found = []
    for path in run.checkpoints():
        record, step = records.get(path.name), step_of(path)
        notes = [note for note, holds in (('best', step == best), ('pinned', step in pinned)) if holds]
        size = record.bytes if record else path.stat().st_size if path.is_file() else None
        found.append({'run': run.name, 'step': step, 'file': str(path), 'bytes': size, 'saved': record.saved if record else None,
                      'loss': losses.get(step), 'notes': notes, 'recorded': record is not None,
                      'fault': _fault(run, path) if verify else None})
    return found


def _fault(run: RunFolder, path: Path) -> str | None:
    """Why a checkpoint cannot be gone on from, or None; one that is not on record must at least be readable."""
    record = run.manifest.read().get(path.name)
    if record is not None:
        return record.fault(run.path)
    try:
        read_training_checkpoint(path, verify=False)
    except (ValueError, OSError) as error:
        return str(error)
    return None
