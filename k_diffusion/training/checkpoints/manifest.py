"""The sizes and digests of a run's checkpoints, since torch and safetensors load flipped bits."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...core.files import (
    MALFORMED,
    FileDigest,
    digest_of,
    note_once,
    read_json_file,
    say_malformed,
    write_json,
)


@dataclasses.dataclass(frozen=True)
class Record:
    """A checkpoint as it was written.

    Attributes:
        step: Its step.
        files: The sizes and digests of its files, by name in the folder of the run.
        metrics: Its metrics.
        saved: The time, UTC.
    """

    step: int
    files: dict[str, FileDigest]
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    saved: str = ''

    @property
    def bytes(self) -> int:
        """Return the size of all files in bytes."""
        return sum(file.bytes for file in self.files.values())

    def plain(self) -> dict[str, Any]:
        """Return the record as JSON values."""
        files = {name: digest._asdict() for name, digest in self.files.items()}
        return {'step': self.step, 'saved': self.saved, 'metrics': self.metrics, 'files': files}

    def fault(self, folder: Path) -> str | None:
        """Return the difference between the checkpoint and its record; None if they are equal.

        Args:
            folder: The folder of the run.
        """
        for name, digest in self.files.items():
            path = folder / name
            if not path.is_file():
                return f'{name} is not there'
            size = path.stat().st_size
            if size != digest.bytes:
                return (
                    f'{name} has {size:,} bytes and was written with {digest.bytes:,}: it is '
                    'cut short or was changed'
                )
            if digest_of(path) != digest.sha256:
                return f'{name} is damaged: its SHA-256 is not that of what was written'
        return None


class Manifest:
    """The records of a run's checkpoints by name, in NAME_manifest.json.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> dict[str, Record]:
        """Return all records; a damaged manifest is named in a warning and counts as empty."""
        if not self.path.exists():
            return {}
        try:
            return parse_records(read_json_file(self.path, 'it'))
        except MALFORMED as error:
            note_once(
                f'{self.path} is skipped, so that checkpoints are not verified: '
                f'{say_malformed(error)}'
            )
            return {}

    def write(self, records: Mapping[str, Record]) -> None:
        """Write all records.

        Args:
            records: The records by name.
        """
        write_json(self.path, plain_records(records))

    def put(self, name: str, record: Record) -> None:
        """Add or replace a record.

        Args:
            name: The checkpoint.
            record: The record.
        """
        self.write({**self.read(), name: record})

    def drop(self, *names: str) -> None:
        """Remove records, before their checkpoints are deleted or rewritten.

        Args:
            *names: The checkpoints.
        """
        records = self.read()
        if any(name in records for name in names):
            self.write({name: record for name, record in records.items() if name not in names})


def parse_records(content: Any) -> dict[str, Record]:
    """Return the records in the parsed JSON of a manifest.

    Args:
        content: The parsed JSON.

    Raises:
        ValueError, TypeError, LookupError, AttributeError: If it is not one.
    """
    return {name: _record(name, entry) for name, entry in content['checkpoints'].items()}


def plain_records(records: Mapping[str, Record]) -> dict[str, Any]:
    """Return the content of a manifest as JSON values.

    Args:
        records: The records by name.
    """
    return {'checkpoints': {name: record.plain() for name, record in records.items()}}


def check_recorded(path: Path) -> None:
    """Compare a file of a run, or a sharded checkpoint, with the manifest beside it.

    Without a manifest that names it, this does nothing.

    Args:
        path: The file or folder.

    Raises:
        ValueError: If it differs from its record.
    """
    match = re.fullmatch(r'(.+)_[0-9]{8,18}\.[a-z]+', path.name)
    if match is None or not path.exists():
        return
    for run in {match[1], match[1].removesuffix('_ema')}:
        record = Manifest(path.with_name(f'{run}_manifest.json')).read().get(path.name)
        if record is not None and (fault := record.fault(path.parent)):
            raise ValueError(
                f'{fault}; `k-diffusion checkpoints {path.parent}` lists those that '
                'are whole (verify=False takes it as it is)'
            )


def _record(checkpoint: str, entry: Any) -> Record:
    """Return the record in an entry of a manifest."""
    files = {
        name: FileDigest(_count(file['bytes']), _text(file['sha256']))
        for name, file in entry['files'].items()
    }
    odd = [name for name in files if name.split('/')[0] != checkpoint or '..' in name.split('/')]
    if odd or not files:
        raise ValueError(f'the files of {checkpoint} are {", ".join(files) or "none"}')
    metrics = {key: float(value) for key, value in entry.get('metrics', {}).items()}
    if not all(map(math.isfinite, metrics.values())):
        raise ValueError(f'a number of {checkpoint} is not finite')
    return Record(_count(entry['step']), files, metrics, _text(entry.get('saved', '')))


def _count(value: Any) -> int:
    """Check that a value is a non-negative integer."""
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError(f'a count must be an integer from 0 to 2^63; got {value!r:.80}')
    return value


def _text(value: Any) -> str:
    """Check that a value is a string."""
    if not isinstance(value, str):
        raise ValueError(f'a digest or time must be a string; got {value!r:.80}')
    return value
