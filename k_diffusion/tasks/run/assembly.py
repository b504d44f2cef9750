"""The parts of a training run put together: network, data, optimizer, loss and hooks as a
Trainer.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import os
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ...augmentation import BatchedAugmentation
from ...config import Experiment, read_weights
from ...config.build import build_network
from ...config.conditioning import null_conditions
from ...config.growing import inherit_weights
from ...config.latents import pictures_of
from ...config.load import Sections
from ...core.accelerators import peak_flops
from ...core.draws import NEWEST, Draws
from ...core.images import from_bytes
from ...core.machine import memory_bytes
from ...core.modules import n_params
from ...core.random import derive_seed
from ...data import (
    Dataset,
    Loader,
    PythonData,
    RowStream,
    StreamData,
    StreamLoader,
    read_items,
)
from ...training import (
    CheckpointHook,
    GradientNoiseHook,
    Hook,
    LogHook,
    NewLayersWarmup,
    RunFolder,
    SnapshotHook,
    Trainer,
    load_weights,
    shard,
)
from ...training.batches import BatchSource
from ...training.hooks import PlaceHook
from .demo_grid import DemoHook, SkippedNotice
from .display import Display
from .distilling import Distillation, Distiller, add_missing_inputs, open_teacher
from .evaluation_hook import EvaluationHook
from .held_out import items_to_train_on, make_held_out_loss
from .micro_batches import compiled, count_item_flops, portions
from .objective import Objective
from .python import as_function, as_hook, make_optimizer, make_schedule
from .report import ReportHook
from .settings import TrainSettings
from .trackers import TensorboardHook, WandbHook

LOG_EVERY = 10


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
    """Return the trainer of a run that goes on from `state`, with nothing loaded into it yet."""
    teacher = open_teacher(
        experiment,
        state,
        copy.deepcopy(settings.network),
        accelerator.device,
        settings.allow_code,
    )
    new = _make_network(
        settings, experiment, seed, accelerator.device, fresh=state is None, teacher=teacher
    )
    network = experiment.network
    display.say(
        f'{n_params(network):,} parameters'
        + (f', {_count(network, new):,} of them new' if new else '')
    )
    sections = experiment.sections
    batch_size, grad_accum_steps = portions(
        settings, sections, network, experiment.wrap, accelerator, display.say
    )
    settings = dataclasses.replace(
        settings, batch_size=batch_size, grad_accum_steps=grad_accum_steps
    )
    with accelerator.main_process_first():
        loader = _make_loader(settings, experiment, accelerator, seed, folder, display)
    ema_model = copy.deepcopy(network).requires_grad_(False).eval()
    optimizer = make_optimizer(settings, experiment, network)
    lr_sched = make_schedule(settings, experiment, optimizer, end_step)
    _keep_projected(network, optimizer)
    flops = _count_work(settings, experiment, accelerator.device)
    parts: dict[str, Any] = {}
    if settings.grow_warmup or (state or {}).get('growing'):
        parts['growing'] = NewLayersWarmup(network, new, settings.grow_warmup)
        parts['growing'].attach(optimizer)
    snapshots = _make_snapshots(settings, experiment, folder, ema_model, end_step)
    if settings.shard:
        averages = snapshots.averages if snapshots else []
        _cut([network, ema_model, *averages], optimizer, accelerator)
    fast = network
    if settings.compile:
        fast = compiled(network, sections, experiment.wrap, batch_size, accelerator, display.say)
    # (Pieces are exchanged by the network itself: it must not be wrapped in
    # DistributedDataParallel.)
    model = accelerator.prepare_model(fast, evaluation_mode=settings.shard)
    optimizer = accelerator.prepare_optimizer(optimizer)
    conditions = experiment.conditions(accelerator.device)
    draws = Draws(seed, NEWEST if state is None else state.get('draws') or 1)
    null = null_conditions(sections.dataset.num_classes, conditions)
    distillation = Distillation(experiment, teacher, conditions, null, draws, end_step)
    loss: Any = _choose_loss(settings, distillation, model, loader, folder, accelerator, display)
    source: BatchSource = loader
    if settings.objective is not None:
        source, loss = settings.objective.prepare(
            experiment, model, accelerator, batch_size, grad_accum_steps, draws
        )
        parts['objective'] = source
    shown = _first_conditions(conditions, loader.dataset, settings.sample_n, draws)
    hooks = _make_hooks(
        settings,
        experiment,
        folder,
        display,
        experiment.wrap(ema_model),
        accelerator.is_main_process,
        shown,
        null,
        flops,
    )
    watching = _make_watching(
        settings, experiment, model, experiment.wrap(ema_model), accelerator, folder, display
    )
    if snapshots:
        watching['posthoc'] = snapshots
    return Trainer(
        accelerator,
        model,
        loss,
        optimizer,
        lr_sched,
        sections.ema_sched.make(),
        ema_model,
        source,
        [_watch_place(settings, folder, snapshots), *watching.values(), *hooks],
        end_step=end_step,
        grad_accum_steps=settings.grad_accum_steps,
        clip_norm=sections.training.grad_clip,
        seed=seed,
        parts={**parts, **watching},
        stop=as_function(settings.stop),
    )


def _choose_loss(
    settings: TrainSettings,
    distillation: Distillation,
    model: nn.Module,
    loader: Loader | StreamLoader,
    folder: RunFolder,
    accelerator: Any,
    display: Display,
) -> Objective | Distiller:
    """Return the loss as a function of a batch: that of a denoiser, or of a distillation."""
    experiment = distillation.experiment
    sections = experiment.sections
    objective = Objective(
        experiment.wrap(model),
        experiment.density,
        distillation.draws,
        num_classes=sections.dataset.num_classes,
        cond_dropout_rate=sections.dataset.cond_dropout_rate,
        memory_format=_memory_format(sections),
        conditions=distillation.conditions,
        compute=settings.loss,
    )
    if sections.distillation.method is None:
        return objective
    with accelerator.main_process_first():
        return distillation.make_loss(
            model,
            objective,
            loader.items_per_step,
            folder.path,
            accelerator.device,
            display.say,
        )


def _make_watching(
    settings: TrainSettings,
    experiment: Experiment,
    model: nn.Module,
    average: nn.Module,
    accelerator: Any,
    folder: RunFolder,
    display: Display,
) -> dict[str, Any]:
    """Return the hooks that measure a run and have a state, by their keys in a checkpoint."""
    watching: dict[str, Any] = {}
    if settings.gns:
        watching['gns_stats'] = GradientNoiseHook(model, settings.grad_accum_steps)
    held_out = make_held_out_loss(
        settings,
        experiment,
        average,
        accelerator,
        cache_dir=folder.path / 'cache',
        memory_format=_memory_format(experiment.sections),
        say=display.say,
    )
    if held_out is not None:
        watching['held_out'] = held_out
    return watching


def _cut(networks: list[nn.Module], optimizer: torch.optim.Optimizer, accelerator: Any) -> None:
    if accelerator.num_processes == 1:
        raise ValueError(
            'shard must be left out with one process, since it cuts the network over '
            'several; launch more, or leave it out'
        )
    shard(networks, optimizer, accelerator.device)


def _count_work(
    settings: TrainSettings, experiment: Experiment, device: torch.device
) -> tuple[float | None, float | None]:
    """Return the operations of a training item and the peak per second of a device, if known."""
    peak = settings.peak_flops or peak_flops(device, settings.mixed_precision)
    if peak is None:
        return None, None
    own, denoiser = settings.network is not None, experiment.denoiser
    return count_item_flops(denoiser, experiment.sections, device, own), peak


def _watch_place(
    settings: TrainSettings, folder: RunFolder, snapshots: SnapshotHook | None
) -> PlaceHook:
    written = (
        settings.demo_every,
        settings.evaluate_every,
        snapshots.snapshot_every if snapshots else 0,
    )
    return PlaceHook(folder, math.gcd(LOG_EVERY, *written))


def _make_snapshots(
    settings: TrainSettings,
    experiment: Experiment,
    folder: RunFolder,
    ema_model: nn.Module,
    end_step: int | None,
) -> SnapshotHook | None:
    training, wanted = experiment.sections.training, settings.ema_snapshots
    wanted = training.ema_snapshots if wanted is None else wanted
    if not wanted:
        return None
    every = settings.save_every if end_step is None else max(1, -(-end_step // wanted))
    return SnapshotHook(
        ema_model, folder.path, folder.name, every, experiment.as_dict(), training.ema_widths
    )


def _make_network(
    settings: TrainSettings,
    experiment: Experiment,
    seed: int,
    device: torch.device,
    fresh: bool,
    teacher: nn.Module | None = None,
) -> list[str]:
    """Make the network as it starts: drawn from the seed, an inference file's, grown, the
    teacher's, or given.

    A run that goes on has its weights in its checkpoint, so that what it was grown from may be gone
    by then.

    Returns:
        The names of the parameters that growing added.
    """
    new: list[str] = []
    sections = experiment.sections
    if settings.network is None:
        _check_memory(sections, device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, 'weights'))
        network = experiment.network
        if settings.grow and fresh:
            new = inherit_weights(network, settings.grow, settings.grow_config, settings.verify)
        elif teacher is not None and fresh:
            weights = cast(nn.Module, teacher.inner_model).state_dict()
            section = experiment.sections.distillation
            load_weights(network, add_missing_inputs(network, weights), section.teacher)
    if settings.resume_inference:
        weights, _ = read_weights(settings.resume_inference, verify=settings.verify)
        load_weights(network, weights, settings.resume_inference)
    network.to(device, memory_format=_memory_format(sections))  # type: ignore[call-overload]
    return new


def _check_memory(sections: Sections, device: torch.device) -> None:
    """Refuse a network whose weights, gradients, moments and average alone are more than the
    device holds.
    """
    with torch.device('meta'):
        parameters = n_params(build_network(sections))
    needed, there = 5 * 4 * parameters, memory_bytes(device)
    if there is not None and needed > there:
        raise ValueError(
            f'the model has {parameters:,} parameters; training it takes {needed / 2**30:,.0f} GiB '
            f'before any activation, and {device.type} has {there / 2**30:,.0f}: make it smaller '
            '(k-diffusion info says what a config costs)'
        )


def _keep_projected(network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Have a network that holds its weights to a constraint (`proj_`) do so after each step."""
    project = getattr(getattr(network, 'inner_model', network), 'proj_', None)
    if project is not None:
        optimizer.register_step_post_hook(lambda *_: project())


