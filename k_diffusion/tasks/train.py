"""Train a model: run folder, resuming, the training loop and the result."""

from __future__ import annotations

import atexit
import dataclasses
import os
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from ..config import Experiment
from ..config.changes import Change, changes_loss
from ..config.latents import pictures_of
from ..config.load import Sections
from ..core.devices import choose_device
from ..core.extras import require
from ..core.files import write_json
from ..core.memory import keep_freed_memory
from ..core.modules import checkpointing
from ..core.names import escape_name
from ..core.settings import takes_settings
from ..training import RunFolder, Trainer, run_lock
from ..training.heartbeat import heartbeat
from .launch import warn_of_one_process
from .run.assembly import assemble
from .run.display import Display
from .run.evaluation_hook import EvaluationHook
from .run.held_out import HeldOutLoss
from .run.plan import plan
from .run.python import keep_sigma_data, open_experiment
from .run.resuming import (
    accepted_changes,
    changed_data,
    facts_of,
    overrides_of,
    resume_from,
    tell_changes,
)
from .run.settings import Run, TrainSettings
from .run.watch import Watch, open_folder

#: Parts of the errors that torch raises where an exchange between processes breaks.
_BROKEN = ('gloo', 'nccl', 'connection closed', 'connection reset', 'process group')


@takes_settings(TrainSettings)
def train(settings: TrainSettings) -> Run:
    """Train a model, or continue a run that was stopped; all files of the run are in one folder.

    `train('config.json', name='digits', end_step=2000)` and `train(TrainSettings('config.json',
    ...))` train the model of a config; `train(network=net, dataset=tensor, name='mine',
    end_step=2000)` trains any module called as net(x, sigma, **cond) on any tensor [N, C, ...] or
    torch data set.

    Args:
        settings: The settings, or the fields of TrainSettings as arguments.

    Returns:
        The result of the run.

    Raises:
        ValueError: A setting or the config cannot be used; the message names all problems at once.
    """
    experiment, network = open_experiment(settings)
    _refuse(experiment.sections)
    with ExitStack() as state:
        state.enter_context(_restored_flags())
        state.enter_context(_own_accelerator_state())
        split = _split_for_noise_scale(settings, experiment.sections.training.batch_size)
        may_rest = getattr(experiment.sections.model, 'skip_stages', 0) > 0
        accelerator = _accelerator(split, find_unused=may_rest)
        if not accelerator.is_main_process:
            state.enter_context(warnings.catch_warnings())
            warnings.simplefilter('ignore')
        state.enter_context(_restored_generators(accelerator.device))
        run = _train(settings, split, experiment, accelerator)
        return dataclasses.replace(run, network=network)


def _train(
    original: TrainSettings, settings: TrainSettings, experiment: Experiment, accelerator: Any
) -> Run:
    end_step = settings.end_step or experiment.sections.training.end_step
    if accelerator.device.type == 'cpu':
        keep_freed_memory()
    main, extra = accelerator.is_main_process, dict[str, Any]()
    folder = open_folder(settings, extra)
    lock = run_lock(folder.path, folder.name) if main else nullcontext()
    folder_lock = folder.watch_folder() if main else nullcontext()
    display = Display(settings.name, main and settings.show)
    with display, lock, folder_lock, Watch(settings, folder, main, display) as watch:
        if main:
            folder.sweep()
        path, state = resume_from(settings.resume, folder, accelerator, settings.verify)
        _show_start(settings, experiment, accelerator, folder, display)
        over = bool(state and end_step and state['step'] >= end_step and not state.get('owed'))
        if path and state and over and not settings.evaluate_only:
            return _leave_done(settings, accelerator, folder, path, state['step'], display)
        seed = settings.seed if settings.seed is not None else (state or {}).get('seed', 0)
        extra['overrides'] = overrides_of(original, accelerator.num_processes, seed)
        changes: list[Change] = []
        if state:
            keep_sigma_data(experiment, state, settings)
            changes = accepted_changes(
                state, experiment, extra['overrides'], path, settings.reset_optimizer
            )
        trainer = assemble(
            settings, experiment, accelerator, folder, state, display, end_step, seed
        )
        watch.attach(trainer)
        extra['config'] = experiment.as_dict()
        extra['data'] = facts_of(
            pictures_of(experiment.dataset()), experiment.encoder(accelerator.device)
        )
        if state:
            _go_on(settings, trainer, state, path, changes, extra['data'], display)
        del state
        if settings.dry_run:
            return _show_plan(settings, trainer, folder, path, display)
        if main:
            if path and path.parent == folder.path:
                folder.rotate(trainer.step)  # first of all, since the disk may be full
            write_json(folder.path / f'{settings.name}_config.json', extra['config'])
        alive = heartbeat(accelerator.process_index, accelerator.num_processes)
        with checkpointing(settings.checkpointing), _explain_lost_process(trainer), alive:
            status = _evaluate(trainer) if settings.evaluate_only else watch.run(trainer)
        accelerator.wait_for_everyone()
        status = 'stopped' if status == 'interrupted' and trainer.stopped else status
    return _close(settings, trainer, folder, status, display)


