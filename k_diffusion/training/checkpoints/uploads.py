"""Copy a run to a URL while it trains, and restore it from there before it starts.

A checkpoint is first written completely on this machine, then a thread uploads it, so that training
does not wait. A failed upload is tried again, then reported, and repeated at the next checkpoint;
the run continues.
"""

from __future__ import annotations

import re
import threading
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from ...core.files import MALFORMED, say_malformed, whole_file
from ...core.remote import say_reason
from .folder import RunFolder, step_of
from .manifest import Record
from .remote import SMALL_LIMIT, RemoteFolder, to_json

if TYPE_CHECKING:
    from ..trainer import Trainer

#: The files after NAME_ that are restored beside the checkpoint.
_RESTORED = re.compile(r'log\.jsonl|metrics\.csv|pinned\.json|skipped\.txt|demo_[0-9]{8,18}\.png')
#: The ends of the names of files that the uploads write themselves.
_OWN = ('_manifest.json', '_state.json')


class RunUploads:
    """Copies the folder of a run to a URL: checkpoints, their manifest, logs and images.

    Args:
        url: The URL of the folder.
        folder: The folder on this machine.
        name: The argument that holds the URL, for messages.
    """

    def __init__(self, url: str, folder: RunFolder, name: str = 'run_dir') -> None:
        self.remote, self.folder = RemoteFolder(url, name), folder
        self._file_states: dict[str, tuple[int, int]] = {}  # the state of uploaded small files
        self._pointer: str | None = None
        self._request, self._is_closed = threading.Event(), False
        self._thread: threading.Thread | None = None

    def restore(self) -> Path | None:
        """Fetch the checkpoint to resume from, if it is newer than that of this machine.

        A damaged one is skipped with a warning. The log and the other files of the run are fetched
        too.

        Returns:
            The checkpoint; None if that of this machine is the newest.

        Raises:
            ValueError: If there are checkpoints at the URL, and none can be read.
            OSError: If the URL cannot be reached.
        """
        run, records = self.folder.name, self.remote.records(self.folder.name)
        entries = {name: r for name, r in records.items() if self.folder.is_name(name)}
        pointed = self.remote.read_pointer(run)
        if not entries or not self._is_behind(entries.get(pointed or '')):
            return None
        order = sorted(
            entries, key=lambda name: (name == pointed, entries[name].step), reverse=True
        )
        for name in order:
            try:
                path = self.remote.fetch(name, entries[name], self.folder.path)
            except (ValueError, OSError) as error:
                warnings.warn(f'{name} is skipped: {error}', stacklevel=2)
                continue
            self.folder.manifest.put(name, entries[name])
            self.folder.point_to(path)
            self._restore_others()
            return path
        raise ValueError(
            f'none of the checkpoints of {run!r} at {self.remote.url} can be read; to start '
            'again, move them away or choose another name'
        )

    def _is_behind(self, there: Record | None) -> bool:
        """Return True if the checkpoint at the URL replaces that of this machine."""
        latest = self.folder.latest()
        if latest is None or not latest.exists():
            return True
        here = self.folder.manifest.read().get(latest.name)
        if here is None:
            return False
        later = there is not None and (there.saved, there.step) > (here.saved, here.step)
        return later or here.fault(self.folder.path) is not None

    def _restore_others(self) -> None:
        """Fetch the files beside checkpoints that a resumed run needs."""
        head = f'{self.folder.name}_'
        for name in self.remote.names():
            if name.startswith(head) and _RESTORED.fullmatch(name[len(head) :]):
                content = self.remote.read(name)
                if content is not None:
                    with whole_file(self.folder.path / name, sync=False) as temporary:
                        temporary.write_bytes(content)

    def upload(self) -> None:
        """Upload new files, point to the latest checkpoint, and delete superfluous ones.

        Raises:
            OSError: If a file cannot be uploaded; the others wait for the next call.
        """
        run, records = self.folder.name, self.folder.manifest.read()
        self.remote.make()
        remote_records = self.remote.records(run)
        for name, record in sorted(records.items(), key=lambda item: item[1].step):
            if name not in remote_records or remote_records[name].files != record.files:
                if remote_records.pop(name, None) is not None:
                    self.remote.write_records(run, remote_records)
                if not self._upload_files(record):
                    continue
                remote_records[name] = record
                self.remote.write_records(run, remote_records)
        pointed = self.folder.read_pointer()
        if pointed is not None and pointed.name in remote_records and pointed.name != self._pointer:
            self.remote.write(f'{run}_state.json', to_json({'latest_checkpoint': pointed.name}))
            self._pointer = pointed.name
        if pointed is not None:
            self._rotate(remote_records, step_of(pointed))
        self._upload_others()

    def _upload_files(self, record: Record) -> bool:
        """Upload the files of a checkpoint; return False if it was deleted meanwhile."""
        for name, digest in record.files.items():
            try:
                self.remote.upload(self.folder.path / name, name, digest)
            except OSError:
                if not (self.folder.path / name).exists():
                    return False
                raise
        return True

    def _rotate(self, records: dict[str, Record], latest: int) -> None:
        """Delete the superfluous checkpoints at the URL, as on this machine."""
        pinned = self.folder.read_pins_or_none()
        if not self.folder.keep.last or pinned is None:
            return
        candidates = {
            name: record
            for name, record in records.items()
            if self.folder.is_name(name) and record.step <= latest
        }
        metrics = {record.step: record.metrics for record in candidates.values() if record.metrics}
        steps = [record.step for record in candidates.values()]
        reasons = self.folder.keep.reasons(steps, metrics, pinned)
        superfluous = {
            name: record for name, record in candidates.items() if not reasons[record.step]
        }
        if superfluous:
            remaining = {
                name: record for name, record in records.items() if name not in superfluous
            }
            self.remote.write_records(self.folder.name, remaining)
        for record in superfluous.values():
            for name in record.files:
                self.remote.delete(name)

    def _upload_others(self) -> None:
        """Upload the changed small files of the run, such as the log and images."""
        for path in sorted(self.folder.path.glob(f'{self.folder.name}_*')):
            if path.name.endswith(_OWN) or not path.is_file() or path.suffix in ('.pth', '.lock'):
                continue
            facts = path.stat()
            state = (facts.st_size, facts.st_mtime_ns)
            recorded = re.search(r'_ema_[0-9]{8,18}\.safetensors$', path.name)
            if (
                not recorded
                and facts.st_size <= SMALL_LIMIT
                and self._file_states.get(path.name) != state
            ):
                self.remote.write(path.name, path.read_bytes())
                self._file_states[path.name] = state

    def begin(self) -> None:
        """Start the thread that uploads."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, daemon=True)
            self._thread.start()

    def request(self) -> None:
        """Request an upload in the background."""
        self._request.set()

    def close(self) -> None:
        """Upload the remaining files, and wait for them."""
        if self._thread is not None:
            self._is_closed = True
            self._request.set()
            self._thread.join()
            self._thread = None

    def _work(self) -> None:
        """Upload on request, until the run ends."""
        last = False
        while not last:
            self._request.wait()
            self._request.clear()
            last = self._is_closed
            try:
                self.upload()
            except Exception as error:  # each file system of fsspec has its own errors
                reason = say_malformed(error) if isinstance(error, MALFORMED) else say_reason(error)
                warnings.warn(
                    f'{self.folder.name} could not be uploaded to {self.remote.url} ({reason}); '
                    f'its checkpoints are whole in {self.folder.path}, '
                    + ('run again to upload them' if last else 'training goes on'),
                    stacklevel=2,
                )


class UploadHook:
    """Requests an upload every `every` steps and when the run ends.

    Args:
        uploads: The uploads.
        every: Steps between uploads.
    """

    at_end = rescue = True

    def __init__(self, uploads: RunUploads, every: int) -> None:
        self.uploads, self.every = uploads, every

    def __call__(self, trainer: Trainer) -> None:
        self.uploads.request()
