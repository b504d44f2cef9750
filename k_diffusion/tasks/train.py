"""A training run put together: networks, data, loss, hooks, and the folder it lives in."""
from __future__ import annotations

import copy
import dataclasses
import os
import sys
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..augmentation import BatchedAugmentation
from ..config import grow_model, load_config, make_denoiser_wrapper, make_model, read_weights, sections_of
from ..config.changes import Change
from ..config.load import Sections
from ..core.devices import choose_device
from ..core.extras import require
from ..core.files import write_json
from ..core.machine import memory_bytes
from ..core.memory import keep_freed_memory
from ..core.modules import checkpointing, n_params
from ..core.names import escape_name
from ..core.random import derive_seed
from ..data import Dataset, Loader, open_dataset
from ..training import (
    CheckpointHook,
    GradientNoiseHook,
    Hook,
    LogHook,
    NewLayersWarmup,
    Retention,
    RunFolder,
    SnapshotHook,
    Trainer,
    load_weights,
    run_lock,
    shard,
)
from ..training.heartbeat import heartbeat
from .conditioning import conditions_of, first_of, null_conditions
from .encoding import encoded, encoder_of, picture_frame, pictures_of
from .launch import warn_of_one_process
from .run.demo_grid import DemoHook, SkippedNotice, WandbHook
from .run.display import Display
from .run.evaluation_hook import EvaluationHook
from .run.micro_batches import compiled, portions
from .run.objective import make_loss
from .run.peers import told_of_peers
from .run.plan import plan
from .run.report import ReportHook
from .run.resuming import accepted_changes, changed_data, facts_of, overrides_of, resume_from, tell_changes
from .run.settings import Run, RunSettings
from .run.trackers import TensorboardHook

LOG_EVERY = 10


def train(settings: RunSettings) -> Run:
    """Trains, or goes on training, the model of a config; the whole run lives in one folder. Returns what became of it."""
    config = load_config(settings.config, strict=True)
    sections = sections_of(config)
    end_step = settings.end_step or sections.training.end_step
    _refuse(sections)
    asked, settings = settings, _split_for_noise_scale(settings, sections.training.batch_size)
    accelerator = _accelerator(settings, find_unused=getattr(sections.model, 'skip_stages', 0) > 0)
    if accelerator.device.type == 'cpu':
        keep_freed_memory()
    main = accelerator.is_main_process
    if not main:
        warnings.simplefilter('ignore')
    extra: dict[str, Any] = {'config': config}
    folder = RunFolder(Path(settings.run_dir or Path('runs') / settings.name), settings.name, extra,
                       Retention(settings.keep_last, settings.keep_best))
    lock = run_lock(folder.path, folder.name) if main else nullcontext()
    with Display(settings.name, main) as display, lock, folder.held() if main else nullcontext():
        if main:
            folder.sweep()
        path, state = resume_from(settings.resume, folder, accelerator, settings.verify)
        display.say(f'{settings.name}: {accelerator.num_processes} process{"es" * (accelerator.num_processes > 1)} on '
                    f'{accelerator.device.type}, folder {folder.path}')
        over = bool(state and end_step and state['step'] >= end_step and not state.get('owed'))
        if path and state and end_step and over and not settings.evaluate_only:
            display.say(f'{settings.name} is done: it has reached step {state["step"]:,} of {end_step:,} (--end-step goes further)')
            accelerator.end_training()
            return Run(settings.name, folder.path, path, state['step'], 'already done', None, accelerator.num_processes)
        seed = settings.seed if settings.seed is not None else (state or {}).get('seed', 0)
        extra['overrides'] = overrides_of(asked, accelerator.num_processes, seed)
        changes = accepted_changes(state, config, extra['overrides'], path, settings.reset_optimizer) if state else []
        trainer = _assemble(settings, config, sections_of(config), accelerator, folder, state, display, end_step, seed)
        extra['data'] = facts_of(pictures_of(cast(Loader, trainer.loader).dataset), encoder_of(config))
        if state:
            _go_on(settings, trainer, state, path, changes, extra['data'], display)
        del state
        if settings.dry_run:
            return _planned(settings, trainer, folder, path, display)
        if main:
            if path and path.parent == folder.path:
                folder.rotate(trainer.step)     # first of all, since the disk may be full
            write_json(folder.path / f'{settings.name}_config.json', config)
        alive = heartbeat(accelerator.process_index, accelerator.num_processes)
        with checkpointing(settings.checkpointing), told_of_peers(trainer), alive:
            status = _evaluated(trainer) if settings.evaluate_only else trainer.run()
        accelerator.wait_for_everyone()
    return _closed(settings, trainer, folder, status, accelerator)