def _count(network: nn.Module, names: list[str]) -> int:
    parameters = dict(network.named_parameters())
    return sum(parameters[name].numel() for name in names)


def _memory_format(sections: Sections) -> torch.memory_format:
    convolutional = sections.model.type.startswith('image_v') and sections.model.dims == 2
    last = sections.training.channels_last and convolutional
    return torch.channels_last if last else torch.contiguous_format


def _make_loader(
    settings: TrainSettings,
    experiment: Experiment,
    accelerator: Any,
    seed: int,
    folder: RunFolder,
    display: Display,
) -> Loader | StreamLoader:
    dataset = experiment.dataset(
        accelerator.device, folder.path / 'cache', settings.allow_code, display.decoding
    )
    sections = experiment.sections
    batch_size = settings.batch_size or sections.training.batch_size
    kept = items_to_train_on(settings, experiment, dataset)
    if isinstance(dataset, StreamData):
        return StreamLoader(
            dataset,
            batch_size,
            accelerator.process_index,
            accelerator.num_processes,
            settings.grad_accum_steps,
            accelerator.device,
        )
    many = 'a stream of' if isinstance(dataset, RowStream) else f'{len(dataset):,}'
    display.say(
        f'{many} {"items" if isinstance(dataset, PythonData) else "images"}'
        + _describe_classes(dataset.class_names, sections.dataset.num_classes)
    )
    for note in dataset.notes:
        display.say(f'note: {note}')
    probability = sections.model.augment_prob
    augmented = BatchedAugmentation(probability) if probability else None
    workers = min(settings.num_workers, os.cpu_count() or 1)
    return Loader(
        dataset,
        batch_size,
        seed=seed,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        grad_accum_steps=settings.grad_accum_steps,
        augmentation=augmented,
        num_workers=workers,
        start_method=settings.start_method,
        device=accelerator.device,
        worker_timeout=settings.worker_timeout or None,
        kept=kept,
    )