def _show_start(
    settings: TrainSettings,
    experiment: Experiment,
    accelerator: Any,
    folder: RunFolder,
    display: Display,
) -> None:
    """Report the processes, device, folder and notes of a run."""
    many = 'es' * (accelerator.num_processes > 1)
    display.say(
        f'{settings.name}: {accelerator.num_processes} process{many} on '
        f'{accelerator.device.type}, folder {folder.path}'
    )
    for note in experiment.notes:
        display.say(note)


def _leave_done(
    settings: TrainSettings,
    accelerator: Any,
    folder: RunFolder,
    path: Path,
    step: int,
    display: Display,
) -> Run:
    """Report that a run has already reached its end, and return it."""
    display.say(
        f'{settings.name} has reached end_step at step {step:,}; raise end_step to train further'
    )
    _end_training(accelerator)
    processes = accelerator.num_processes
    return Run(settings.name, folder.path, path, step, 'already done', None, processes)


@contextmanager
def _restored_flags() -> Iterator[None]:
    """Let matrix products on a GPU use TF32 inside the context."""
    places: list[Any] = [torch.backends.cuda.matmul, torch.backends.cudnn]
    before = [place.allow_tf32 for place in places]
    try:
        for place in places:
            place.allow_tf32 = True
        yield
    finally:
        for place, value in zip(places, before):
            place.allow_tf32 = value


@contextmanager
def _restored_generators(device: torch.device) -> Iterator[None]:
    """Restore the global generators afterwards; training seeds them at each step."""
    devices = [] if device.type == 'cpu' else [device.index or 0]
    with torch.random.fork_rng(devices, device_type=device.type if devices else 'cuda'):
        yield


@contextmanager
def _own_accelerator_state() -> Iterator[None]:
    """Set accelerate's state of the process aside, which allows one device and one dtype.

    Launched processes keep their process group, which is in `PartialState`.
    """
    module = require('accelerate.state', 'train', 'training')
    kinds = [module.AcceleratorState, module.GradientState]
    if int(os.environ.get('WORLD_SIZE', 1)) == 1:
        kinds.append(module.PartialState)
    before = [dict(kind._shared_state) for kind in kinds]
    try:
        for kind in kinds:
            kind._shared_state.clear()
        yield
    finally:
        for kind, values in zip(kinds, before):
            kind._shared_state.clear()
            kind._shared_state.update(values)


@contextmanager
def _explain_lost_process(trainer: Trainer) -> Iterator[None]:
    """Turn the error of a broken exchange between processes into a message with the fix."""
    try:
        yield
    except RuntimeError as error:
        process, last = trainer.accelerator.process_index, trainer.last_checkpoint
        if trainer.accelerator.num_processes == 1 or not any(
            word in str(error).lower() for word in _BROKEN
        ):
            raise
        outcome = 'nothing was saved before' if last is None else f'it resumes from {last}'
        raise ChildProcessError(
            f'process {process} lost contact with another process of the run, which the '
            f"launcher's summary below names; run the same command again: {outcome}"
        ) from error


def _go_on(
    settings: TrainSettings,
    trainer: Trainer,
    state: dict[str, Any],
    path: Path | None,
    changes: list[Change],
    data: dict[str, Any],
    display: Display,
) -> None:
    """Load a checkpoint into the trainer, and report what changed since it was saved."""
    if 'posthoc' in trainer.parts and not state.get('posthoc'):
        raise ValueError(
            'ema_snapshots must be 0 for a run that began without snapshots, which cover a '
            f'whole run; {path} has none: leave it out, or give another name for a new run'
        )
    try:
        notes = [*map(str, changes), *changed_data(state.get('data'), data, path)]
        trainer.load_state_dict(state, path, settings.reset_ema, settings.reset_optimizer)
    except (TypeError, AttributeError, LookupError, ArithmeticError) as error:
        raise ValueError(
            f'{path} has content that training does not write ({type(error).__name__}: '
            f'{error}); use an older one from the same folder'
        ) from error
    display.say(f'resuming from {path}, step {trainer.step:,}')
    if changes_loss(changes):
        trainer.begin_losses()
    tell_changes(
        notes, settings.reset_optimizer, display.say, settings.reset_ema, changes_loss(changes)
    )


