"""What each checkpoint of a run must be, byte for byte: torch and safetensors load a flipped bit
without a word.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...core.files import (
    MALFORMED,
    Written,
    digest_of,
    note_once,
    read_json_file,
    say_malformed,
    write_json,
)


@dataclasses.dataclass(frozen=True)
class Record:
    """A checkpoint as it was written: its step, its files by name (from the run's folder), what
    was measured of it, when.
    """

    step: int
    files: dict[str, Written]
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    saved: str = ''

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files.values())

    def plain(self) -> dict[str, Any]:
        """As plain JSON values."""
        files = {name: written._asdict() for name, written in self.files.items()}
        return {'step': self.step, 'saved': self.saved, 'metrics': self.metrics, 'files': files}

    def fault(self, folder: Path) -> str | None:
        """Why the checkpoint is not what was written, or None where it is."""
        for name, written in self.files.items():
            path = folder / name
            if not path.is_file():
                return f'{name} is not there'
            found = path.stat().st_size
            if found != written.bytes:
                return (
                    f'{name} has {found:,} bytes and was written with {written.bytes:,}: it is '
                    'cut short or was changed'
                )
            if digest_of(path) != written.sha256:
                return f'{name} is damaged: its SHA-256 is not that of what was written'
        return None


class Manifest:
    """The records of a run's checkpoints by name, in NAME_manifest.json."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> dict[str, Record]:
        """All records; a manifest that cannot be read is named in a warning and counts as empty."""
        if not self.path.exists():
            return {}
        try:
            return parse_records(read_json_file(self.path, 'it'))
        except MALFORMED as error:
            note_once(
                f'{self.path} is passed over, so that checkpoints are not verified: '
                f'{say_malformed(error)}'
            )
            return {}

    def write(self, records: Mapping[str, Record]) -> None:
        write_json(self.path, plain_records(records))

    def put(self, name: str, record: Record) -> None:
        self.write({**self.read(), name: record})

    def drop(self, *names: str) -> None:
        """Forgets checkpoints, before they are deleted or written anew."""
        held = self.read()
        if any(name in held for name in names):
            self.write({name: record for name, record in held.items() if name not in names})


def parse_records(content: Any) -> dict[str, Record]:
    """Return the records in the parsed JSON of a manifest.

    Raises:
        ValueError, TypeError, LookupError, AttributeError: It is not one.
    """
    return {name: _record(name, entry) for name, entry in content['checkpoints'].items()}


def plain_records(records: Mapping[str, Record]) -> dict[str, Any]:
    """Return what a manifest of these records holds, as plain JSON values."""
    return {'checkpoints': {name: record.plain() for name, record in records.items()}}


def check_recorded(path: Path) -> None:
    """Check a file of a run, or a checkpoint in pieces, against the manifest beside it.

    Without a manifest that names it there is nothing to compare with.

    Raises:
        ValueError: It is not what was written.
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
    files = {
        name: Written(_count(file['bytes']), _text(file['sha256']))
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
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError(f'{value!r:.80} stands where a whole number should')
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f'{value!r:.80} stands where text should')
    return value
