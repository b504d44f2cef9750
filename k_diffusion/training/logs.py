"""Write and display the log of a run."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..core.files import whole_file
from .log_files import Table, read_log

if TYPE_CHECKING:
    from .trainer import Trainer


class LogHook:
    """Writes a line of JSON every `every` steps, and passes its values to `display`.

    The main process writes step, end_step, epoch, loss, smoothed_loss, images_per_second,
    seconds_left, memory_bytes, lr, ema_decay and elapsed (null if unknown), and loss_by_noise, see
    LossByNoise. data_wait is the share of the time since the previous line in which this process
    waited for batches; mfu is the achieved share of `peak_flops`. After a resume, lines of repeated
    steps are replaced. The same values are written as rows of a .csv file beside it.

    Args:
        path: The file; None writes none.
        every: Steps between lines.
        display: Called with the values of each line.
        item_flops: The FLOPs of a training item.
        peak_flops: The peak FLOPs per second of a device.
    """

    at_end = optional = True

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        every: int = 25,
        display: Callable[[dict[str, Any]], None] | None = None,
        item_flops: float | None = None,
        peak_flops: float | None = None,
    ) -> None:
        self.path = None if path is None else Path(path)
        self.every = every
        self.display = display
        self.item_flops, self.peak_flops = item_flops, peak_flops
        self._last: tuple[int, float, float] | None = None
        self._has_written = False
        self._table: Table

    def __call__(self, trainer: Trainer) -> None:
        trainer.read_losses()
        by_noise = trainer.loss_by_noise.values(trainer.accelerator)
        if not trainer.accelerator.is_main_process:
            return
        if self._last is not None and trainer.step < self._last[0]:  # the run was rewound
            self._last, self._has_written = None, False
        values = self._values(trainer) | {'loss_by_noise': by_noise}
        if self.path is not None and (trainer.done or trainer.step % max(1, self.every) == 0):
            # An interruption writes no line, so that the log is that of an uninterrupted run.
            self._write(self.path, values)
        if self.display is not None:
            self.display(values)

    def _values(self, trainer: Trainer) -> dict[str, Any]:
        """Return the values of a line, except loss_by_noise."""
        now = time.monotonic()
        last_step, last_time, last_wait = self._last or (trainer.step, now, 0.0)
        steps, seconds = trainer.step - last_step, now - last_time
        wait_seconds = trainer.data_seconds - last_wait
        self._last = trainer.step, now, trainer.data_seconds
        rate = steps / seconds if steps and seconds else None
        items = None if rate is None else rate * trainer.loader.items_per_step
        remaining = (
            None
            if trainer.end_step is None or rate is None
            else (trainer.end_step - trainer.step) / rate
        )
        return {
            'step': trainer.step,
            'end_step': trainer.end_step,
            'epoch': trainer.loader.epoch(trainer.items),
            'loss': _finite(trainer.last_loss),
            'smoothed_loss': _finite(trainer.ema_stats.get('loss', math.nan)),
            'images_per_second': items,
            'seconds_left': remaining,
            'data_wait': None if rate is None else wait_seconds / seconds,
            'mfu': self._mfu(items, trainer.accelerator.num_processes),
            'memory_bytes': memory_bytes(trainer.accelerator.device),
            'lr': trainer.lr,
            'ema_decay': trainer.ema_decay,
            'elapsed': trainer.elapsed,
            **values_of_parts(trainer),
        }

    def _mfu(self, items_per_second: float | None, devices: int) -> float | None:
        """Return the achieved share of the peak FLOPs; None if unknown."""
        if items_per_second is None or self.item_flops is None or self.peak_flops is None:
            return None
        return items_per_second * self.item_flops / (self.peak_flops * devices)

    def _write(self, path: Path, values: dict[str, Any]) -> None:
        """Append a line to both files; the first line replaces those of later steps."""
        if not self._has_written:
            path.parent.mkdir(parents=True, exist_ok=True)
            keep = [line for line in read_log(path) if line.get('step', 0) < values['step']]
            with whole_file(path) as temporary:
                temporary.write_text(''.join(json.dumps(line) + '\n' for line in keep))
            self._table = Table(path.with_suffix('.csv'), keep)
            self._has_written = True
        with open(path, 'a') as file:
            file.write(json.dumps(values) + '\n')
        if not self._table.add(values):  # the line has a new column
            self._table = Table(path.with_suffix('.csv'), read_log(path))


def memory_bytes(device: torch.device) -> int | None:
    """Return the peak memory of this process: on the GPU, else in RAM; None if unknown.

    Args:
        device: The device of the training.
    """
    if device.type == 'cuda':
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == 'darwin' else peak * 1024


def values_of_parts(trainer: Trainer) -> dict[str, Any]:
    """Return the values of the parts of a run for its log, from their methods `logged(step)`.

    Args:
        trainer: The trainer.
    """
    return {
        name: value
        for part in trainer.parts.values()
        if hasattr(part, 'logged')
        for name, value in part.logged(trainer.step).items()
    }


def _finite(value: float) -> float | None:
    """Return a value, or None if it is not finite."""
    return value if math.isfinite(value) else None
