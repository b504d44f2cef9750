"""A training run put together: networks, data, loss, hooks, and the folder it lives in."""
from __future__ import annotations

import copy
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..augmentation import BatchedAugmentation
from ..config import load_config, make_denoiser_wrapper, make_model, read_weights, sections_of
from ..config.load import Sections
from ..core.devices import choose_device
from ..core.extras import require
from ..core.files import write_json
from ..core.memory import keep_freed_memory
from ..core.modules import checkpointing, n_params
from ..core.random import derive_seed
from ..data import Loader, open_dataset
from ..training import CheckpointHook, GradientNoiseHook, Hook, LogHook, RunFolder, Trainer, load_weights, read_training_checkpoint
from .conditioning import conditions_of, first_of, null_of
from .display import Display
from .encoding import encoded, encoder_of, picture_frame
from .hooks import DemoHook, EvaluationNotice, SkippedNotice, WandbHook
from .objective import make_loss
from .settings import Run, RunSettings

LOG_EVERY = 10


def train(settings: RunSettings) -> Run:
    """Trains, or goes on training, the model of a config; the whole run lives in one folder. Returns what became of it."""
    config = load_config(settings.config, strict=True)
    sections = sections_of(config)
    end_step = settings.end_step or sections.training.end_step
    _refuse(sections)
    accelerator = _accelerator(settings, find_unused=getattr(sections.model, 'skip_stages', 0) > 0)
    if accelerator.device.type == 'cpu':
        keep_freed_memory()
    main = accelerator.is_main_process
    if not main:
        warnings.simplefilter('ignore')
    with Display(settings.name, main) as display:
        folder = RunFolder(Path(settings.run_dir or Path('runs') / settings.name), settings.name, {'config': config})
        path, state = _resume_from(settings, folder)
        display.say(f'{settings.name}: {accelerator.num_processes} process{"es" * (accelerator.num_processes > 1)} on '
                    f'{accelerator.device.type}, folder {folder.path}')
        if path and state and end_step and state['step'] >= end_step:
            display.say(f'{settings.name} is done: it has reached step {state["step"]:,} of {end_step:,} (--end-step goes further)')
            accelerator.end_training()
            return Run(settings.name, folder.path, path, state['step'], 'already done', None, accelerator.num_processes)
        trainer = _assemble(settings, config, sections, accelerator, folder, state, display, end_step)
        if state:
            trainer.load_state_dict(state, path, settings.reset_ema)
            display.say(f'goes on from {path}, step {trainer.step:,}')
        del state
        if main:
            _make_folder(folder.path)
            write_json(folder.path / f'{settings.name}_config.json', config)
        with checkpointing(settings.checkpointing):
            status = trainer.run()
    return _closed(settings, trainer, folder, status, accelerator)


def _refuse(sections: Sections) -> None:
    """Configs that can be loaded, since the original took them, but would not be trained as they say."""
    model = sections.model
    if model.augment_prob and model.type == 'image_v1' and not model.augment_wrapper:
        raise ValueError(f'model.augment_prob is {model.augment_prob} and model.augment_wrapper is false, so that the network would learn '
                         'augmented pictures as real ones; set augment_wrapper to true or augment_prob to 0')
    if (model.has_variance or model.loss_config == 'simple') and (model.loss_weighting != 'karras' or model.loss_scales != 1):
        raise ValueError('model.loss_weighting and model.loss_scales have no effect with has_variance or the simple loss; leave them out')


def _accelerator(settings: RunSettings, find_unused: bool) -> Any:
    accelerate = require('accelerate', 'train', 'training')
    require('PIL', 'train', 'training')
    device = choose_device(settings.device)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    # Told that it is to use the CPU, or accelerate starts no process group there.
    accelerator = accelerate.Accelerator(
        mixed_precision=settings.mixed_precision, cpu=device.type == 'cpu',
        kwargs_handlers=[accelerate.DistributedDataParallelKwargs(find_unused_parameters=find_unused)])
    launched = int(os.environ.get('WORLD_SIZE', 1))
    if accelerator.num_processes != launched:
        raise ValueError(f'{launched} processes were launched and {accelerator.num_processes} found each other; '
                         'launch them with torchrun --nproc-per-node N train.py ...')
    if settings.gns and launched == 1:
        raise ValueError('--gns compares the gradients of several processes, and there is one; launch two or more, or leave it out')
    return accelerator


def _resume_from(settings: RunSettings, folder: RunFolder) -> tuple[Path | None, dict[str, Any] | None]:
    if settings.resume:
        return Path(settings.resume), read_training_checkpoint(settings.resume)
    return folder.newest() or (None, None)


