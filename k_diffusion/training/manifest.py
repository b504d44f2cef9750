"""What each checkpoint of a run must be, byte for byte: torch and safetensors load a flipped bit without a word."""
from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..core.files import Written, digest_of, read_json, write_json


@dataclasses.dataclass(frozen=True)
class Record:
    """A checkpoint as it was written: its step, its files by name (from the run's folder), what was measured of it, when."""

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
                return f'{name} has {found:,} bytes and was written with {written.bytes:,}: it is cut short or was changed'
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
            held = read_json(self.path.read_text(), str(self.path))
            return {name: _record(entry) for name, entry in held['checkpoints'].items()}
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            warnings.warn(f'{self.path.name} is passed over, so that checkpoints are not verified: {error}', stacklevel=2)
            return {}

    def write(self, records: Mapping[str, Record]) -> None:
        write_json(self.path, {'checkpoints': {name: record.plain() for name, record in records.items()}})

    def put(self, name: str, record: Record) -> None:
        self.write({**self.read(), name: record})

    def drop(self, *names: str) -> None:
        """Forgets checkpoints, before they are deleted or written anew."""
        held = self.read()
        if any(name in held for name in names):
            self.write({name: record for name, record in held.items() if name not in names})


def _record(entry: Any) -> Record:
    files = {name: Written(int(file['bytes']), str(file['sha256'])) for name, file in entry['files'].items()}
    metrics = {str(key): float(value) for key, value in entry.get('metrics', {}).items()}
    return Record(int(entry['step']), files, metrics, str(entry.get('saved', '')))
