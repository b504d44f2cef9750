"""List, verify and pin the checkpoints of a run."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..core.files import write_json
from ..core.names import escape_name
from ..core.remote import is_url
from ..core.settings import check_settings, setting, takes_settings
from ..training import Record, RunFolder, find_runs, read_training_checkpoint
from ..training.checkpoints.folder import step_of
from ..training.checkpoints.remote import RemoteFolder
from ..training.checkpoints.retention import comparable


@dataclass(frozen=True)
class CheckpointsSettings:
    """Settings of `checkpoints`."""

    folder: str | os.PathLike[str] = setting(
        help='the folder of a run, or its URL', flags=('folder',)
    )
    name: str | None = setting(None, 'the run, if the folder holds several')
    verify: bool = setting(True, 'only list, do not verify')
    pin: Sequence[int] = setting(
        (), 'never delete the checkpoint of this step', metavar='STEP', parse=int, many='append'
    )
    unpin: Sequence[int] = setting(
        (), 'allow deleting it again', metavar='STEP', parse=int, many='append'
    )

    def __post_init__(self) -> None:
        both = sorted(set(self.pin) & set(self.unpin))
        check_settings(
            f'pin must not name steps of unpin; got {both} in both' if both else None,
            'pin and unpin must be left out with a URL; pins are those of the local folder of a run'
            if is_url(self.folder) and (self.pin or self.unpin)
            else None,
        )


@dataclass(frozen=True)
class CheckpointEntry:
    """A checkpoint of a run.

    Attributes:
        run: The name of the run.
        step: The step after which it was saved.
        file: Its path.
        bytes: Its size; None if the file is missing and not on record.
        saved: The time of saving; None if it is not on record.
        loss: The smoothed loss at that step, if it is on record.
        notes: 'best' for the smallest loss, 'pinned'.
        recorded: The manifest of the run has a record of it.
        fault: The reason why it cannot be used; None if it is whole or was not verified.
    """

    run: str
    step: int
    file: str
    bytes: int | None
    saved: str | None
    loss: float | None
    notes: list[str]
    recorded: bool
    fault: str | None


@dataclass(frozen=True)
class CheckpointList:
    """The checkpoints of a folder, the newest first.

    Attributes:
        entries: An entry for each checkpoint.
        verified: Whether the files were read and verified.
    """

    entries: list[CheckpointEntry]
    verified: bool

    @property
    def exit_status(self) -> int:
        """1 if a checkpoint is damaged, else 0."""
        return int(any(entry.fault for entry in self.entries))

    def __str__(self) -> str:
        return '\n'.join(self._line(entry) for entry in self.entries) or 'no checkpoints'

    def _line(self, entry: CheckpointEntry) -> str:
        if entry.fault:
            state = f'DAMAGED: {escape_name(entry.fault)}'
        elif not self.verified:
            state = 'not verified'
        else:
            state = 'whole' if entry.recorded else 'can be read (it is not on record)'
        size = '?' if entry.bytes is None else f'{entry.bytes / 1e6:,.1f} MB'
        loss = '' if entry.loss is None else f'loss {entry.loss:.4f}'
        return (
            f'{escape_name(entry.run)}  step {entry.step:>9,}  {size:>12}  {loss:<12}  '
            f'{" ".join(entry.notes):<11}  {state}'
        )

    def __iter__(self) -> Iterator[CheckpointEntry]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


@takes_settings(CheckpointsSettings)
def checkpoints(settings: CheckpointsSettings) -> CheckpointList:
    """List and verify the checkpoints of a run, after pinning and unpinning some.

    Args:
        settings: The settings, or the fields of CheckpointsSettings as arguments.

    Returns:
        An entry for each checkpoint, the newest first.

    Raises:
        ValueError: The folder contains no run, or `pin` names a step without a checkpoint.
    """
    folder, name, pin, unpin = (
        settings.folder,
        settings.name,
        set(settings.pin),
        set(settings.unpin),
    )
    if is_url(folder):
        entries = _list_remote(str(folder), name, settings.verify)
        return CheckpointList(entries, settings.verify)
    runs = [run for run in find_runs(folder) if name in (None, run.name)]
    if not runs:
        raise ValueError(
            f'folder must be one that training wrote; {folder} has no run'
            f'{f" named {name!r}" if name else ""}'
        )
    if (pin or unpin) and len(runs) > 1:
        raise ValueError(
            f'name must be one of the runs in {folder}: '
            f'{", ".join(run.name for run in runs)}; got {name}'
        )
    for run in runs:
        _set_pins(run, pin, unpin)
    return CheckpointList(
        [entry for run in runs for entry in _list_run(run, settings.verify)], settings.verify
    )


def _set_pins(run: RunFolder, pin: set[int], unpin: set[int]) -> None:
    steps = {step_of(path) for path in run.checkpoints()}
    for step in sorted(pin - steps):
        raise ValueError(
            f'pin must be a step of a checkpoint in {run.path}, {sorted(steps)}; got {step}'
        )
    if pin or unpin:
        write_json(run.pins_path, sorted((run.read_pins() | pin) - unpin))


def _list_run(run: RunFolder, verify: bool) -> list[CheckpointEntry]:
    records, pinned = run.manifest.read(), run.read_pins_or_none() or set()
    losses, best = _losses_of(records)
    entries = []
    for path in run.checkpoints():
        record, step = records.get(path.name), step_of(path)
        size = record.bytes if record else path.stat().st_size if path.is_file() else None
        entries.append(
            CheckpointEntry(
                run.name,
                step,
                str(path),
                size,
                record.saved if record else None,
                losses.get(step),
                _notes_of(step, best, pinned),
                record is not None,
                _find_fault(run, path) if verify else None,
            )
        )
    return entries


def _list_remote(url: str, name: str | None, verify: bool) -> list[CheckpointEntry]:
    """Return the checkpoints named by the manifests at a URL; verify them there if asked."""
    remote = RemoteFolder(url, 'folder')
    runs = [run for run in remote.runs() if name in (None, run)]
    if not runs:
        raise ValueError(
            f'folder must be a URL that training uploads to; {remote.url} has no run'
            f'{f" named {name!r}" if name else ""}'
        )
    entries = []
    for run in runs:
        folder, records = RunFolder(Path(), run), remote.records(run)
        losses, best = _losses_of(records)
        files = [(record.step, file) for file, record in records.items() if folder.is_name(file)]
        for step, file in sorted(files, reverse=True):
            record = records[file]
            entries.append(
                CheckpointEntry(
                    run,
                    step,
                    f'{remote.url}/{file}',
                    record.bytes,
                    record.saved,
                    losses.get(step),
                    _notes_of(step, best, remote.read_pins(run)),
                    True,
                    remote.find_fault(record) if verify else None,
                )
            )
    return entries


def _losses_of(records: Mapping[str, Record]) -> tuple[dict[int, float], int | None]:
    """Return the losses on record by step, and the step of the smallest comparable one."""
    metrics = {
        record.step: record.metrics for record in records.values() if 'loss' in record.metrics
    }
    losses = {step: values['loss'] for step, values in metrics.items()}
    return losses, min(comparable(metrics), key=lambda step: losses[step], default=None)


def _notes_of(step: int, best: int | None, pinned: set[int]) -> list[str]:
    return [note for note, holds in (('best', step == best), ('pinned', step in pinned)) if holds]


def _find_fault(run: RunFolder, path: Path) -> str | None:
    """Return the reason why training cannot continue from a checkpoint, or None.

    A checkpoint without a record must at least be readable.
    """
    record = run.manifest.read().get(path.name)
    if record is not None:
        return record.fault(run.path)
    try:
        read_training_checkpoint(path, verify=False)
    except (ValueError, OSError) as error:
        return str(error)
    return None
