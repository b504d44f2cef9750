"""Progress of a task: a bar on a terminal or in a notebook, a line of the log every few seconds
elsewhere.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from typing import Any

from tqdm.auto import tqdm

from .run.display import clock

#: Seconds between two lines.
EVERY = 10.0
_LOG = logging.getLogger(__name__)
_IN_NOTEBOOK = any(base.__name__ == 'tqdm_notebook' for base in tqdm.__mro__)


def show_progress(
    name: str, total: int | None, unit: str, show: bool = True, **options: Any
) -> Any:
    """Return an object that shows how far a task is.

    On a terminal and in a notebook it is a bar; elsewhere it writes lines to the log of level INFO,
    which the commands print. It has `update`, `set_description` and `n`, as a bar of tqdm, and is a
    context manager.

    Args:
        name: The task.
        total: How many units there are; None: not known.
        unit: One of them; '' where `total` stands for the whole, which is shown in percent.
        show: False: nothing is shown.
        options: For the bar.
    """
    bar = _IN_NOTEBOOK or sys.stderr.isatty()
    if show and not bar and _LOG.isEnabledFor(logging.INFO):
        return Lines(name, total, unit)
    return tqdm(total=total, unit=unit or 'it', disable=not (show and bar), **options)


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
            _LOG.info('%s', self.describe())
