"""The log of a run."""

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
    """Writes a line of JSON per `every` steps and hands its values to `display`, on the main
    process.

    step, end_step, epoch, loss, smoothed_loss, images_per_second, seconds_left, memory_bytes, lr,
    ema_decay, elapsed; null where unknown, and loss_by_noise, as LossByNoise gives it. data_wait is
    the share of the time since the line before for which this process waited for batches; mfu that
    of `peak_flops` which `item_flops` a training item make. After a resume, lines of steps that are
    taken again are replaced. The same values go as rows into a .csv file beside it.
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
        self.item_flops, self.peak_flops = item_flops, peak_flops  # (of one device)
        self._last: tuple[int, float, float] | None = None
        self._written = False
        self._table: Table

    def __call__(self, trainer: Trainer) -> None:
        trainer.read_losses()
        by_noise = trainer.loss_by_noise.values(trainer.accelerator)
        if not trainer.accelerator.is_main_process:
            return
        if self._last is not None and trainer.step < self._last[0]:  # the run was taken back
            self._last, self._written = None, False
        values = self._values(trainer) | {'loss_by_noise': by_noise}
        if self.path is not None and (trainer.done or trainer.step % max(1, self.every) == 0):
            self._write(
                self.path, values
            )  # a pause leaves no line: the log is that of a run without one
        if self.display is not None:
            self.display(values)

    def _values(self, trainer: Trainer) -> dict[str, Any]:
        now = time.monotonic()
        step, since, waited = self._last or (trainer.step, now, 0.0)
        steps, seconds, waited = trainer.step - step, now - since, trainer.data_seconds - waited
        self._last = trainer.step, now, trainer.data_seconds
        rate = steps / seconds if steps and seconds else None
        items = None if rate is None else rate * trainer.loader.items_per_step
        left = (
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
            'seconds_left': left,
            'data_wait': None if rate is None else waited / seconds,
            'mfu': self._mfu(items, trainer.accelerator.num_processes),
            'memory_bytes': memory_bytes(trainer.accelerator.device),
            'lr': trainer.lr,
            'ema_decay': trainer.ema_decay,
            'elapsed': trainer.elapsed,
            **values_of_parts(trainer),
        }

    def _mfu(self, items_per_second: float | None, devices: int) -> float | None:
        if items_per_second is None or self.item_flops is None or self.peak_flops is None:
            return None
        return items_per_second * self.item_flops / (self.peak_flops * devices)

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
        if not self._table.add(values):  # it has a column that is new
            self._table = Table(path.with_suffix('.csv'), read_log(path))


def memory_bytes(device: torch.device) -> int | None:
    """The most memory this process has used: of the GPU if it trains there, else of the machine;
    None if unknown.
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
    """What the parts of a run have to say in its log: their `logged(step)`, where they have one."""
    return {
        name: value
        for part in trainer.parts.values()
        if hasattr(part, 'logged')
        for name, value in part.logged(trainer.step).items()
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
