"""Send the log of a run to TensorBoard and to Weights & Biases."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...core.extras import require
from ...training import Trainer
from ...training.log_files import flat
from ...training.logs import values_of_parts
from .report import redact


class TensorboardHook:
    """Write the values of the log as event files in the run's folder (on the main process)."""

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
        values = {
            'loss': trainer.ema_stats.get('loss'),
            'lr': trainer.lr,
            'ema_decay': trainer.ema_decay,
            'loss_by_noise': by_noise,
            **values_of_parts(trainer),
        }
        for key, value in flat(values).items():
            if value is not None:
                self.writer.add_scalar(key, value, trainer.step)
        self.writer.flush()


class WandbHook:
    """Send the values of the log to Weights & Biases, on the main process.

    With `save_model` it also uploads each new checkpoint.
    """

    optional = True

    def __init__(
        self,
        project: str,
        entity: str | None,
        group: str | None,
        config: Mapping[str, Any],
        every: int,
        save_model: bool,
        offline: bool = False,
    ) -> None:
        self.every, self.save_model = every, save_model
        self.last_upload: Path | None = None
        self.wandb = require('wandb', 'wandb', 'wandb_project')
        self.wandb.init(
            project=project,
            entity=entity,
            group=group,
            config=redact(config),
            save_code=False,
            **({'mode': 'offline'} if offline else {}),
        )

    def __call__(self, trainer: Trainer) -> None:
        values = {
            'epoch': trainer.loader.epoch(trainer.items),
            'loss': trainer.ema_stats.get('loss'),
            'lr': trainer.lr,
            'ema_decay': trainer.ema_decay,
            **values_of_parts(trainer),
        }
        self.wandb.log(flat(values), step=trainer.step)
        if self.save_model and trainer.last_checkpoint not in (None, self.last_upload):
            self.last_upload = trainer.last_checkpoint
            self.wandb.save(str(self.last_upload), base_path=str(self.last_upload.parent))

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Send the `values` of an evaluation at a `step`, under the original's names."""
        self.wandb.log(
            {key.upper() if key in ('fid', 'kid') else key: value for key, value in values.items()},
            step=step,
        )