def _assemble(settings: RunSettings, config: dict[str, Any], sections: Sections, accelerator: Any, folder: RunFolder,
              state: dict[str, Any] | None, display: Display, end_step: int | None) -> Trainer:
    seed = settings.seed if settings.seed is not None else (state or {}).get('seed', 0)
    network = _network(settings, config, sections, seed, accelerator.device)
    display.say(f'{n_params(network):,} parameters')
    with accelerator.main_process_first():
        loader = _loader(settings, config, sections, accelerator, seed, folder, display)
    ema_model = copy.deepcopy(network).requires_grad_(False).eval()
    optimizer = sections.optimizer.make(network, settings.lr)
    lr_sched = sections.lr_sched.make(optimizer, end_step)
    model, optimizer = accelerator.prepare(torch.compile(network) if settings.compile else network, optimizer)
    wrapper, dataset = make_denoiser_wrapper(config), sections.dataset
    conditions = conditions_of(sections, loader.dataset, accelerator.device)
    loss = make_loss(wrapper(model), sections.density, seed, dataset.num_classes, dataset.cond_dropout_rate, _memory_format(sections),
                     conditions)
    shown = first_of(conditions, loader.dataset, settings.sample_n, seed)
    hooks = _hooks(settings, config, folder, display, wrapper(ema_model), loader.dataset.skipped, accelerator.is_main_process,
                   shown, null_of(dataset.num_classes, conditions))
    noise_scale = GradientNoiseHook(model) if settings.gns else None
    return Trainer(
        accelerator, model, loss, optimizer, lr_sched, sections.ema_sched.make(), ema_model, loader,
        [noise_scale, *hooks] if noise_scale else hooks, end_step=end_step, grad_accum_steps=settings.grad_accum_steps,
        clip_norm=sections.training.grad_clip, seed=seed, parts={'gns_stats': noise_scale} if noise_scale else {})


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f'the run cannot live in {path} ({error.strerror}); choose another folder with --run-dir') from None


def _network(settings: RunSettings, config: dict[str, Any], sections: Sections, seed: int, device: torch.device) -> nn.Module:
    """The network as it starts: drawn from the seed, or an inference file's."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, 'weights'))
        network = make_model(config)
    if settings.resume_inference:
        load_weights(network, read_weights(settings.resume_inference)[0], settings.resume_inference)
    return network.to(device, memory_format=_memory_format(sections))  # type: ignore[call-overload]


def _memory_format(sections: Sections) -> torch.memory_format:
    convolutional = sections.model.type in ('image_v1',)
    return torch.channels_last if sections.training.channels_last and convolutional else torch.contiguous_format


def _loader(settings: RunSettings, config: dict[str, Any], sections: Sections, accelerator: Any, seed: int, folder: RunFolder,
            display: Display) -> Loader:
    base = Path(settings.config).parent if isinstance(settings.config, (str, os.PathLike)) else Path()
    model = sections.model
    encoder = encoder_of(config, accelerator.device)
    dataset = open_dataset(sections.dataset, *picture_frame(model, encoder), base, settings.allow_code,
                           cache_dir=folder.path / 'cache', progress=display.decoding)
    display.say(f'{len(dataset):,} images' + _classes(dataset.class_names, sections.dataset.num_classes))
    if encoder is not None:
        dataset = encoded(dataset, encoder, config, folder.path / 'cache', accelerator.device, display.decoding)
    augmentation = BatchedAugmentation(model.augment_prob) if model.augment_prob else None
    return Loader(dataset, settings.batch_size or sections.training.batch_size, seed=seed, rank=accelerator.process_index,
                  world_size=accelerator.num_processes, grad_accum_steps=settings.grad_accum_steps, augmentation=augmentation,
                  num_workers=min(settings.num_workers, os.cpu_count() or 1), start_method=settings.start_method, device=accelerator.device)


def _classes(names: list[str], told: int) -> str:
    """The classes of a data set in words, and whether the model is told of them."""
    if not names:
        return ''
    numbers = names == [str(i) for i in range(len(names))]
    shown = '' if numbers else ': ' + ', '.join(f'{i} {name}' for i, name in enumerate(names[:10])) + (', ...' if len(names) > 10 else '')
    unused = ' (unused: dataset.num_classes is 0)' if not told else ''
    never = f' (the model is told of {told}, so some are never seen)' if told > len(names) else ''
    return f' in {len(names)} classes{shown}{unused}{never}'


def _hooks(settings: RunSettings, config: dict[str, Any], folder: RunFolder, display: Display, denoiser: nn.Module,
           skipped: list[tuple[str, str]], main: bool, told: dict[str, Tensor], null: dict[str, Any]) -> list[Hook]:
    hooks: list[Hook] = [LogHook(folder.path / f'{settings.name}_log.jsonl', LOG_EVERY, display),
                         SkippedNotice(LOG_EVERY, skipped, folder.path / f'{settings.name}_skipped.txt', display.say)]
    hooks.append(CheckpointHook(folder, settings.save_every))
    if settings.wandb_project and main:
        hooks.append(WandbHook(settings.wandb_project, settings.wandb_entity, settings.wandb_group, config, LOG_EVERY,
                               settings.wandb_save_model))
    if settings.demo_every:
        batch = settings.batch_size or config['training']['batch_size']
        hooks.append(DemoHook(settings.demo_every, folder.path, settings.name, denoiser, config, settings.sample_n, batch, display.say,
                              told=told, null=null))
    if settings.evaluate_n:
        hooks.append(EvaluationNotice(settings.evaluate_every, display.say))
    return hooks


def _closed(settings: RunSettings, trainer: Trainer, folder: RunFolder, status: str, accelerator: Any) -> Run:
    accelerator.wait_for_everyone()
    accelerator.end_training()
    path = trainer.last_checkpoint or folder.checkpoint_path(trainer.step)
    if accelerator.is_main_process:
        again = '' if status == 'done' else '; the same command goes on from there'
        print(f'{settings.name} {status} at step {trainer.step:,}: {path}{again}', file=sys.stderr)
    return Run(settings.name, folder.path, path, trainer.step, status, trainer.ema_stats.get('loss'), accelerator.num_processes)