def _describe_classes(names: list[str], known: int) -> str:
    """Return the classes of a data set in words, and whether the model is told of them."""
    if not names:
        return ''
    listed = ', '.join(f'{i} {name}' for i, name in enumerate(names[:10]))
    numbers = names == [str(i) for i in range(len(names))]
    shown = '' if numbers else f': {listed}' + (', ...' if len(names) > 10 else '')
    unused = ' (unused: dataset.num_classes is 0)' if not known else ''
    never = ''
    if known > len(names):
        never = f' (the model is told of {known}, so some are never seen)'
    return f' in {len(names)} classes{shown}{unused}{never}'


def _first_conditions(conditions: Any, dataset: Dataset, n: int, draws: Draws) -> dict[str, Tensor]:
    """Return the conditions of the first n items, for demo grids; classes are left to these."""
    indices = [i % len(dataset) for i in range(n)]
    if conditions or not isinstance(dataset, PythonData):
        return _prepared_conditions(conditions, dataset, indices, draws) if conditions else {}
    items = dataset.read(indices, [derive_seed(draws.seed, 'demo', i) for i in range(n)])
    kept = ('image', 'class_cond') if dataset.num_classes else ('image',)
    return {
        key: value for key, value in items.items() if key not in kept and isinstance(value, Tensor)
    }


