"""What a training run shows of itself: demo grids, and a word about evaluation; none of it touches training randomness."""
from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..core.extras import require
from ..core.images import make_grid, save_image
from ..core.modules import eval_mode
from ..core.random import derive_seed
from ..generation import generate
from ..sampling import get_sigmas_karras
from ..training import Trainer
from .sample import guided, how_to_sample


@dataclasses.dataclass
class DemoHook:
    """Draws `n` samples of the averaged model, the same noises and classes each time, as NAME_demo_STEP.png."""

    every: int
    folder: Path
    name: str
    denoiser: nn.Module
    config: Mapping[str, Any]
    n: int
    batch_size: int
    say: Callable[[str], None]
    steps: int = 50
    at_end = True

    def __call__(self, trainer: Trainer) -> None:
        if not self.every or not trainer.accelerator.is_main_process:
            return
        model, num_classes = self.config['model'], self.config['dataset']['num_classes']
        sigmas = get_sigmas_karras(self.steps, model['sigma_min'], model['sigma_max'])
        cond = {'class_cond': torch.arange(self.n) % num_classes} if num_classes else None
        denoise = guided(self.denoiser, num_classes, how_to_sample(self.config)) if num_classes else self.denoiser
        shape = [model['input_channels'], *model['input_size']]
        with eval_mode(self.denoiser), trainer.accelerator.autocast():
            images = generate(denoise, shape, sigmas, 'dpmpp_2m_sde', [derive_seed(trainer.seed, 'demo', i) for i in range(self.n)],
                              cond, batch_size=self.batch_size, device=trainer.accelerator.device,
                              options={'eta': 0., 'solver_type': 'heun'})
        path = self.folder / f'{self.name}_demo_{trainer.step:08}.png'
        save_image(path, make_grid(images))
        self.say(f'demo grid: {path}')


@dataclasses.dataclass
class EvaluationNotice:
    """Says once, when an evaluation is due, that no feature extractor is at hand."""

    every: int
    say: Callable[[str], None]
    said: bool = False

    def __call__(self, trainer: Trainer) -> None:
        if not self.said and trainer.accelerator.is_main_process:
            self.said = True
            self.say('evaluation is skipped: this version has no feature extractor; training goes on (--evaluate-n 0 hides this line)')


@dataclasses.dataclass
class SkippedNotice:
    """Names the pictures that could not be read, the first ten of them, and counts the rest as they turn up."""

    every: int
    skipped: list[tuple[str, str]]
    say: Callable[[str], None]
    told: int = 0
    at_end = True

    def __call__(self, trainer: Trainer) -> None:
        for path, reason in self.skipped[self.told:10]:
            self.say(f'skipped {path}: {reason}')
        if len(self.skipped) > max(10, self.told):
            self.say(f'skipped {len(self.skipped):,} pictures in all')
        self.told = len(self.skipped)


class WandbHook:
    """Sends what the log says to Weights & Biases."""

    def __init__(self, project: str, entity: str | None, group: str | None, config: Mapping[str, Any], every: int) -> None:
        self.every = every
        self.wandb = require('wandb', 'wandb', '--wandb-project')
        self.wandb.init(project=project, entity=entity, group=group, config=dict(config), save_code=False)

    def __call__(self, trainer: Trainer) -> None:
        values = {'epoch': trainer.loader.epoch(trainer.items), 'loss': trainer.ema_stats.get('loss'), 'lr': trainer.lr,
                  'ema_decay': trainer.ema_decay}
        self.wandb.log(values, step=trainer.step)
