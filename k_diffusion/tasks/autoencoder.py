"""k-diffusion train-autoencoder: the first stage of latent diffusion, trained on a folder of pictures."""
from __future__ import annotations

import copy
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..config import read_autoencoder_config
from ..config.changes import changes_of, check_changes
from ..core.devices import choose_device
from ..core.extras import require
from ..core.files import write_json
from ..core.images import make_grid, save_image
from ..core.memory import keep_freed_memory
from ..core.modules import eval_mode, n_params
from ..core.random import derive_seed, randn_items
from ..core.weights import save_safetensors
from ..data import Loader, open_dataset
from ..training import CheckpointHook, Hook, LogHook, RunFolder, Trainer
from .run.display import Display
from .run.resuming import changed_data, facts_of, tell_changes


@dataclass(frozen=True)
class TrainedAutoencoder:
    """What became of a run: its weights with their config as a .safetensors file, a picture of originals above reconstructions."""

    path: Path
    pictures: Path
    step: int
    error: float        # root mean square, of the pictures shown, in [-1, 1]
    signal: int | None = None   # what interrupted it


def train_autoencoder(
    config: str | os.PathLike[str] | Mapping[str, Any],     # "model" of type autoencoder, "dataset", "optimizer", "training"
    name: str = 'autoencoder',              # names the run and its files
    run_dir: str | os.PathLike[str] | None = None,  # where it lives (default: runs/NAME)
    end_step: int | None = None,            # optimizer steps in all (default: the config's)
    batch_size: int | None = None,
    seed: int = 0,
    device: str | None = None,
    save_every: int = 1000,
    reset_optimizer: bool = False,          # the optimizer's moments start anew
) -> TrainedAutoencoder:
    """Trains an autoencoder, or goes on with a run that was stopped."""
    filled, sections = read_autoencoder_config(config)
    end_step = end_step or sections.training.end_step
    if end_step is None:
        raise ValueError('neither --end-step nor training.end_step says how long to train; give one, 2000 for a start')
    chosen = choose_device(device)
    if chosen.type == 'cpu':
        keep_freed_memory()
    accelerator = require('accelerate', 'train', 'training').Accelerator(cpu=chosen.type == 'cpu')
    overrides = {'training.batch_size': batch_size, 'training.end_step': end_step}
    extra: dict[str, Any] = {'config': filled, 'overrides': {key: value for key, value in overrides.items() if value is not None}}
    folder = RunFolder(Path(run_dir or Path('runs') / name), name, extra)
    with Display(name) as display, folder.held():
        folder.sweep()
        dataset = open_dataset(sections.dataset, sections.model.input_size, sections.model.input_channels,
                               cache_dir=folder.path / 'cache', progress=display.decoding)
        for note in dataset.notes:
            display.say(f'note: {note}')
        extra['data'] = facts_of(dataset)
        loader = Loader(dataset, batch_size or sections.training.batch_size, seed=seed, device=accelerator.device)
        network = _drawn(sections.model, seed).to(accelerator.device)
        display.say(f'{n_params(network):,} parameters, {len(dataset):,} images')
        averaged = copy.deepcopy(network).requires_grad_(False).eval()
        optimizer = sections.optimizer.make(network)
        lr_sched = sections.lr_sched.make(optimizer, end_step)
        prepared, optimizer = accelerator.prepare(Losses(network, sections.model.kl_weight), optimizer)
        hooks: list[Hook] = [LogHook(folder.path / f'{name}_log.jsonl', 25, display), CheckpointHook(folder, save_every)]
        trainer = Trainer(accelerator, prepared, _loss(prepared, seed, network.latent_channels, network.factor), optimizer, lr_sched,
                          sections.ema_sched.make(), Losses(averaged, 0.), loader, hooks, end_step=end_step,
                          clip_norm=sections.training.grad_clip, seed=seed)
        found = folder.newest()
        if found is not None:
            changes = changes_of(found[1], filled, extra['overrides'], fill=dict)
            check_changes(changes, found[0], reset_optimizer)
            notes = [*map(str, changes), *changed_data(found[1].get('data'), extra['data'], found[0])]
            trainer.load_state_dict(found[1], found[0], reset_optimizer=reset_optimizer)
            tell_changes(notes, reset_optimizer, display.say)
        status = trainer.run()
    if status == 'interrupted':
        print(f'{name} interrupted at step {trainer.step:,}: {trainer.last_checkpoint}; '
              'the same command goes on from there', file=sys.stderr)
    write_json(folder.path / f'{name}_config.json', filled)
    done = _written(folder.path, name, averaged, filled, loader, trainer.step)
    return replace(done, signal=trainer.stopped_by if status == 'interrupted' else None)


class Losses(nn.Module):
    """The autoencoder as a module whose call is its loss, so that several processes share it as they share a denoiser."""

    def __init__(self, network: Any, kl_weight: float) -> None:
        super().__init__()
        self.network, self.kl_weight = network, kl_weight

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        return self.network.loss(x, noise, self.kl_weight)


def _drawn(section: Any, seed: int) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, 'weights'))
        return section.build()


def _loss(model: nn.Module, seed: int, channels: int, factor: int) -> Callable[[dict[str, Any]], Tensor]:
    def loss(batch: dict[str, Any]) -> Tensor:
        x = batch['image']
        shape = [channels, x.shape[2] // factor, x.shape[3] // factor]
        noise = randn_items(shape, [derive_seed(seed, 'noise', item) for item in batch['item'].tolist()], x.device)
        return model(x, noise)
    return loss


@torch.no_grad()
def _written(folder: Path, name: str, network: Any, config: Mapping[str, Any], loader: Loader, step: int) -> TrainedAutoencoder:
    """The averaged weights as a file of their own, and sixteen pictures above what becomes of them."""
    path, shown = folder / f'{name}.safetensors', folder / f'{name}_reconstructions.png'
    save_safetensors(path, network.state_dict(), config)
    chosen = torch.arange(16) * (len(loader.dataset) // 16) if len(loader.dataset) >= 16 else torch.arange(len(loader.dataset))
    x = torch.stack([loader.dataset[i]['image'] for i in chosen.tolist()]).float().div(127.5).sub(1)
    with eval_mode(network):
        y = network.decode(network.encode(x.to(loader.device))[0]).cpu().clamp(-1, 1)
    save_image(shown, make_grid(torch.cat([x, y]), len(x), padding=1))
    return TrainedAutoencoder(path, shown, step, (y - x).square().mean().sqrt().item())