def _prepared_conditions(
    conditions: Any, dataset: Dataset, indices: list[int], draws: Draws
) -> dict[str, Tensor]:
    images, labels, index, _, texts = read_items(dataset, indices)
    batch = {
        'image': from_bytes(images) if images.dtype == torch.uint8 else images,
        'index': index,
        'item': torch.arange(len(indices)),
        'class_cond': labels,
        'text': texts,
    }
    tensors: dict[str, Tensor] = {}
    for _, condition in conditions:
        tensors.update(condition.prepare(batch, draws))
    return tensors


def _make_hooks(
    settings: TrainSettings,
    experiment: Experiment,
    folder: RunFolder,
    display: Display,
    denoiser: nn.Module,
    main: bool,
    shown: dict[str, Tensor],
    null: dict[str, Any],
    flops: tuple[float | None, float | None],
) -> list[Hook]:
    name, config, dataset = settings.name, experiment.as_dict(), experiment.dataset()
    hooks: list[Hook] = [
        LogHook(folder.path / f'{name}_log.jsonl', LOG_EVERY, display, *flops),
        SkippedNotice(LOG_EVERY, dataset.skipped, folder.path / f'{name}_skipped.txt', display.say),
    ]
    hooks += [as_hook(hook) for hook in settings.hooks]
    hooks.append(CheckpointHook(folder, settings.save_every))
    listeners = []
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
                conditions=shown,
                null=null,
            )
        )
    measured = not isinstance(dataset, PythonData) or not experiment.sections.dataset.pictures
    if settings.evaluate_n and measured:
        _add_evaluation(
            hooks, settings, experiment, folder.path, denoiser, batch, display, shown, listeners
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


def _add_evaluation(
    hooks: list[Hook],
    settings: TrainSettings,
    experiment: Experiment,
    folder: Path,
    denoiser: nn.Module,
    batch: int,
    display: Display,
    shown: dict[str, Tensor],
    listeners: list[Any],
) -> None:
    if shown:
        display.say(
            'evaluation is left out: it compares pictures drawn by class, and this model is '
            'told more'
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
    """Return the noise levels between which the log tells the loss."""
    quantiles = torch.linspace(0, 1, bins + 1, dtype=torch.float64).clamp(1e-6, 1 - 1e-6)
    return [float(sigma) for sigma in experiment.density.quantile(quantiles)]
