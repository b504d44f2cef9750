"""Show the progress of a training run on stderr: a live line on a terminal, else plain lines."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from ...core.extras import require
from ...core.names import escape_name

#: A smaller share of waiting for data is not shown.
MUCH_WAIT = 0.05


class Display:
    """Show the reports of a trainer: steps, smoothed loss, images per second, time left, memory."""

    def __init__(self, name: str, visible: bool = True, every: float = 10.0) -> None:
        self.name = name = escape_name(name)
        self.visible = visible
        self.every = every
        self.live: Any = None
        self.shown_at = -float('inf')
        if visible and sys.stderr.isatty():
            rich = require('rich.progress', 'train', 'the progress display')
            columns = (
                rich.TextColumn('[bold]{task.description}'),
                rich.BarColumn(bar_width=None),
                rich.TextColumn('{task.fields[text]}'),
            )
            console = require('rich.console', 'train', 'the progress display').Console(stderr=True)
            self.live = rich.Progress(*columns, console=console, expand=True, refresh_per_second=4)
            self.task = self.live.add_task(name, total=None, text='starting')

    def __enter__(self) -> Display:
        if self.live:
            self.live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.live:
            self.live.stop()

    def __call__(self, values: Mapping[str, Any]) -> None:
        text = describe(values)
        last = values['step'] == values.get('end_step')
        if self.live:
            self.live.update(
                self.task, completed=values['step'], total=values.get('end_step'), text=text
            )
        elif self.visible and (last or time.monotonic() - self.shown_at >= self.every):
            self.shown_at = time.monotonic()
            print(f'{self.name}: {text}', file=sys.stderr, flush=True)

    def decoding(self, done: int, total: int) -> None:
        """Show how many pictures of a data set are decoded: `done` of `total`."""
        if self.live:
            self.live.update(
                self.task,
                completed=done,
                total=total,
                text=f'decoding pictures, {done:,} of {total:,}',
            )
        elif self.visible and time.monotonic() - self.shown_at >= self.every:
            self.shown_at = time.monotonic()
            print(
                f'{self.name}: decoding pictures, {done:,} of {total:,}',
                file=sys.stderr,
                flush=True,
            )

    def say(self, text: str) -> None:
        """Print `text` above the progress."""
        text = escape_name(text, keep='\n')
        if self.live:
            self.live.console.print(text, markup=False, highlight=False)
        elif self.visible:
            print(text, file=sys.stderr, flush=True)


def describe(values: Mapping[str, Any]) -> str:
    """Return the `values` of a report as one line, without those that are not known yet."""
    end = values['end_step']
    parts = [f'step {values["step"]:,}' + (f' of {end:,}' if end else '')]
    for key, text in (
        ('smoothed_loss', 'loss {:.4f}'),
        ('images_per_second', '{:,.0f} images/s'),
        ('seconds_left', '{} left'),
        ('mfu', 'MFU {:.1%}'),
        ('data_wait', 'waits for data {:.0%}'),
        ('gns', 'noise scale {:.3g}'),
        ('memory_bytes', '{:.2f} GiB'),
    ):
        value = values.get(key)
        if value is not None and (key != 'data_wait' or value >= MUCH_WAIT):
            parts.append(
                text.format(
                    clock(value)
                    if key == 'seconds_left'
                    else value / 2**30
                    if key == 'memory_bytes'
                    else value
                )
            )
    return ' | '.join(parts)


def clock(seconds: float) -> str:
    """Return `seconds` as 0:42, 12:05 or 3:20:00."""
    minutes, seconds = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02}:{seconds:02}' if hours else f'{minutes}:{seconds:02}'
