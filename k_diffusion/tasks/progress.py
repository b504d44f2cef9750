"""Show the progress of a task: a bar on a terminal or in a notebook, log lines elsewhere."""

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
    """Return an object that shows the progress of a task.

    On a terminal and in a notebook it is a bar; elsewhere it writes lines to the log at level INFO,
    which the commands print. It has `update`, `set_description` and `n`, like a bar of tqdm, and is
    a context manager.

    Args:
        name: The task.
        total: The number of units; None: not known.
        unit: The name of a unit; '' if `total` is the whole, which is shown in percent.
        show: False: show nothing.
        options: Options of the bar.
    """
    bar = _IN_NOTEBOOK or sys.stderr.isatty()
    if show and not bar and _LOG.isEnabledFor(logging.INFO):
        return Lines(name, total, unit)
    return tqdm(total=total, unit=unit or 'it', disable=not (show and bar), **options)


class Lines:
    """Show progress as lines of text from a thread, also while one unit takes long."""

    def __init__(self, name: str, total: int | None, unit: str) -> None:
        self.name, self.total, self.unit = name, total, unit
        self.n = 0
        self.description = ''
        self._start = time.monotonic()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._print_lines, args=(EVERY,), daemon=True)

    def __enter__(self) -> Lines:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def update(self, n: int = 1) -> None:
        """Count `n` finished units."""
        self.n += n

    def set_description(self, text: str) -> None:
        """Describe the current part of the work with `text`."""
        self.description = text

    def describe(self) -> str:
        """Return the progress as text."""
        elapsed = time.monotonic() - self._start
        if self.unit:
            of = '' if self.total is None else f' of {self.total:,}'
            progress = f'{self.n:,}{of} {self.unit}s'
        else:
            progress = f'{100 * self.n // (self.total or 1)} %'
        remaining = ''
        if self.total is not None and 0 < self.n < self.total:
            remaining = f', {clock(elapsed / self.n * (self.total - self.n))} left'
        doing = f' ({self.description})' if self.description else ''
        return f'{self.name}: {progress}{doing} after {clock(elapsed)}{remaining}'

    def _print_lines(self, every: float) -> None:
        while not self._end.wait(every):
            _LOG.info('%s', self.describe())
