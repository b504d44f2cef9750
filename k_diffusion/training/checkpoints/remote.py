"""The folder of a run at a URL: upload and fetch its manifest, pointer and checkpoints.

A file is valid if the manifest at the URL names it. It is named there after it was read back with
the SHA-256 that was written. So the remains of an interrupted upload are never used as a
checkpoint.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...core.files import (
    MALFORMED,
    FileDigest,
    cache_folder,
    digest_of,
    note_once,
    read_json,
    say_malformed,
    temporary_path,
    whole_file,
)
from ...core.remote import (
    digest_remote,
    download,
    file_system,
    hide_secrets,
    say_reason,
    state_of,
    try_again,
)
from .folder import RunFolder
from .manifest import Record, parse_records, plain_records
from .retention import Retention

#: The most bytes of a manifest or another small file of a run.
SMALL_LIMIT = 2**26
#: The names of files of checkpoints: of a single file, of a shard, and of averages.
_FILE = re.compile(r'[^/\\]+_[0-9]{8,18}\.(pth|safetensors|shards/rank_[0-9]{5,}\.pth)')
#: The number of checkpoints of a run in the cache.
_CACHED = 2


class RemoteFolder:
    """The folder of runs at an fsspec URL.

    Args:
        url: The URL of the folder.
        name: The argument that holds it, for messages.
    """

    def __init__(self, url: str, name: str = 'checkpoint') -> None:
        self.system, path = file_system(url, name)
        self.path, self.url = path.rstrip('/'), hide_secrets(url).rstrip('/')

    def at(self, name: str) -> str:
        """Return the path of a file in the folder for its file system.

        Args:
            name: The name of the file.
        """
        return f'{self.path}/{name}'

    def names(self) -> list[str]:
        """Return the names of the entries of the folder."""

        def find() -> list[str]:
            self.system.invalidate_cache()
            return [str(path) for path in self.system.ls(self.path, detail=False)]

        try:
            paths = try_again(lambda: find() if self.system.exists(self.path) else [])
        except NotADirectoryError:
            return []
        return [path.rstrip('/').rpartition('/')[2] for path in paths]

    def read(self, name: str) -> bytes | None:
        """Return the content of a small file; None without one.

        Args:
            name: The name of the file.

        Raises:
            ValueError: If it is larger than SMALL_LIMIT.
        """

        def fetch() -> bytes | None:
            self.system.invalidate_cache()
            if not self.system.isfile(self.at(name)):
                return None
            with self.system.open(self.at(name), 'rb') as file:
                return bytes(file.read(SMALL_LIMIT + 1))

        content = try_again(fetch)
        if content is not None and len(content) > SMALL_LIMIT:
            raise ValueError(f'{self.url}/{name} has more than {SMALL_LIMIT:,} bytes')
        return content

    def records(self, run: str) -> dict[str, Record]:
        """Return the records of the manifest of a run; none, with a warning, if it is damaged.

        Args:
            run: The run.
        """
        name = f'{run}_manifest.json'
        content = self.read(name)
        if content is None:
            return {}
        try:
            records = parse_records(read_json(content.decode(), f'{self.url}/{name}'))
            odd = [file for record in records.values() for file in record.files]
            if not all(map(_FILE.fullmatch, odd)):
                raise ValueError('it names files that training does not write')
            return records
        except MALFORMED as error:
            note_once(f'{self.url}/{name} is skipped: {say_malformed(error)}')
            return {}

    def runs(self) -> list[str]:
        """Return the names of the runs with a manifest in the folder."""
        matches = (re.fullmatch(r'(.+)_manifest\.json', name) for name in self.names())
        return sorted(match[1] for match in matches if match)

    def read_pins(self, run: str) -> set[int]:
        """Return the pinned steps of a run; none if they cannot be read.

        Args:
            run: The run.
        """
        content = self.read(f'{run}_pinned.json')
        try:
            steps = read_json((content or b'[]').decode(), 'it')
        except MALFORMED:
            return set()
        return {step for step in steps if type(step) is int} if isinstance(steps, list) else set()

    def find_fault(self, record: Record) -> str | None:
        """Read a checkpoint completely and return its difference from its record, or None.

        Args:
            record: The record.
        """
        for name, digest in record.files.items():
            try:
                if digest_remote(self.system, self.at(name)) != digest:
                    return f'{name} is damaged: its SHA-256 is not that of what was written'
            except OSError as error:
                return f'{name} cannot be read ({say_reason(error)})'
        return None

    def read_pointer(self, run: str) -> str | None:
        """Return the name of the checkpoint that the state file of a run names.

        Args:
            run: The run.
        """
        content = self.read(f'{run}_state.json')
        try:
            name = read_json((content or b'{}').decode(), 'it').get('latest_checkpoint')
        except MALFORMED:
            return None
        return name if isinstance(name, str) else None

    def write(self, name: str, content: bytes) -> None:
        """Write a small file.

        Args:
            name: The name of the file.
            content: Its content.
        """
        try_again(lambda: self.system.pipe_file(self.at(name), content))

    def write_records(self, run: str, records: Mapping[str, Record]) -> None:
        """Write the manifest of a run.

        Args:
            run: The run.
            records: The records by name.
        """
        self.write(f'{run}_manifest.json', to_json(plain_records(records)))

    def make(self) -> None:
        """Create the folder, if the file system has folders."""
        with contextlib.suppress(
            Exception
        ):  # object stores have no folders, or refuse to create them
            self.system.makedirs(self.path, exist_ok=True)

    def upload(self, path: Path, name: str, digest: FileDigest) -> None:
        """Upload a file and read it back.

        Args:
            path: The local file.
            name: Its name at the URL.
            digest: Its size and digest.

        Raises:
            OSError: If it cannot be uploaded, or differs when it is read back.
        """

        def send() -> None:
            if '/' in name:
                with contextlib.suppress(Exception):  # see make
                    self.system.makedirs(self.at(name).rpartition('/')[0], exist_ok=True)
            self.system.put_file(str(path), self.at(name))
            if digest_remote(self.system, self.at(name)) != digest:
                raise OSError(f'{name} differs from what was written when it is read back')

        try_again(send)

    def delete(self, name: str) -> None:
        """Delete a file, if it exists.

        Args:
            name: The name of the file.
        """
        if self.system.exists(self.at(name)):
            try_again(lambda: self.system.rm_file(self.at(name)))

    def fetch(self, name: str, record: Record, folder: Path, verify: bool = True) -> Path:
        """Copy a checkpoint into a local folder; it gets its name there after the comparison.

        Args:
            name: The checkpoint.
            record: Its record.
            folder: The local folder.
            verify: Compare it with its record.

        Raises:
            ValueError: If it differs from its record.
            OSError: If it cannot be read.
        """
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / name
        if record.files.keys() == {name}:
            with whole_file(path) as temporary:
                self._copy(name, record.files[name], temporary, verify)
            return path
        whole = temporary_path(path)
        whole.mkdir()
        try:
            for file, digest in record.files.items():
                self._copy(file, digest, whole / file.rpartition('/')[2], verify)
            shutil.rmtree(path, ignore_errors=True)
            whole.replace(path)
        finally:
            shutil.rmtree(whole, ignore_errors=True)
        return path

    def _copy(self, name: str, digest: FileDigest, path: Path, verify: bool) -> None:
        """Download a file and compare it with its record."""
        try_again(lambda: download(self.system, self.at(name), path))
        if verify and (path.stat().st_size != digest.bytes or digest_of(path) != digest.sha256):
            raise ValueError(
                f'{self.url}/{name} is damaged: its SHA-256 is not that of what was written; use '
                'an older one from the same folder (verify=False takes it as it is)'
            )


def to_json(value: Any) -> bytes:
    """Return a value as indented JSON.

    Args:
        value: The value.
    """
    return (json.dumps(value, indent=4, allow_nan=False) + '\n').encode()


def fetch_checkpoint(url: str, verify: bool = True) -> Path:
    """Copy a checkpoint at a URL to this machine, and return the path of the copy.

    It is compared with the manifest at the URL. Copies are in the cache, which keeps the last two
    of a run. The record of a copy is written into a manifest beside it, so that it is compared
    again when it is loaded.

    Args:
        url: A .pth or .safetensors file, a sharded checkpoint (.shards), or the folder of a run,
            whose latest checkpoint is used.
        verify: Refuse a file that differs from the manifest beside it.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        ValueError: If it differs from the manifest, or the folder holds several runs.
    """
    place, _, name = url.rstrip('/').rpartition('/')
    if not re.fullmatch(r'.+\.(pth|safetensors|shards)', name):
        remote = RemoteFolder(url)
        run, name = _latest(remote)
    else:
        remote, run = RemoteFolder(place), ''
        match = re.fullmatch(r'(.+?)(?:_ema)?_[0-9]{8,18}\.[a-z]+', name)
        run = match[1] if match else ''
    records = remote.records(run) if run else {}
    record = records.get(name)
    if records and record is None and verify:
        raise ValueError(
            f'the manifest of the run {run!r} at {remote.url} does not name {name}; its upload may '
            'have been cut (verify=False takes it as it is)'
        )
    key = hashlib.blake2b(f'{remote.url} {run}'.encode(), digest_size=12).hexdigest()
    folder = RunFolder(cache_folder() / 'remote' / key, run, keep=Retention(_CACHED, 0))
    if record is None:
        return _fetch_unrecorded(remote, name, folder.path)
    if (
        verify
        and folder.manifest.read().get(name) == record
        and folder.is_whole(folder.path / name)
    ):
        return folder.path / name
    folder.manifest.drop(name)
    path = remote.fetch(name, record, folder.path, verify)
    if verify:
        folder.manifest.put(name, record)
    folder.rotate(record.step)
    return path


def _latest(remote: RemoteFolder) -> tuple[str, str]:
    """Return the one run of a folder, and the name of its latest checkpoint."""
    runs = remote.runs()
    if len(runs) != 1:
        raise ValueError(
            f'{remote.url} is a folder with {len(runs)} runs ({", ".join(runs) or "none"}); '
            'give the URL of a .pth or .safetensors file'
        )
    name = remote.read_pointer(runs[0])
    if name is None or name not in remote.records(runs[0]):
        raise ValueError(
            f'the run {runs[0]!r} at {remote.url} has no checkpoint that its manifest names; '
            'give the URL of a .pth or .safetensors file'
        )
    return runs[0], name


def _fetch_unrecorded(remote: RemoteFolder, name: str, folder: Path) -> Path:
    """Return a copy of a file that no manifest names; fetch it again if it has changed."""
    if name.endswith('.shards') or not remote.system.isfile(remote.at(name)):
        raise FileNotFoundError(
            f'no checkpoint at {remote.url}/{name}; give the URL of a .pth or .safetensors file, '
            'or of the folder of a run'
        )
    state = hashlib.blake2b(state_of(remote.system, remote.at(name)).encode(), digest_size=8)
    path = folder / state.hexdigest() / name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as temporary:
            try_again(lambda: download(remote.system, remote.at(name), temporary))
    return path