def _show_plan(
    settings: TrainSettings,
    trainer: Trainer,
    folder: RunFolder,
    path: Path | None,
    display: Display,
) -> Run:
    """Report what a run would do, without doing it."""
    for name, text in plan(settings, trainer, folder, path).items():
        display.say(f'  {name:<13} {text}')
    trainer.accelerator.wait_for_everyone()
    _end_training(trainer.accelerator)
    return Run(
        settings.name,
        folder.path,
        path or folder.checkpoint_path(0),
        0,
        'dry run',
        None,
        trainer.accelerator.num_processes,
    )


def _refuse(sections: Sections) -> None:
    """Raise a ValueError for configs that the original loads but that would train differently."""
    model = sections.model
    takes_augmentation = model.augment_wrapper or not model.type.startswith('image_v')
    if model.augment_prob and not takes_augmentation:
        raise ValueError(
            'model.augment_prob must be 0 without model.augment_wrapper, else the network learns '
            f'augmented pictures as real ones; got {model.augment_prob}. Set augment_wrapper to '
            'true or augment_prob to 0'
        )
    if (model.has_variance or model.loss_config == 'simple') and (
        model.loss_weighting != 'karras' or model.loss_scales != 1 or model.loss_contrast
    ):
        raise ValueError(
            'model.loss_weighting, model.loss_scales and model.loss_contrast have no effect with '
            'has_variance or the simple loss; leave them out'
        )


def _split_for_noise_scale(settings: TrainSettings, usual: int) -> TrainSettings:
    """Split each batch in two if gns runs in one process, which compares their gradients."""
    several = settings.grad_accum_steps > 1 or int(os.environ.get('WORLD_SIZE', 1)) > 1
    if not settings.gns or several:
        return settings
    batch_size = settings.batch_size or usual
    if batch_size % 2:
        raise ValueError(
            'batch_size must be even with gns=True in one process, which halves each batch; got '
            f'{batch_size}'
        )
    return dataclasses.replace(settings, batch_size=batch_size // 2, grad_accum_steps=2)


def _accelerator(settings: TrainSettings, find_unused: bool) -> Any:
    accelerate = require('accelerate', 'train', 'training')
    require('PIL', 'train', 'training')
    device = choose_device(settings.device)
    # Without cpu=True accelerate starts no process group on the CPU.
    accelerator = accelerate.Accelerator(
        mixed_precision=settings.mixed_precision,
        cpu=device.type == 'cpu',
        kwargs_handlers=[
            accelerate.DistributedDataParallelKwargs(
                find_unused_parameters=find_unused, gradient_as_bucket_view=True
            )
        ],
    )
    warn_of_one_process()
    _warn_of_emulated_bf16(accelerator)
    launched = int(os.environ.get('WORLD_SIZE', 1))
    if accelerator.num_processes != launched:
        raise ValueError(
            f'{launched} processes were launched and {accelerator.num_processes} joined the '
            'run; launch them with torchrun'
        )
    return accelerator


def _warn_of_emulated_bf16(accelerator: Any) -> None:
    """Warn if a CPU without bf16 instructions is to compute in bf16."""
    if accelerator.device.type != 'cpu' or accelerator.mixed_precision != 'bf16':
        return
    if torch.backends.mkldnn.is_available() and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        warnings.warn(
            "mixed_precision='bf16' is slower than float32 on this CPU, which has no bf16 "
            'instructions; leave it out',
            stacklevel=2,
        )


def _evaluate(trainer: Trainer) -> str:
    """Evaluate the loaded checkpoint without a training step."""
    if not trainer.step:
        raise ValueError(
            'evaluate_only=True needs a checkpoint of this run, which has none; train it first, '
            'or name one with resume=...'
        )
    for hook in trainer.hooks:
        if isinstance(hook, (HeldOutLoss, EvaluationHook)):
            hook(trainer)
    return 'evaluated'


def _end_training(accelerator: Any) -> None:
    """End the trackers. Launched processes stay together, so that they can train once more."""
    if accelerator.num_processes == 1:
        accelerator.end_training()
        return
    for tracker in accelerator.trackers:
        tracker.finish()
    accelerator.wait_for_everyone()
    atexit.unregister(_leave_group)
    atexit.register(_leave_group)


def _leave_group() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()


def _close(
    settings: TrainSettings, trainer: Trainer, folder: RunFolder, status: str, display: Display
) -> Run:
    trainer.accelerator.wait_for_everyone()
    _end_training(trainer.accelerator)
    path = trainer.last_checkpoint or folder.checkpoint_path(trainer.step)
    again = '' if status in ('done', 'evaluated') else '; the same command resumes it'
    display.say(escape_name(f'{settings.name} {status} at step {trainer.step:,}: {path}{again}'))
    return Run(
        settings.name,
        folder.path,
        path,
        trainer.step,
        status,
        trainer.ema_stats.get('loss'),
        trainer.accelerator.num_processes,
        trainer.stopped_by,
    )
