"""The files of a log: JSON lines, and comma-separated rows."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..core.files import note_once, whole_file


class Table:
    """The lines of a log as comma-separated rows, with lists in numbered columns.

    Args:
        path: The file, which is rewritten.
        lines: The lines so far.
    """

    def __init__(self, path: Path, lines: Sequence[dict[str, Any]]) -> None:
        self.path = path
        rows = [flat(line) for line in lines]
        self.columns = list(dict.fromkeys(key for row in rows for key in row))
        with whole_file(path, sync=False) as temporary, open(temporary, 'w', newline='') as file:
            writer = csv.DictWriter(file, self.columns)
            if self.columns:
                writer.writeheader()
            writer.writerows(rows)

    def add(self, line: dict[str, Any]) -> bool:
        """Append a row; return False if the line has a column that the table lacks.

        Args:
            line: The line.
        """
        row = flat(line)
        if not set(row) <= set(self.columns):
            return False
        with open(self.path, 'a', newline='') as file:
            csv.DictWriter(file, self.columns).writerow(row)
        return True


def flat(line: dict[str, Any]) -> dict[str, Any]:
    """Return a line of a log without lists: a list under `name` becomes name_0, name_1, ...

    Args:
        line: The line.
    """
    out: dict[str, Any] = {}
    for key, value in line.items():
        out.update(
            {f'{key}_{i}': item for i, item in enumerate(value)}
            if isinstance(value, list)
            else {key: value}
        )
    return out


class CSVLogger:
    """Writes rows of comma-separated values under a header line, or appends to an existing file.

    Args:
        filename: The file.
        columns: The header.
    """

    def __init__(self, filename: str | os.PathLike[str], columns: list[str]) -> None:
        self.filename = Path(filename)
        self.columns = columns
        is_new = not self.filename.exists()
        self.file = open(self.filename, 'a')  # noqa: SIM115 - open for as long as the logger lives
        if is_new:
            self.write(*columns)

    def write(self, *values: Any) -> None:
        """Append a row.

        Args:
            *values: Its values.
        """
        print(*values, sep=',', file=self.file, flush=True)


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a JSON-lines log.

    A last line cut short by a crash is ignored. Other invalid lines are ignored with a warning.

    Args:
        path: The file.
    """
    if not path.exists():
        return []
    texts = path.read_bytes().split(b'\n')
    lines = [_line(text) for text in texts]
    odd = sum(
        line is None and not text.isspace() and text != b'' for line, text in zip(lines[:-1], texts)
    )
    if odd:
        note_once(f'{odd} lines of {path} are not lines of a log; they are skipped')
    return [line for line in lines if line is not None]


def _line(text: bytes) -> dict[str, Any] | None:
    """Return a line of a log: a step, numbers, lists of numbers, null; None for another text."""
    try:
        line = json.loads(text.decode())
    except (ValueError, RecursionError):
        return None
    if not isinstance(line, dict) or type(line.get('step')) is not int:
        return None
    values = flat(line).values()
    return line if 0 <= line['step'] < 2**63 and all(map(_is_value, values)) else None


def _is_value(value: Any) -> bool:
    """Return True for a number or null."""
    whole = isinstance(value, int) and abs(value) < 2**63
    return value is None or isinstance(value, float) or whole
