"""Trace a few steps of a run by torch.profiler."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch

from ...core.files import whole_file
from ...training import Trainer

#: Steps before the trace, in which kernels are compiled and memory is taken.
WARMUP = 5
#: How many operators the table lists.
ROWS = 30


class ProfileHook:
    """Trace `steps` steps after a warm-up.

    It writes NAME_trace_STEP.json.gz, for chrome://tracing or ui.perfetto.dev, and
    NAME_trace_STEP.txt, the operators with the most time of their own; STEP is the last traced
    step. The results of training do not change.
    """

    every = 1
    at_end = optional = True

    def __init__(self, folder: Path, name: str, steps: int) -> None:
        self.folder, self.name, self.steps = folder, name, steps
        self._calls, self._step, self._over = 0, 0, False
        self._profiler: Any = None

    def __call__(self, trainer: Trainer) -> None:
        if self._over:
            return
        self._calls += 1
        self._step = trainer.step
        if self._profiler is not None:
            self._profiler.step()
        elif self._calls == WARMUP:
            self._begin(trainer.accelerator.device)
        if self._calls == WARMUP + 1 + self.steps or trainer.done or trainer.stopping:
            self.close()

    def _begin(self, device: torch.device) -> None:
        kinds = [torch.profiler.ProfilerActivity.CPU]
        if device.type == 'cuda':
            kinds.append(torch.profiler.ProfilerActivity.CUDA)
        self._profiler = torch.profiler.profile(
            activities=kinds,
            schedule=torch.profiler.schedule(wait=0, warmup=1, active=self.steps, repeat=1),
            on_trace_ready=self._write,
        )
        self._profiler.start()

    def close(self) -> None:
        """End the trace and write it."""
        if self._over:
            return
        self._over = True
        if self._profiler is None or self._calls < WARMUP + 2:
            warnings.warn(
                f'no step was traced: the first {WARMUP + 1} are left out, and the run ended after '
                f'{self._calls}',
                stacklevel=2,
            )
        if self._profiler is not None:
            self._profiler.stop()
            self._profiler = None

    def _write(self, profiler: Any) -> None:
        path = self.folder / f'{self.name}_trace_{self._step:08}.json.gz'
        with whole_file(path, sync=False) as temporary:
            profiler.export_chrome_trace(str(temporary))
        averages = profiler.key_averages()
        on_gpu = torch.profiler.ProfilerActivity.CUDA in profiler.activities
        key = 'self_device_time_total' if on_gpu else 'self_cpu_time_total'
        with whole_file(path.with_name(path.name.removesuffix('.json.gz') + '.txt')) as temporary:
            temporary.write_text(averages.table(sort_by=key, row_limit=ROWS) + '\n')
