"""Train the first stage of latent diffusion on a folder of pictures."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..config import read_autoencoder_config
from ..config.changes import changes_loss, changes_of, check_changes
from ..core.devices import choose_device
from ..core.draws import Draws
from ..core.extras import require
from ..core.files import write_json
from ..core.images import make_grid, save_image
from ..core.memory import keep_freed_memory
from ..core.modules import eval_mode, n_params
from ..core.random import derive_seed
from ..core.settings import at_least, check_settings, setting, takes_settings
from ..core.weights import save_safetensors
from ..data import Loader, open_dataset
from ..training import CheckpointHook, Hook, LogHook, RunFolder, Trainer
from .run.display import Display
from .run.resuming import changed_data, facts_of, tell_changes
from .run.settings import status_after


@dataclass(frozen=True)
class TrainAutoencoderSettings:
    """Settings of `train_autoencoder`."""

    config: str | os.PathLike[str] | Mapping[str, Any] = setting(
        help='the config file, whose model has the type "autoencoder", or the name of a shipped one'
    )
    name: str = setting('autoencoder', 'the name of the run')
    run_dir: str | os.PathLike[str] | None = setting(
        None, 'the folder of the run (default: runs/NAME)'
    )
    end_step: int | None = setting(None, "total number of optimizer steps (default: the config's)")
    batch_size: int | None = setting(
        None, "images per step and process (default: the config's, else 64)"
    )
    seed: int = setting(0, 'the seed')
    device: str | None = setting(None, 'cpu, cuda, mps (default: the fastest available)')
    save_every: int = setting(1000, 'number of steps between checkpoints')
    reset_optimizer: bool = setting(
        False, "restart the optimizer's moments, which another type of optimizer requires"
    )

    def __post_init__(self) -> None:
        plain = Path(self.name).name == self.name and self.name.strip('.')
        check_settings(
            at_least(self, 1, 'end_step', 'batch_size', 'save_every'),
            None
            if plain
            else f'name must be a plain name; got {self.name!r}. Give the folder as run_dir=...',
        )


@dataclass(frozen=True)
class TrainedAutoencoder:
    """Result of a training run.

    Attributes:
        path: The averaged weights with their config, a .safetensors file.
        pictures: A picture of originals above reconstructions.
        step: The last step.
        error: The root mean square error of the pictures shown, in [-1, 1].
        signal: The signal that interrupted the run, or None.
    """

    path: Path
    pictures: Path
    step: int
    error: float
    signal: int | None = None

    @property
    def exit_status(self) -> int:
        """0, also after Ctrl-C; after another signal 128 + its number."""
        return status_after(self.signal)


@takes_settings(TrainAutoencoderSettings)
def train_autoencoder(settings: TrainAutoencoderSettings) -> TrainedAutoencoder:
    """Train the first stage of latent diffusion on pictures, or continue a run that was stopped.

    Args:
        settings: The settings, or the fields of TrainAutoencoderSettings as arguments.

    Returns:
        The files of the autoencoder and its error.

    Raises:
        ValueError: The config cannot be used, or neither it nor the settings give a number of
            steps.
    """
    name, seed, batch_size = settings.name, settings.seed, settings.batch_size
    config, sections = read_autoencoder_config(settings.config)
    end_step = settings.end_step or sections.training.end_step
    if end_step is None:
        raise ValueError(
            'end_step must be given, since the config has no training.end_step; '
            '2000 is enough for a start'
        )
    device = choose_device(settings.device)
    if device.type == 'cpu':
        keep_freed_memory()
    accelerator = require('accelerate', 'train', 'training').Accelerator(cpu=device.type == 'cpu')
    overrides = {'training.batch_size': batch_size, 'training.end_step': end_step}
    extra: dict[str, Any] = {
        'config': config,
        'overrides': {key: value for key, value in overrides.items() if value is not None},
    }
    folder = RunFolder(Path(settings.run_dir or Path('runs') / name), name, extra)
    with Display(name) as display, folder.watch_folder():
        folder.sweep()
        dataset = open_dataset(
            sections.dataset,
            sections.model.input_size,
            sections.model.input_channels,
            cache_dir=folder.path / 'cache',
            progress=display.decoding,
        )
        for note in dataset.notes:
            display.say(f'note: {note}')
        extra['data'] = facts_of(dataset)
        loader = Loader(
            dataset,
            batch_size or sections.training.batch_size,
            seed=seed,
            device=accelerator.device,
        )
        hooks: list[Hook] = [
            LogHook(folder.path / f'{name}_log.jsonl', 25, display),
            CheckpointHook(folder, settings.save_every),
        ]
        trainer, ema_network = _make_trainer(sections, accelerator, loader, hooks, end_step, seed)
        display.say(f'{n_params(ema_network):,} parameters, {len(dataset):,} images')
        newest = folder.newest()
        if newest is not None:
            _resume(trainer, *newest, extra, settings.reset_optimizer, display)
        status = trainer.run()
    if status == 'interrupted':
        warnings.warn(
            f'{name} interrupted at step {trainer.step:,}: {trainer.last_checkpoint}; '
            'the same call resumes it',
            stacklevel=3,
        )
    write_json(folder.path / f'{name}_config.json', config)
    result = _write_results(folder.path, name, ema_network, config, loader, trainer.step)
    return replace(result, signal=trainer.stopped_by if status == 'interrupted' else None)


def _make_trainer(
    sections: Any,
    accelerator: Any,
    loader: Loader,
    hooks: list[Hook],
    end_step: int,
    seed: int,
) -> tuple[Trainer, Any]:
    """Return the trainer of a new autoencoder, and the network of its averaged weights."""
    network = _build_network(sections.model, seed).to(accelerator.device)
    ema_network = copy.deepcopy(network).requires_grad_(False).eval()
    optimizer = sections.optimizer.make(network)
    lr_sched = sections.lr_sched.make(optimizer, end_step)
    model, optimizer = accelerator.prepare(Losses(network, sections.model.kl_weight), optimizer)
    trainer = Trainer(
        accelerator,
        model,
        Loss(model, Draws(seed), network.latent_channels, network.factor),
        optimizer,
        lr_sched,
        sections.ema_sched.make(),
        Losses(ema_network, 0.0),
        loader,
        hooks,
        end_step=end_step,
        clip_norm=sections.training.grad_clip,
        seed=seed,
    )
    return trainer, ema_network


def _resume(
    trainer: Trainer,
    path: Path,
    state: dict[str, Any],
    extra: Mapping[str, Any],
    reset_optimizer: bool,
    display: Display,
) -> None:
    """Load a checkpoint into the trainer, and report what changed since it was written."""
    changes = changes_of(state, extra['config'], extra['overrides'], fill=dict)
    check_changes(changes, path, reset_optimizer)
    notes = [*map(str, changes), *changed_data(state.get('data'), extra['data'], path)]
    trainer.load_state_dict(state, path, reset_optimizer=reset_optimizer)
    if changes_loss(changes):
        trainer.begin_losses()
    tell_changes(notes, reset_optimizer, display.say, other_loss=changes_loss(changes))


class Losses(nn.Module):
    """The loss of an autoencoder as a module, which several processes can wrap like a denoiser."""

    def __init__(self, network: Any, kl_weight: float) -> None:
        super().__init__()
        self.network, self.kl_weight = network, kl_weight

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        """Return the loss [B] of pictures `x` with the `noise` of their latents."""
        return self.network.loss(x, noise, self.kl_weight)


def _build_network(section: Any, seed: int) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, 'weights'))
        return section.build()


@dataclass(eq=False)
class Loss:
    """The loss [B] of a batch by a module such as `Losses`, with the noise of its items."""

    model: nn.Module
    draws: Draws
    channels: int
    factor: int

    def __call__(self, batch: dict[str, Any]) -> Tensor:
        x, items = batch['image'], batch['item']
        shape = [self.channels, x.shape[2] // self.factor, x.shape[3] // self.factor]
        loss: Tensor = self.model(x, self.draws.noise(items, shape, x.device))
        return loss


@torch.no_grad()
def _write_results(
    folder: Path, name: str, network: Any, config: Mapping[str, Any], loader: Loader, step: int
) -> TrainedAutoencoder:
    """Write the averaged weights, and sixteen pictures above their reconstructions."""
    path, pictures = folder / f'{name}.safetensors', folder / f'{name}_reconstructions.png'
    save_safetensors(path, network.state_dict(), config)
    n = len(loader.dataset)
    indices = [i * (n // 16) for i in range(16)] if n >= 16 else range(n)
    x = torch.stack([loader.dataset[i]['image'] for i in indices]).float().div(127.5).sub(1)
    with eval_mode(network):
        y = network.decode(network.encode(x.to(loader.device))[0]).cpu().clamp(-1, 1)
    save_image(pictures, make_grid(torch.cat([x, y]), len(x), padding=1))
    return TrainedAutoencoder(path, pictures, step, (y - x).square().mean().sqrt().item())
