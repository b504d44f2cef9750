"""Assemble a training run: network, data, optimizer, loss and hooks as a Trainer."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import torch
from torch import nn

from ...config import Experiment
from ...config.conditioning import null_conditions
from ...config.load import Sections
from ...core.accelerators import peak_flops
from ...core.draws import NEWEST, Draws
from ...core.modules import n_params
from ...training import (
    GradientNoiseHook,
    NewLayersWarmup,
    RunFolder,
    Trainer,
    shard,
)
from ...training.batches import BatchSource
from .display import Display
from .distilling import Distillation, Distiller, open_teacher
from .held_out import make_held_out_loss
from .hooks import make_hooks, make_place_hook, make_snapshots
from .loading import make_loader, read_first_conditions
from .micro_batches import compile_network, count_item_flops, split_batch
from .network import choose_memory_format, count_parameters, make_network, project_after_steps
from .objective import Objective
from .python import as_function, make_optimizer, make_schedule
from .settings import TrainSettings


def assemble(
    settings: TrainSettings,
    experiment: Experiment,
    accelerator: Any,
    folder: RunFolder,
    state: dict[str, Any] | None,
    display: Display,
    end_step: int | None,
    seed: int,
) -> Trainer:
    """Return the trainer of a run, with no state loaded into it yet.

    Args:
        settings: The settings of the run.
        experiment: The config with its parts.
        accelerator: accelerate's Accelerator.
        folder: The folder of the run.
        state: The checkpoint that the run continues from; None for a new run.
        display: Where progress and notes go.
        end_step: The last optimizer step, if there is one.
        seed: The seed of weights, data order and noise.
    """
    teacher, new_parameters = _prepare_network(
        settings, experiment, accelerator, display, seed=seed, state=state
    )
    network, sections = experiment.network, experiment.sections
    batch_size, grad_accum_steps = split_batch(
        settings, sections, network, experiment.wrap, accelerator, display.say
    )
    settings = dataclasses.replace(
        settings, batch_size=batch_size, grad_accum_steps=grad_accum_steps
    )
    with accelerator.main_process_first():
        loader = make_loader(settings, experiment, accelerator, seed, folder, display)
    ema_model = copy.deepcopy(network).requires_grad_(False).eval()
    optimizer = make_optimizer(settings, experiment, network)
    lr_sched = make_schedule(settings, experiment, optimizer, end_step)
    project_after_steps(network, optimizer)
    parts = _warm_up_new_layers(settings, network, new_parameters, optimizer, state)
    flops = _count_work(settings, experiment, accelerator.device)
    snapshots = make_snapshots(settings, experiment, folder, ema_model, end_step)
    if settings.shard:
        averages = snapshots.averages if snapshots else []
        _shard_networks([network, ema_model, *averages], optimizer, accelerator)
    model = _prepare_model(settings, experiment, accelerator, display, batch_size)
    optimizer = accelerator.prepare_optimizer(optimizer)
    conditions = experiment.conditions(accelerator.device)
    draws = Draws(seed, NEWEST if state is None else state.get('draws') or 1)
    null = null_conditions(sections.dataset.num_classes, conditions)
    distillation = Distillation(experiment, teacher, conditions, null, draws, end_step)
    loss: Any = _choose_loss(settings, distillation, model, folder, accelerator, display)
    source: BatchSource = loader
    if settings.objective is not None:
        source, loss = settings.objective.prepare(
            experiment, model, accelerator, batch_size, grad_accum_steps, draws
        )
        parts['objective'] = source
    first = read_first_conditions(conditions, loader.dataset, settings.sample_n, draws)
    average, main = experiment.wrap(ema_model), accelerator.is_main_process
    hooks = make_hooks(settings, experiment, folder, display, average, main, first, null, flops)
    measuring = _make_measuring_hooks(
        settings, experiment, model, average, accelerator, folder, display
    )
    if snapshots:
        measuring['posthoc'] = snapshots
    return Trainer(
        accelerator,
        model,
        loss,
        optimizer,
        lr_sched,
        sections.ema_sched.make(),
        ema_model,
        source,
        [make_place_hook(settings, folder, snapshots), *measuring.values(), *hooks],
        end_step=end_step,
        grad_accum_steps=settings.grad_accum_steps,
        clip_norm=sections.training.grad_clip,
        seed=seed,
        parts={**parts, **measuring},
        stop=as_function(settings.stop),
    )


def _prepare_network(
    settings: TrainSettings,
    experiment: Experiment,
    accelerator: Any,
    display: Display,
    *,
    seed: int,
    state: dict[str, Any] | None,
) -> tuple[nn.Module | None, list[str]]:
    """Make the network and report its size; return the teacher, if any, and added parameters."""
    teacher = open_teacher(
        experiment,
        state,
        copy.deepcopy(settings.network),
        accelerator.device,
        settings.allow_code,
    )
    new_parameters = make_network(
        settings, experiment, seed, accelerator.device, fresh=state is None, teacher=teacher
    )
    network = experiment.network
    new = f', {count_parameters(network, new_parameters):,} of them new' if new_parameters else ''
    display.say(f'{n_params(network):,} parameters{new}')
    return teacher, new_parameters


def _warm_up_new_layers(
    settings: TrainSettings,
    network: nn.Module,
    new_parameters: list[str],
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any] | None,
) -> dict[str, Any]:
    """Attach the warm-up of the parameters that growing added; return it as part of the run."""
    if not settings.grow_warmup and not (state or {}).get('growing'):
        return {}
    growing = NewLayersWarmup(network, new_parameters, settings.grow_warmup)
    growing.attach(optimizer)
    return {'growing': growing}


def _prepare_model(
    settings: TrainSettings,
    experiment: Experiment,
    accelerator: Any,
    display: Display,
    batch_size: int,
) -> nn.Module:
    """Return the network as training calls it: compiled where asked, prepared by accelerate."""
    network = experiment.network
    if settings.compile:
        network = compile_network(
            network, experiment.sections, experiment.wrap, batch_size, accelerator, display.say
        )
    # A sharded network exchanges its pieces itself: it must not be wrapped in
    # DistributedDataParallel.
    model: nn.Module = accelerator.prepare_model(network, evaluation_mode=settings.shard)
    return model


def _choose_loss(
    settings: TrainSettings,
    distillation: Distillation,
    model: nn.Module,
    folder: RunFolder,
    accelerator: Any,
    display: Display,
) -> Objective | Distiller:
    """Return the loss of a batch as a callable: of a denoiser, or of a distillation."""
    experiment = distillation.experiment
    sections = experiment.sections
    objective = Objective(
        experiment.wrap(model),
        experiment.density,
        distillation.draws,
        num_classes=sections.dataset.num_classes,
        cond_dropout_rate=sections.dataset.cond_dropout_rate,
        memory_format=choose_memory_format(sections),
        conditions=distillation.conditions,
        compute=settings.loss,
    )
    if sections.distillation.method is None:
        _check_contrast(settings, sections)
        return objective
    with accelerator.main_process_first():
        return distillation.make_loss(
            model,
            objective,
            folder.path,
            accelerator.device,
            display.say,
        )


def _check_contrast(settings: TrainSettings, sections: Sections) -> None:
    """Raise a ValueError if the contrast has no other item in a forward pass."""
    if sections.model.loss_contrast and settings.batch_size == 1 and settings.loss is None:
        raise ValueError(
            'batch_size (micro_batch where it is given) must be at least 2 with '
            f'model.loss_contrast {sections.model.loss_contrast:g}, which compares items of one '
            'forward pass; got 1: enlarge it, or set loss_contrast to 0'
        )


def _make_measuring_hooks(
    settings: TrainSettings,
    experiment: Experiment,
    model: nn.Module,
    average: nn.Module,
    accelerator: Any,
    folder: RunFolder,
    display: Display,
) -> dict[str, Any]:
    """Return the hooks that measure a run and keep a state, by their keys in a checkpoint."""
    hooks: dict[str, Any] = {}
    if settings.gns:
        hooks['gns_stats'] = GradientNoiseHook(model, settings.grad_accum_steps)
    held_out = make_held_out_loss(
        settings,
        experiment,
        average,
        accelerator,
        cache_dir=folder.path / 'cache',
        memory_format=choose_memory_format(experiment.sections),
        say=display.say,
    )
    if held_out is not None:
        hooks['held_out'] = held_out
    return hooks


def _shard_networks(
    networks: list[nn.Module], optimizer: torch.optim.Optimizer, accelerator: Any
) -> None:
    """Spread networks and optimizer over the processes."""
    if accelerator.num_processes == 1:
        raise ValueError(
            'shard must be left out with one process, since it divides the network between '
            'processes; launch more, or leave it out'
        )
    shard(networks, optimizer, accelerator.device)


def _count_work(
    settings: TrainSettings, experiment: Experiment, device: torch.device
) -> tuple[float | None, float | None]:
    """Return the operations of a training item and the peak per second, if both are known."""
    peak = settings.peak_flops or peak_flops(device, settings.mixed_precision)
    if peak is None:
        return None, None
    own, denoiser = settings.network is not None, experiment.denoiser
    return count_item_flops(denoiser, experiment.sections, device, own), peak
