"""Hooks of a run: checkpoints, its folder, and gradient statistics (the log is in logs.py)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from ..gns import DDPGradientStatsHook, GradientNoiseScale, SplitGradientStats
from .checkpoints.folder import RunFolder
from .checkpoints.shards import has_pieces, save_shards
from .trainer import Trainer


class CheckpointHook:
    """Saves the run, and raises Diverged if its losses or weights are not finite.

    Args:
        folder: The folder of the run.
        every: Steps between checkpoints.
    """

    at_end = rescue = True

    def __init__(self, folder: RunFolder, every: int = 10_000) -> None:
        self.folder = folder
        self.every = every

    def __call__(self, trainer: Trainer) -> None:
        trainer.check_finite()
        state = trainer.state_dict()
        accelerator = trainer.accelerator
        if has_pieces(state['model']):
            trainer.last_checkpoint = save_shards(
                self.folder,
                state,
                trainer.ema_stats,
                accelerator.process_index,
                accelerator.num_processes,
            )
            return
        if accelerator.is_main_process:
            self.folder.save(state, trainer.ema_stats)
        trainer.last_checkpoint = self.folder.checkpoint_path(trainer.step)

    def go_back(self, trainer: Trainer) -> Path | None:
        """Make the last checkpoint with a sane loss the latest, and return it; None without one.

        Args:
            trainer: The trainer.
        """
        try:
            path = self.folder.last_sane(trainer.step)
        except LookupError:
            return trainer.last_checkpoint
        if path is not None and trainer.accelerator.is_main_process:
            self.folder.point_to(path)
        return path


class PlaceHook:
    """Ends the run if its folder was moved or deleted.

    It runs before the hooks that write there, and as often.

    Args:
        folder: The folder of the run.
        every: Steps between checks.
    """

    at_end = True

    def __init__(self, folder: RunFolder, every: int) -> None:
        self.folder = folder
        self.every = every

    def __call__(self, trainer: Trainer) -> None:
        self.folder.check_place()


class GradientNoiseHook:
    """Tracks the gradient noise scale, and synchronises with the device at each step.

    For a DistributedDataParallel model it compares the gradients of the processes, otherwise those
    of the micro-batches of a step. It is a part of the Trainer under 'gns_stats'. Under fp16 both
    norms contain the loss scale, which cancels in their ratio.

    Args:
        model: The network.
        grad_accum_steps: Micro-batches per optimizer step.

    References:
        McCandlish et al. (2018), arXiv:1812.06162.
    """

    every = 1

    def __init__(self, model: torch.nn.Module, grad_accum_steps: int = 1) -> None:
        over_processes = hasattr(model, 'register_comm_hook')
        self.gradients = (
            DDPGradientStatsHook(model)
            if over_processes
            else SplitGradientStats(model, grad_accum_steps)
        )
        self.parts = None if over_processes else grad_accum_steps
        self.noise_scale = GradientNoiseScale()

    def __call__(self, trainer: Trainer) -> None:
        small, large = self.gradients.get_stats()
        if math.isfinite(small) and math.isfinite(large):
            n_large = trainer.loader.items_per_step
            self.noise_scale.update(
                small, large, n_large // (self.parts or trainer.accelerator.num_processes), n_large
            )

    def logged(self, step: int) -> dict[str, float | None]:
        """Return the gradient noise scale for the log.

        Args:
            step: The step.
        """
        value = self.noise_scale.get_gns()
        return {'gns': value if math.isfinite(value) else None}

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the averages."""
        return self.noise_scale.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a state.

        Args:
            state_dict: The result of state_dict.
        """
        self.noise_scale.load_state_dict(state_dict)
