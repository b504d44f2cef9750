"""Make the hooks of a training run from its settings."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...config import Experiment
from ...config.latents import pictures_of
from ...data import PythonData
from ...training import CheckpointHook, Hook, LogHook, RunFolder, SnapshotHook
from ...training.hooks import PlaceHook
from .demo_grid import DemoHook, SkippedNotice
from .display import Display
from .evaluation_hook import EvaluationHook
from .python import as_hook
from .report import ReportHook
from .settings import TrainSettings
from .trackers import TensorboardHook, WandbHook

LOG_EVERY = 10


def make_place_hook(
    settings: TrainSettings, folder: RunFolder, snapshots: SnapshotHook | None
) -> PlaceHook:
    """Return the hook that checks, before anything is written, that the folder is in place.

    Args:
        settings: The settings of the run.
        folder: The folder of the run.
        snapshots: The hook that writes snapshots, or None.
    """
    intervals = (
        settings.demo_every,
        settings.evaluate_every,
        snapshots.snapshot_every if snapshots else 0,
    )
    return PlaceHook(folder, math.gcd(LOG_EVERY, *intervals))


def make_snapshots(
    settings: TrainSettings,
    experiment: Experiment,
    folder: RunFolder,
    ema_model: nn.Module,
    end_step: int | None,
) -> SnapshotHook | None:
    """Return the hook that writes the snapshots of `k-diffusion ema`; None if there are none.

    Args:
        settings: The settings of the run.
        experiment: The config with its parts.
        folder: The folder of the run.
        ema_model: The network with the averaged weights.
        end_step: The last optimizer step, if there is one.
    """
    training, count = experiment.sections.training, settings.ema_snapshots
    count = training.ema_snapshots if count is None else count
    if not count:
        return None
    every = settings.save_every if end_step is None else max(1, -(-end_step // count))
    return SnapshotHook(
        ema_model, folder.path, folder.name, every, experiment.as_dict(), training.ema_widths
    )


def make_hooks(
    settings: TrainSettings,
    experiment: Experiment,
    folder: RunFolder,
    display: Display,
    denoiser: nn.Module,
    main: bool,
    conditions: dict[str, Tensor],
    null: dict[str, Any],
    flops: tuple[float | None, float | None],
) -> list[Hook]:
    """Return the hooks of a run that log, save, draw and evaluate, in the order they are called.

    Args:
        settings: The settings of the run.
        experiment: The config with its parts.
        folder: The folder of the run.
        display: Where progress and notes go.
        denoiser: The denoiser with the averaged weights.
        main: Whether this is the main process.
        conditions: The conditions of the samples of demo grids, by name.
        null: The conditions of an unconditional call, by name.
        flops: The operations of a training item and the peak per second of the device.
    """
    name, config, dataset = settings.name, experiment.as_dict(), experiment.dataset()
    hooks: list[Hook] = [
        LogHook(folder.path / f'{name}_log.jsonl', LOG_EVERY, display, *flops),
        SkippedNotice(LOG_EVERY, dataset.skipped, folder.path / f'{name}_skipped.txt', display.say),
    ]
    hooks += [as_hook(hook) for hook in settings.hooks]
    hooks.append(CheckpointHook(folder, settings.save_every))
    trackers, listeners = _make_trackers(settings, config, folder, main)
    hooks += trackers
    batch = settings.batch_size or experiment.sections.training.batch_size
    if settings.demo_every:
        hooks.append(
            DemoHook(
                settings.demo_every,
                folder.path,
                name,
                denoiser,
                experiment,
                settings.sample_n,
                batch,
                display.say,
                conditions=conditions,
                null=null,
            )
        )
    has_pictures = not isinstance(dataset, PythonData) or not experiment.sections.dataset.pictures
    if settings.evaluate_n and has_pictures:
        _add_evaluation(
            hooks,
            settings,
            experiment,
            folder.path,
            denoiser,
            batch,
            display,
            conditions,
            listeners,
        )
    if settings.report:
        hooks.append(
            ReportHook(
                settings.demo_every or settings.save_every,
                folder.path,
                name,
                config,
                _noise_edges(experiment),
            )
        )
    return hooks


def _make_trackers(
    settings: TrainSettings, config: dict[str, Any], folder: RunFolder, main: bool
) -> tuple[list[Hook], list[Any]]:
    """Return the hooks that send the log to trackers, and functions that take evaluations."""
    hooks: list[Hook] = []
    listeners: list[Any] = []
    if settings.wandb_project and main:
        wandb = WandbHook(
            settings.wandb_project,
            settings.wandb_entity,
            settings.wandb_group,
            config,
            LOG_EVERY,
            settings.wandb_save_model,
            settings.wandb_offline,
        )
        hooks.append(wandb)
        listeners.append(wandb.metrics)
    if settings.tensorboard:
        hooks.append(TensorboardHook(folder.path, LOG_EVERY))
    return hooks, listeners


def _add_evaluation(
    hooks: list[Hook],
    settings: TrainSettings,
    experiment: Experiment,
    folder: Path,
    denoiser: nn.Module,
    batch: int,
    display: Display,
    conditions: dict[str, Tensor],
    listeners: list[Any],
) -> None:
    if conditions:
        display.say(
            'evaluation is disabled: it compares pictures sampled by class, and this model has '
            'other conditions'
        )
        return
    hooks.append(
        EvaluationHook(
            settings.evaluate_every,
            folder,
            settings.name,
            denoiser,
            experiment,
            settings.evaluate_n,
            batch,
            display.say,
            pictures_of(experiment.dataset()),
            settings.extractor,
            settings.evaluate_against,
            settings.allow_code,
            listeners,
        )
    )


def _noise_edges(experiment: Experiment, bins: int = 8) -> list[float]:
    """Return the noise levels between which the log averages the loss."""
    quantiles = torch.linspace(0, 1, bins + 1, dtype=torch.float64).clamp(1e-6, 1 - 1e-6)
    return [float(sigma) for sigma in experiment.density.quantile(quantiles)]
