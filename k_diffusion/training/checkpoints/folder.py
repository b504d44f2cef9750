"""The folder of a run: checkpoints, under the original's names, and the pointer to the latest."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...core.errors import FolderMissing, Unsaved
from ...core.files import (
    MALFORMED,
    FileDigest,
    note_once,
    read_json_file,
    remove_stale,
    say_malformed,
    sync_folder,
    write_json,
)
from ...core.weights import save_checkpoint
from ..log_files import read_log
from .disk import explain_error, find_system_error, is_full, size_of
from .manifest import Manifest, Record
from .reading import read_training_checkpoint
from .retention import LOSS_SINCE, Retention, sane_steps


@dataclass
class RunFolder:
    """The folder of a run.

    It holds checkpoints `NAME_%08d.pth`, their digests in `NAME_manifest.json`, and
    `NAME_state.json`, which names the latest checkpoint.

    Attributes:
        path: The folder.
        name: The run.
        extra: Further entries of every checkpoint, such as {'config': ...}.
        keep: The checkpoints to keep.
    """

    path: Path
    name: str = 'model'
    extra: Mapping[str, Any] | None = None
    keep: Retention = field(default_factory=Retention)
    _handle: int | None = field(default=None, init=False, repr=False, compare=False)

    @contextlib.contextmanager
    def watch_folder(self) -> Iterator[None]:
        """Create the folder and hold it open, to detect that it is moved or deleted.

        Nothing is saved into another folder that has taken its name.

        Raises:
            FolderMissing: If the folder was moved or deleted before a checkpoint or another file
                was written.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(OSError):  # Windows cannot open folders
            self._handle = os.open(self.path, os.O_RDONLY)
        try:
            yield
        except OSError:
            self.check_place()
            raise
        finally:
            if self._handle is not None:
                os.close(self._handle)
            self._handle = None

    def check_place(self) -> None:
        """Raise `FolderMissing` if the open folder is no longer at its path."""
        if self._handle is None:
            return
        try:
            same = os.path.samestat(os.stat(self.path), os.fstat(self._handle))
        except FileNotFoundError:
            same = False
        if not same:
            raise FolderMissing(
                errno.ENOENT,
                f'the folder {self.path} was moved or deleted while its run '
                'trained; the run stops, and the steps since its last checkpoint are lost: '
                'move the folder back and run again',
            )

    def checkpoint_path(self, step: int) -> Path:
        """Return the path of the checkpoint of a step.

        Args:
            step: The step.
        """
        return self.path / f'{self.name}_{step:08}.pth'

    @property
    def pointer_path(self) -> Path:
        """Return the path of the file that names the latest checkpoint."""
        return self.path / f'{self.name}_state.json'

    @property
    def manifest(self) -> Manifest:
        """Return the manifest of the run."""
        return Manifest(self.path / f'{self.name}_manifest.json')

    @property
    def pins_path(self) -> Path:
        """Return the path of the list of pinned steps."""
        return self.path / f'{self.name}_pinned.json'

    def save(self, state: Mapping[str, Any], metrics: Mapping[str, float] | None = None) -> Path:
        """Write a checkpoint, its record, then the pointer, and then delete superfluous ones.

        An interruption leaves the pointer at an older, whole checkpoint. If the disk is full,
        superfluous checkpoints are deleted first, and writing is repeated.

        Args:
            state: The state of the run.
            metrics: Its metrics.

        Returns:
            The path of the checkpoint.

        Raises:
            Unsaved: If it cannot be written.
        """
        step = state['step']
        with self.failures(step, size_of(state)):
            try:
                return self._write(state, metrics or {})
            except Exception as error:
                if not is_full(error) or not self.make_room(step, metrics or {}):
                    raise
            return self._write(state, metrics or {})

    def _write(self, state: Mapping[str, Any], metrics: Mapping[str, float]) -> Path:
        """Write a checkpoint and record it."""
        path = self.checkpoint_path(state['step'])
        if self._handle is None:
            path.parent.mkdir(parents=True, exist_ok=True)
        self.manifest.drop(path.name)
        digest = save_checkpoint(path, {**(self.extra or {}), **state})
        self.record(path, state['step'], {path.name: digest}, metrics)
        return path

    def record(
        self, path: Path, step: int, files: dict[str, FileDigest], metrics: Mapping[str, float]
    ) -> None:
        """Make a whole checkpoint in the folder the latest one, and delete superfluous ones.

        Args:
            path: The checkpoint.
            step: Its step.
            files: The sizes and digests of its files by name.
            metrics: Its metrics.
        """
        self.manifest.put(
            path.name,
            Record(step, files, dict(metrics), time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())),
        )
        self.point_to(path)
        self.rotate(step)

    def failures(self, step: int, size: int) -> _Writing:
        """Return a context for writing, which explains errors of the system.

        Args:
            step: The step of the checkpoint.
            size: Its approximate size in bytes.
        """
        return _Writing(self, step, size)

    def note(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add metrics of a checkpoint to its record, by which the best ones are chosen.

        Args:
            step: The step of the checkpoint.
            metrics: The metrics.
        """
        for name, record in self.manifest.read().items():
            if record.step == step:
                self.manifest.put(
                    name, Record(step, record.files, {**record.metrics, **metrics}, record.saved)
                )

    def read_pins(self) -> set[int]:
        """Return the steps whose checkpoints are never deleted (`K.checkpoints`).

        Raises:
            ValueError: If the file with the steps is damaged.
        """
        if not self.pins_path.exists():
            return set()
        try:
            steps = read_json_file(self.pins_path, 'it')
            if not isinstance(steps, list) or not all(type(step) is int for step in steps):
                raise ValueError(f'it holds {steps!r:.80}')
            return set(steps)
        except MALFORMED as error:
            raise ValueError(
                f'{self.pins_path} is not a list of steps ({say_malformed(error)}); correct or '
                'delete it'
            ) from None

    def read_pins_or_none(self) -> set[int] | None:
        """Return the pinned steps; None, with a warning, if they cannot be read."""
        try:
            return self.read_pins()
        except ValueError as error:
            note_once(f'{error}; until then no checkpoint is deleted')
            return None

    def rotate(self, latest: int) -> None:
        """Delete the superfluous checkpoints when that of step `latest` exists.

        Newer ones, which remain after a rewind, are neither counted nor deleted.

        Args:
            latest: The step of the latest checkpoint.
        """
        self._delete(self._superfluous(latest, {}))

    def make_room(self, step: int, metrics: Mapping[str, float]) -> bool:
        """Delete the checkpoints that a new one will make superfluous; one whole checkpoint stays.

        Args:
            step: The step of the new checkpoint, for which the disk has no room.
            metrics: Its metrics.

        Returns:
            True if anything was deleted.
        """
        paths = self._superfluous(step, metrics)
        if not any(self.is_whole(path) for path in self.checkpoints() if path not in paths):
            whole = next(filter(self.is_whole, paths), None)
            paths = [path for path in paths if path != whole] if whole else []
        self._delete(paths)
        return bool(paths)

    def is_whole(self, path: Path) -> bool:
        """Return True if a checkpoint equals its record.

        Args:
            path: The checkpoint.
        """
        record = self.manifest.read().get(path.name)
        return record is not None and record.fault(self.path) is None

    def _superfluous(self, latest: int, metrics: Mapping[str, float]) -> list[Path]:
        """Return the checkpoints older than `latest` without a reason to keep them, newest first.

        There are none if the pinned steps cannot be read.
        """
        if not self.keep.last:
            return []
        pinned = self.read_pins_or_none()
        if pinned is None:
            return []
        records = self.manifest.read().values()
        step_metrics = {record.step: record.metrics for record in records if record.metrics}
        older = [path for path in self.checkpoints() if step_of(path) < latest]
        steps = {latest, *map(step_of, older)}
        if metrics:
            step_metrics[latest] = dict(metrics)
        reasons = self.keep.reasons(steps, step_metrics, pinned)
        return [path for path in older if not reasons[step_of(path)]]

    def _delete(self, paths: list[Path]) -> None:
        """Delete checkpoints, their records first, so that the manifest names no missing one."""
        if not paths:
            return
        with contextlib.suppress(OSError):  # a full disk may refuse the manifest
            self.manifest.drop(*(path.name for path in paths))
        for path in paths:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(
                missing_ok=True
            )
        sync_folder(self.path)

    def sweep(self) -> None:
        """Remove temporary files of killed processes at the start of a run, see `remove_stale`."""
        remove_stale(self.path, Path(self.name).name)

    def newest(self) -> tuple[Path, dict[str, Any]] | None:
        """Return the checkpoint to resume from and its content; None without checkpoints.

        It is that of the pointer, else the newest whole one. Each one that is skipped is named in a
        warning.

        Raises:
            ValueError: If there are checkpoints and none can be read.
        """
        records = self.manifest.read()
        skipped = 0
        for path in self._candidates():
            try:
                if path.name in records and (fault := records[path.name].fault(self.path)):
                    raise ValueError(fault)
                return path, read_training_checkpoint(path, verify=False)
            except (ValueError, OSError) as error:
                skipped += 1
                warnings.warn(f'{path.name} is skipped: {error}', stacklevel=2)
        if skipped:
            raise ValueError(
                f'none of the checkpoints of {self.name!r} in {self.path} can be read; to start '
                f'again, move them and {self.pointer_path.name} away, or choose another name'
            )
        return None

    def last_sane(self, step: int) -> Path | None:
        """Return the newest whole checkpoint up to a step whose loss was sane (`sane_steps`).

        Args:
            step: The step.

        Raises:
            LookupError: If no checkpoint up to there has a recorded loss.
        """
        records = self.manifest.read()
        losses = {
            path: records[path.name].metrics.get('loss')
            for path in self.checkpoints()
            if path.name in records and step_of(path) <= step
        }
        step_losses = {step_of(path): loss for path, loss in losses.items() if loss is not None}
        if not step_losses:
            raise LookupError(f'no checkpoint of {self.name} has a recorded loss')
        lines = read_log(self.path / f'{self.name}_log.jsonl')
        log = [
            (line['step'], line['loss']) for line in lines if isinstance(line.get('loss'), float)
        ]
        begins = {record.metrics.get(LOSS_SINCE, 0.0) for record in records.values()}
        sane = sane_steps(log, step_losses, begins)
        whole = (path for path in losses if step_of(path) in sane and self.is_whole(path))
        return next(whole, None)

    def point_to(self, path: Path) -> None:
        """Name a checkpoint in the state file, from which the run resumes.

        Args:
            path: The checkpoint.
        """
        write_json(self.pointer_path, {'latest_checkpoint': path.name})

    def checkpoints(self) -> list[Path]:
        """Return all checkpoints, the newest first."""
        paths = [path for path in self.path.glob('*') if self.is_name(path.name)]
        return sorted(paths, key=lambda path: (step_of(path), path), reverse=True)

    def is_name(self, name: str) -> bool:
        """Return True for the name of a checkpoint of the run.

        Args:
            name: The name of a file.
        """
        stem = re.escape(Path(self.name).name)
        return re.fullmatch(stem + r'_[0-9]{8,18}\.(pth|shards)', name) is not None

    def _candidates(self) -> Iterator[Path]:
        """Yield the checkpoint of the state file, then the others, the newest first."""
        first = self.read_pointer()
        if first is not None:
            yield first
        yield from (path for path in self.checkpoints() if path != first)

    def latest(self) -> Path | None:
        """Return the checkpoint that the state file names, else the newest, else None."""
        return next(self._candidates(), None)

    def read_pointer(self) -> Path | None:
        """Return the checkpoint that the state file names.

        It is None without such a file, or with a warning if the file names another thing.
        """
        if not self.pointer_path.exists():
            return None
        try:
            name = read_json_file(self.pointer_path, 'it')['latest_checkpoint']
            if Path(name).is_absolute() or not self.is_name(Path(name).name):
                raise ValueError(f'it names {name!r:.80}')
            return self.path / Path(name).name
        except MALFORMED as error:
            note_once(
                f'{self.pointer_path} is skipped: '
                f'it names no checkpoint of the run ({say_malformed(error)})'
            )
            return None


def step_of(path: Path) -> int:
    """Return the step in the name of a checkpoint.

    Args:
        path: The checkpoint.
    """
    return int(path.stem.rpartition('_')[2])


class _Writing:
    """Converts an error of writing to one that names the last whole checkpoint and a remedy."""

    def __init__(self, folder: RunFolder, step: int, size: int) -> None:
        self.folder, self.step, self.size = folder, step, size

    def __enter__(self) -> None:
        self.folder.check_place()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> None:
        cause = find_system_error(error)
        if cause is None or isinstance(cause, Unsaved):
            return
        self.folder.check_place()
        older = (path for path in self.folder.checkpoints() if step_of(path) < self.step)
        last = next(filter(self.folder.is_whole, older), None)
        safe = 'no earlier one is whole' if last is None else f'the last one, {last}, is whole'
        reason, advice = explain_error(cause, self.folder.path, self.size)
        raise Unsaved(
            cause.errno,
            f'the checkpoint of step {self.step} could not be written: {reason}; '
            f'{safe}: {advice} or choose another folder with run_dir=..., and run again',
        ) from None


def find_runs(folder: str | os.PathLike[str]) -> list[RunFolder]:
    """Return the runs in a folder, by their state files, manifests and checkpoints.

    Args:
        folder: The folder.

    Raises:
        FileNotFoundError: If there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            f'folder must be the folder of a run; got {folder}, which does not exist'
        )
    patterns = r'(.+)_state\.json', r'(.+)_manifest\.json', r'(.+)_[0-9]{8,18}\.(?:pth|shards)'
    names = {
        match[1]
        for path in folder.iterdir()
        for pattern in patterns
        if (match := re.fullmatch(pattern, path.name))
    }
    return [RunFolder(folder, name) for name in sorted(names)]
