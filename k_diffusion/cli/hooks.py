"""What a training run shows of itself: demo grids, and a word about evaluation; none of it touches training randomness."""
from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core.extras import require
from ..core.files import whole_file
from ..core.images import make_grid, save_image
from ..core.modules import eval_mode
from ..core.random import derive_seed
from ..generation import generate
from ..sampling import get_sigmas_karras
from ..training import Trainer
from ..training.logs import values_of_parts
from .encoding import decoder_of
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
    told: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)    # conditions besides the classes, one for each sample
    null: Mapping[str, Any] = dataclasses.field(default_factory=dict)       # what stands in place of conditions that are not told
    at_end = True

    def __call__(self, trainer: Trainer) -> None:
        trainer.check_finite()
        interrupted = trainer.stopping and not trainer.done
        if not self.every or interrupted or not trainer.accelerator.is_main_process:
            return
        model, num_classes = self.config['model'], self.config['dataset']['num_classes']
        sigmas = get_sigmas_karras(self.steps, model['sigma_min'], model['sigma_max'])
        cond = {'class_cond': torch.arange(self.n) % num_classes} if num_classes else {}
        cond.update(self.told)
        denoise = guided(self.denoiser, self.null, how_to_sample(self.config)) if cond else self.denoiser
        shape = [model['input_channels'], *model['input_size']]
        with eval_mode(self.denoiser), trainer.accelerator.autocast():
            images = generate(denoise, shape, sigmas, 'dpmpp_2m_sde', [derive_seed(trainer.seed, 'demo', i) for i in range(self.n)],
                              cond, batch_size=self.batch_size, device=trainer.accelerator.device,
                              options={'eta': 0., 'solver_type': 'heun'}, decode=decoder_of(self.config, trainer.accelerator.device))
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
    """Lists the pictures that could not be read in NAME_skipped.txt, names the first ten of them and counts the rest."""

    every: int
    skipped: list[tuple[str, str]]
    path: Path
    say: Callable[[str], None]
    told: int = 0
    at_end = True

    def __call__(self, trainer: Trainer) -> None:
        if len(self.skipped) == self.told or not trainer.accelerator.is_main_process:
            return
        for path, reason in self.skipped[self.told:10]:
            self.say(f'skipped {path}: {reason}')
        if len(self.skipped) > 10:
            self.say(f'skipped {len(self.skipped):,} pictures in all, listed in {self.path}')
        with whole_file(self.path, sync=False) as temporary:
            temporary.write_text(''.join(f'{path}: {reason}\n' for path, reason in self.skipped))
        self.told = len(self.skipped)


class WandbHook:
    """Sends what the log says to Weights & Biases, and with `save_model` each new checkpoint too (from the main process)."""

    def __init__(self, project: str, entity: str | None, group: str | None, config: Mapping[str, Any], every: int,
                 save_model: bool) -> None:
        self.every, self.save_model = every, save_model
        self.sent: Path | None = None
        self.wandb = require('wandb', 'wandb', '--wandb-project')
        self.wandb.init(project=project, entity=entity, group=group, config=dict(config), save_code=False)

    def __call__(self, trainer: Trainer) -> None:
        values = {'epoch': trainer.loader.epoch(trainer.items), 'loss': trainer.ema_stats.get('loss'), 'lr': trainer.lr,
                  'ema_decay': trainer.ema_decay, **values_of_parts(trainer)}
        self.wandb.log(values, step=trainer.step)
        if self.save_model and trainer.last_checkpoint not in (None, self.sent):
            self.sent = trainer.last_checkpoint
            self.wandb.save(str(self.sent), base_path=str(self.sent.parent))