def _go_on(settings: RunSettings, trainer: Trainer, state: dict[str, Any], path: Path | None, changes: list[Change],
           data: dict[str, Any], display: Display) -> None:
    """Loads a checkpoint into the trainer and tells in one note what is another than when it was saved."""
    notes = [*map(str, changes), *changed_data(state.get('data'), data, path)]
    if 'posthoc' in trainer.parts and not state.get('posthoc'):
        raise ValueError(f'{path} has no averages for snapshots, which are of the whole run; leave them out (--ema-snapshots 0), '
                         'or begin a new run (another --name)')
    trainer.load_state_dict(state, path, settings.reset_ema, settings.reset_optimizer)
    display.say(f'goes on from {path}, step {trainer.step:,}')
    tell_changes(notes, settings.reset_optimizer, display.say)


def _planned(settings: RunSettings, trainer: Trainer, folder: RunFolder, path: Path | None, display: Display) -> Run:
    """What a dry run has to say."""
    for name, text in plan(settings, trainer, folder, path).items():
        display.say(f'  {name:<13} {text}')
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()
    return Run(settings.name, folder.path, path or folder.checkpoint_path(0), 0, 'dry run', None, trainer.accelerator.num_processes)


def _refuse(sections: Sections) -> None:
    """Configs that can be loaded, since the original took them, but would not be trained as they say."""
    model = sections.model
    if model.augment_prob and model.type in ('image_v1', 'image_v2') and not model.augment_wrapper:
        raise ValueError(f'model.augment_prob is {model.augment_prob} and model.augment_wrapper is false, so that the network would learn '
                         'augmented pictures as real ones; set augment_wrapper to true or augment_prob to 0')
    if (model.has_variance or model.loss_config == 'simple') and (model.loss_weighting != 'karras' or model.loss_scales != 1):
        raise ValueError('model.loss_weighting and model.loss_scales have no effect with has_variance or the simple loss; leave them out')


