"""The log of a run for TensorBoard."""
from __future__ import annotations

from pathlib import Path
from typing import Any

from ...core.extras import require
from ...training import Trainer
from ...training.log_files import flat
from ...training.logs import values_of_parts


class TensorboardHook:
    """Writes what the log says as event files below the run's folder (from the main process)."""

    optional = True

    def __init__(self, folder: Path, every: int) -> None:
        require('tensorboard', 'tensorboard', 'tensorboard=True')
        writer: Any = require('torch.utils.tensorboard', 'tensorboard', 'tensorboard=True')
        self.every = every
        self.writer = writer.SummaryWriter(str(folder / 'tensorboard'))

    def __call__(self, trainer: Trainer) -> None:
        by_noise = trainer.loss_by_noise.values(trainer.accelerator)
        if not trainer.accelerator.is_main_process:
            return
        values = {'loss': trainer.ema_stats.get('loss'), 'lr': trainer.lr, 'ema_decay': trainer.ema_decay, 'loss_by_noise': by_noise,
                  **values_of_parts(trainer)}
        for key, value in flat(values).items():
            if value is not None:
                self.writer.add_scalar(key, value, trainer.step)
        self.writer.flush()
