"""Progress of a command: a bar on a terminal, a line every few seconds elsewhere."""
from __future__ import annotations

import sys
import threading
import time
from typing import Any

from tqdm.auto import tqdm

from .run.display import clock

#: Seconds between two lines.
EVERY = 10.


def show_progress(name: str, total: int | None, unit: str, show: bool = True,
                  **options: Any) -> Any:
    """Return what shows how far a command is, on standard error.

    It has `update`, `set_description` and `n`, as a bar of tqdm, and is a context manager.

    Args:
        name: The command.
        total: How many units there are; None: not known.
        unit: One of them; '' where `total` stands for the whole, which is shown in percent.
        show: False: nothing is shown.
        options: For the bar.
    """
    if not show or sys.stderr.isatty():
        return tqdm(total=total, unit=unit or 'it', disable=not show, **options)
    return Lines(name, total, unit)


class Lines:
    """Progress as lines of text, from a thread, so that they come also while a unit takes long."""

    def __init__(self, name: str, total: int | None, unit: str) -> None:
        self.name, self.total, self.unit = name, total, unit
        self.n = 0
        self.description = ''
        self._begun = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._print_lines, args=(EVERY,), daemon=True)

    def __enter__(self) -> Lines:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def update(self, n: int = 1) -> None:
        """Count units that are done."""
        self.n += n

    def set_description(self, text: str) -> None:
        """Say what is being done."""
        self.description = text

    def describe(self) -> str:
        """Return how far it is, in words."""
        elapsed = time.monotonic() - self._begun
        if self.unit:
            of = '' if self.total is None else f' of {self.total:,}'
            done = f'{self.n:,}{of} {self.unit}s'
        else:
            done = f'{100 * self.n // (self.total or 1)} %'
        left = ''
        if self.total is not None and 0 < self.n < self.total:
            left = f', {clock(elapsed / self.n * (self.total - self.n))} left'
        doing = f' ({self.description})' if self.description else ''
        return f'{self.name}: {done}{doing} after {clock(elapsed)}{left}'

    def _print_lines(self, every: float) -> None:
        while not self._ended.wait(every):
            print(self.describe(), file=sys.stderr, flush=True)