def _split_for_noise_scale(settings: RunSettings, usual: int) -> RunSettings:
    """With --gns in one process each batch is taken in two halves, whose gradients are compared with the whole's."""
    if not settings.gns or settings.grad_accum_steps > 1 or int(os.environ.get('WORLD_SIZE', 1)) > 1:
        return settings
    batch_size = settings.batch_size or usual
    if batch_size % 2:
        raise ValueError(f'--gns in one process takes the batch in two halves, and the batch size is {batch_size}; make it even')
    return dataclasses.replace(settings, batch_size=batch_size // 2, grad_accum_steps=2)


def _accelerator(settings: RunSettings, find_unused: bool) -> Any:
    accelerate = require('accelerate', 'train', 'training')
    require('PIL', 'train', 'training')
    device = choose_device(settings.device)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    # Told that it is to use the CPU, or accelerate starts no process group there.
    accelerator = accelerate.Accelerator(
        mixed_precision=settings.mixed_precision, cpu=device.type == 'cpu',
        kwargs_handlers=[accelerate.DistributedDataParallelKwargs(find_unused_parameters=find_unused)])
    warn_of_one_process()
    launched = int(os.environ.get('WORLD_SIZE', 1))
    if accelerator.num_processes != launched:
        raise ValueError(f'{launched} processes were launched and {accelerator.num_processes} found each other; '
                         'launch them with torchrun --nproc-per-node N train.py ...')
    return accelerator


def _assemble(settings: RunSettings, config: dict[str, Any], sections: Sections, accelerator: Any, folder: RunFolder,
              state: dict[str, Any] | None, display: Display, end_step: int | None, seed: int) -> Trainer:
    network, new = _network(settings, config, sections, seed, accelerator.device, fresh=state is None)
    display.say(f'{n_params(network):,} parameters' + (f', {_count(network, new):,} of them new' if new else ''))
    wrapper, dataset = make_denoiser_wrapper(config), sections.dataset
    batch_size, grad_accum_steps = portions(settings, sections, network, wrapper, accelerator, display.say)
    settings = dataclasses.replace(settings, batch_size=batch_size, grad_accum_steps=grad_accum_steps)
    with accelerator.main_process_first():
        loader = _loader(settings, config, sections, accelerator, seed, folder, display)
    ema_model = copy.deepcopy(network).requires_grad_(False).eval()
    optimizer = sections.optimizer.make(network, settings.lr)
    lr_sched = sections.lr_sched.make(optimizer, end_step)
    _keep_projected(network, optimizer)
    parts: dict[str, Any] = {}
    if settings.grow_warmup or (state or {}).get('growing'):
        parts['growing'] = NewLayersWarmup(network, new, settings.grow_warmup)
        parts['growing'].attach(optimizer)
    snapshots = _snapshots(settings, sections, config, folder, ema_model, end_step)
    if settings.shard:
        if accelerator.num_processes == 1:
            raise ValueError('--shard cuts the network over several processes, and there is one; launch more, or leave it out')
        shard([network, ema_model, *(snapshots.averages if snapshots else [])], optimizer, accelerator.device)
    fast = compiled(network, sections, wrapper, batch_size, accelerator, display.say) if settings.compile else network
    # (Pieces are exchanged by the network itself: it must not be wrapped in DistributedDataParallel.)
    model = accelerator.prepare_model(fast, evaluation_mode=settings.shard)
    optimizer = accelerator.prepare_optimizer(optimizer)
    conditions = conditions_of(sections, loader.dataset, accelerator.device)
    loss = make_loss(wrapper(model), sections.density, seed, dataset.num_classes, dataset.cond_dropout_rate, _memory_format(sections),
                     conditions)
    shown = first_of(conditions, loader.dataset, settings.sample_n, seed)
    hooks = _hooks(settings, config, folder, display, wrapper(ema_model), loader.dataset, accelerator.is_main_process, shown,
                   null_conditions(dataset.num_classes, conditions))
    watching: dict[str, Any] = {'gns_stats': GradientNoiseHook(model, settings.grad_accum_steps)} if settings.gns else {}
    if snapshots:
        watching['posthoc'] = snapshots
    return Trainer(
        accelerator, model, loss, optimizer, lr_sched, sections.ema_sched.make(), ema_model, loader, [*watching.values(), *hooks],
        end_step=end_step, grad_accum_steps=settings.grad_accum_steps, clip_norm=sections.training.grad_clip, seed=seed,
        parts={**parts, **watching})


def _snapshots(settings: RunSettings, sections: Sections, config: dict[str, Any], folder: RunFolder, ema_model: nn.Module,
               end_step: int | None) -> SnapshotHook | None:
    wanted = sections.training.ema_snapshots if settings.ema_snapshots is None else settings.ema_snapshots
    if not wanted:
        return None
    every = settings.save_every if end_step is None else max(1, -(-end_step // wanted))
    return SnapshotHook(ema_model, folder.path, folder.name, every, config, sections.training.ema_widths)


def _network(settings: RunSettings, config: dict[str, Any], sections: Sections, seed: int, device: torch.device,
             fresh: bool) -> tuple[nn.Module, list[str]]:
    """The network as it starts (drawn from the seed, an inference file's, or grown) and the names of what growing added.

    A run that goes on has its weights in its checkpoint, so that what it was grown from may be gone by then.
    """
    new: list[str] = []
    _check_memory(config, device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, 'weights'))
        if settings.grow and fresh:
            network, new = grow_model(config, settings.grow, settings.grow_config, settings.verify)
        else:
            network = make_model(config)
    if settings.resume_inference:
        weights, _ = read_weights(settings.resume_inference, verify=settings.verify)
        load_weights(network, weights, settings.resume_inference)
    return network.to(device, memory_format=_memory_format(sections)), new  # type: ignore[call-overload]


def _check_memory(config: dict[str, Any], device: torch.device) -> None:
    """Refuses a network whose weights, gradients, moments and average alone are more than the device holds, before any are made."""
    with torch.device('meta'):
        parameters = n_params(make_model(config))
    needed, there = 5 * 4 * parameters, memory_bytes(device)
    if there is not None and needed > there:
        raise ValueError(f'the model has {parameters:,} parameters; training it takes {needed / 2**30:,.0f} GiB before any activation, and '
                         f'{device.type} has {there / 2**30:,.0f}: make it smaller (k-diffusion info says what a config costs)')


def _keep_projected(network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Has a network that holds its weights to a constraint (`proj_`) do so after each step."""
    project = getattr(getattr(network, 'inner_model', network), 'proj_', None)
    if project is not None:
        optimizer.register_step_post_hook(lambda *_: project())


def _count(network: nn.Module, names: list[str]) -> int:
    parameters = dict(network.named_parameters())
    return sum(parameters[name].numel() for name in names)


def _memory_format(sections: Sections) -> torch.memory_format:
    convolutional = sections.model.type in ('image_v1', 'image_v2')
    return torch.channels_last if sections.training.channels_last and convolutional else torch.contiguous_format


def _loader(settings: RunSettings, config: dict[str, Any], sections: Sections, accelerator: Any, seed: int, folder: RunFolder,
            display: Display) -> Loader:
    base = Path(settings.config).parent if isinstance(settings.config, (str, os.PathLike)) else Path()
    model = sections.model
    encoder = encoder_of(config, accelerator.device)
    dataset = open_dataset(sections.dataset, *picture_frame(model, encoder), base, settings.allow_code,
                           cache_dir=folder.path / 'cache', progress=display.decoding)
    names = dataset.class_names
    display.say(f'{len(dataset):,} images' + _classes(names, sections.dataset.num_classes))
    config['dataset']['class_names'] = names if sections.dataset.num_classes and names and not _are_numbers(names) else None
    for note in dataset.notes:
        display.say(f'note: {note}')
    if encoder is not None:
        dataset = encoded(dataset, encoder, config, folder.path / 'cache', accelerator.device, display.decoding)
    augmentation = BatchedAugmentation(model.augment_prob) if model.augment_prob else None
    return Loader(dataset, settings.batch_size or sections.training.batch_size, seed=seed, rank=accelerator.process_index,
                  world_size=accelerator.num_processes, grad_accum_steps=settings.grad_accum_steps, augmentation=augmentation,
                  num_workers=min(settings.num_workers, os.cpu_count() or 1), start_method=settings.start_method, device=accelerator.device,
                  worker_timeout=settings.worker_timeout or None)


def _are_numbers(names: list[str]) -> bool:
    """Return True if classes are called by their numbers."""
    return names == [str(i) for i in range(len(names))]


def _classes(names: list[str], told: int) -> str:
    """The classes of a data set in words, and whether the model is told of them."""
    if not names:
        return ''
    listed = ', '.join(f'{i} {name}' for i, name in enumerate(names[:10])) + (', ...' if len(names) > 10 else '')
    shown = '' if _are_numbers(names) else f': {listed}'
    unused = ' (unused: dataset.num_classes is 0)' if not told else ''
    never = f' (the model is told of {told}, so some are never seen)' if told > len(names) else ''
    return f' in {len(names)} classes{shown}{unused}{never}'


def _hooks(settings: RunSettings, config: dict[str, Any], folder: RunFolder, display: Display, denoiser: nn.Module,
           dataset: Dataset, main: bool, told: dict[str, Tensor], null: dict[str, Any]) -> list[Hook]:
    hooks: list[Hook] = [LogHook(folder.path / f'{settings.name}_log.jsonl', LOG_EVERY, display),
                         SkippedNotice(LOG_EVERY, dataset.skipped, folder.path / f'{settings.name}_skipped.txt', display.say)]
    hooks.append(CheckpointHook(folder, settings.save_every))
    listeners = []
    if settings.wandb_project and main:
        wandb = WandbHook(settings.wandb_project, settings.wandb_entity, settings.wandb_group, config, LOG_EVERY,
                          settings.wandb_save_model, settings.wandb_offline)
        hooks.append(wandb)
        listeners.append(wandb.metrics)
    if settings.tensorboard:
        hooks.append(TensorboardHook(folder.path, LOG_EVERY))
    batch = settings.batch_size or config['training']['batch_size']
    if settings.demo_every:
        hooks.append(DemoHook(settings.demo_every, folder.path, settings.name, denoiser, config, settings.sample_n, batch, display.say,
                              told=told, null=null))
    if settings.evaluate_n and told:
        display.say('evaluation is left out: it compares pictures drawn by class, and this model is told more')
    elif settings.evaluate_n:
        hooks.append(EvaluationHook(settings.evaluate_every, folder.path, settings.name, denoiser, config, settings.evaluate_n, batch,
                                    display.say, pictures_of(dataset), settings.extractor, settings.evaluate_against, settings.allow_code,
                                    listeners))
    if settings.report:
        hooks.append(ReportHook(settings.demo_every or settings.save_every, folder.path, settings.name, config, _noise_edges(config)))
    return hooks


def _noise_edges(config: dict[str, Any], bins: int = 8) -> list[float]:
    """The noise levels between which the log tells the loss."""
    quantiles = torch.linspace(0, 1, bins + 1, dtype=torch.float64).clamp(1e-6, 1 - 1e-6)
    return [float(sigma) for sigma in sections_of(config).density.quantile(quantiles)]


def _evaluated(trainer: Trainer) -> str:
    """Evaluates the checkpoint that was loaded, and takes no step."""
    if not trainer.step:
        raise ValueError('--evaluate-only found no checkpoint of this run; train it first, or name one with --resume')
    for hook in trainer.hooks:
        if isinstance(hook, EvaluationHook):
            hook(trainer)
    return 'evaluated'


def _closed(settings: RunSettings, trainer: Trainer, folder: RunFolder, status: str, accelerator: Any) -> Run:
    accelerator.wait_for_everyone()
    accelerator.end_training()
    path = trainer.last_checkpoint or folder.checkpoint_path(trainer.step)
    if accelerator.is_main_process:
        again = '' if status in ('done', 'evaluated') else '; the same command goes on from there'
        print(escape_name(f'{settings.name} {status} at step {trainer.step:,}: {path}{again}'), file=sys.stderr)
    return Run(settings.name, folder.path, path, trainer.step, status, trainer.ema_stats.get('loss'), accelerator.num_processes,
               trainer.stopped_by)
