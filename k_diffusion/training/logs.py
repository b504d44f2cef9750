"""The log of a run: JSON lines for programs, comma-separated rows for metrics."""
from __future__ import annotations

import csv
import json
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..core.files import note_once, whole_file

if TYPE_CHECKING:
    from .trainer import Trainer


class LogHook:
    """Writes a line of JSON per `every` steps and hands its values to `display`, on the main process.

    step, end_step, epoch, loss, smoothed_loss, images_per_second, seconds_left, memory_bytes, lr, ema_decay, elapsed;
    null where unknown, and loss_by_noise, as LossByNoise gives it. After a resume, lines of steps that are taken again are replaced.
    The same values go as rows into a .csv file beside it.
    """
    at_end = optional = True

    def __init__(self, path: str | os.PathLike[str] | None, every: int = 25,
                 display: Callable[[dict[str, Any]], None] | None = None) -> None:
        self.path = None if path is None else Path(path)
        self.every = every
        self.display = display
        self._last: tuple[int, float] | None = None
        self._written = False
        self._table: Table

    def __call__(self, trainer: Trainer) -> None:
        trainer.read_losses()
        by_noise = trainer.loss_by_noise.values(trainer.accelerator)
        if not trainer.accelerator.is_main_process:
            return
        values = self._values(trainer) | {'loss_by_noise': by_noise}
        if self.path is not None and (trainer.done or trainer.step % max(1, self.every) == 0):
            self._write(self.path, values)     # a pause leaves no line: the log is that of a run without one
        if self.display is not None:
            self.display(values)

    def _values(self, trainer: Trainer) -> dict[str, Any]:
        now = time.monotonic()
        steps, seconds = (trainer.step - self._last[0], now - self._last[1]) if self._last else (0, 0.)
        self._last = trainer.step, now
        rate = steps / seconds if steps and seconds else None
        left = None if trainer.end_step is None or rate is None else (trainer.end_step - trainer.step) / rate
        return {
            'step': trainer.step, 'end_step': trainer.end_step, 'epoch': trainer.loader.epoch(trainer.items),
            'loss': _finite(trainer.last_loss), 'smoothed_loss': _finite(trainer.ema_stats.get('loss', math.nan)),
            'images_per_second': None if rate is None else rate * trainer.loader.items_per_step, 'seconds_left': left,
            'memory_bytes': memory_bytes(trainer.accelerator.device), 'lr': trainer.lr, 'ema_decay': trainer.ema_decay,
            'elapsed': trainer.elapsed, **values_of_parts(trainer),
        }

    def _write(self, path: Path, values: dict[str, Any]) -> None:
        if not self._written:
            path.parent.mkdir(parents=True, exist_ok=True)
            keep = [line for line in read_log(path) if line.get('step', 0) < values['step']]
            with whole_file(path) as temporary:
                temporary.write_text(''.join(json.dumps(line) + '\n' for line in keep))
            self._table = Table(path.with_suffix('.csv'), keep)
            self._written = True
        with open(path, 'a') as file:
            file.write(json.dumps(values) + '\n')
        if not self._table.add(values):     # it has a column that is new
            self._table = Table(path.with_suffix('.csv'), read_log(path))


class Table:
    """The lines of a log as comma-separated rows, lists spread over numbered columns; written anew when a column is new."""

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
        """Appends a row; False where the line has a column that the table lacks."""
        row = flat(line)
        if not set(row) <= set(self.columns):
            return False
        with open(self.path, 'a', newline='') as file:
            csv.DictWriter(file, self.columns).writerow(row)
        return True


def flat(line: dict[str, Any]) -> dict[str, Any]:
    """A line of a log without lists: a list under `name` becomes name_0, name_1, ..."""
    out: dict[str, Any] = {}
    for key, value in line.items():
        out.update({f'{key}_{i}': item for i, item in enumerate(value)} if isinstance(value, list) else {key: value})
    return out


class CSVLogger:
    """Rows of comma-separated values under a header line; an existing file is gone on with."""

    def __init__(self, filename: str | os.PathLike[str], columns: list[str]) -> None:
        self.filename = Path(filename)
        self.columns = columns
        is_new = not self.filename.exists()
        self.file = open(self.filename, 'a')  # noqa: SIM115 - open for as long as the logger lives
        if is_new:
            self.write(*columns)

    def write(self, *values: Any) -> None:
        print(*values, sep=',', file=self.file, flush=True)


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a JSON-lines log.

    A last line cut short by a crash is left out. Others that are not lines of a log are left out
    too, with a note.
    """
    if not path.exists():
        return []
    texts = path.read_bytes().split(b'\n')
    lines = [_line(text) for text in texts]
    odd = sum(line is None and not text.isspace() and text != b''
              for line, text in zip(lines[:-1], texts))
    if odd:
        note_once(f'{odd} lines of {path} are not lines of a log; they are passed over')
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
    whole = isinstance(value, int) and abs(value) < 2**63
    return value is None or isinstance(value, float) or whole


def memory_bytes(device: torch.device) -> int | None:
    """The most memory this process has used: of the GPU if it trains there, else of the machine; None if unknown."""
    if device.type == 'cuda':
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == 'darwin' else peak * 1024


def values_of_parts(trainer: Trainer) -> dict[str, Any]:
    """What the parts of a run have to say in its log: their `logged()`, where they have one."""
    return {name: value for part in trainer.parts.values() if hasattr(part, 'logged') for name, value in part.logged().items()}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
