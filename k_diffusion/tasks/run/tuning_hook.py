"""Log the reward and the Frechet distance of samples of the averaged model of a tuning run."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...core.files import whole_file
from ...core.images import round_to_bytes
from ...core.modules import eval_mode
from ...core.random import derive_seed
from ...data import Dataset
from ...evaluation import Extractor, cache_folder, fid, reference_features
from ...training import Trainer
from ..reference import choose_pictures, make_extractor
from .tuning import Tuner, make_decoder, make_draw, make_plan

COLUMNS = ('step', 'seconds', 'calls', 'round_reward', 'reward', 'reward_std', 'fid')
STEPS = 20  # of the sampler that is measured


@dataclasses.dataclass
class TuningHook:
    """Measure samples of the averaged model, drawn from the same noises each time.

    Their rewards and their Frechet distance are rows of NAME_tuning.csv.

    Attributes:
        every: The number of steps between measurements.
        path: The file.
        tuner: The objective, with the reward and the prompts.
        n: The number of samples.
        extractor: The feature extractor, as in `evaluate`; '' measures no distance.
        dataset: The reference set of the distance.
        label: The class of the reference pictures; None: all pictures.
        allow_code: Allow a TorchScript file to run.
        say: Report a line of text.
        seed: The seed of the noises.
    """

    every: int
    path: Path
    tuner: Tuner
    n: int
    extractor: str
    dataset: Dataset
    label: int | None
    allow_code: bool
    say: Callable[[str], None]
    seed: int = 0
    at_end = True

    def __post_init__(self) -> None:
        self._reference: tuple[Extractor, Tensor] | None = None

    def __call__(self, trainer: Trainer) -> None:
        if not (trainer.done or (self.every and trainer.step % self.every == 0)):
            return  # a pause leaves no row: the file is that of a run without one
        if trainer.accelerator.is_main_process:
            self._write(trainer, self._measure(trainer))
        trainer.accelerator.wait_for_everyone()

    def _measure(self, trainer: Trainer) -> dict[str, Any]:
        device, rollouts = trainer.accelerator.device, self.tuner.rollouts
        experiment = self.tuner.experiment
        denoiser = experiment.wrap(trainer.ema_model)
        plan = make_plan(denoiser, experiment, None, STEPS, {})
        draw = make_draw(plan, experiment.shape, rollouts.shape.batch_size, device)
        prompts = torch.arange(self.n) % rollouts.prompts
        seeds = [derive_seed(self.seed, 'tuned', i) for i in range(self.n)]
        with torch.no_grad(), eval_mode(denoiser):
            samples = draw(denoiser, seeds, rollouts.conditions_of(prompts))['image']
        rewards = rollouts.rate(samples)
        row = {
            'step': trainer.step,
            'seconds': trainer.elapsed,
            'calls': rollouts.calls,
            'round_reward': rollouts.reward_mean,
            'reward': rewards.mean().item(),
            'reward_std': rewards.std(correction=0).item(),
            'fid': self._distance(samples, device),
        }
        far = '' if row['fid'] is None else f', fid {row["fid"]:.4g}'
        self.say(
            f'step {trainer.step:,}: reward {row["reward"]:.4g}{far}, {rollouts.calls:,} calls'
        )
        return row

    def _distance(self, samples: Tensor, device: torch.device) -> float | None:
        if not self.extractor:
            return None
        if self._reference is None:
            self._reference = self._open(device)
        extractor, real = self._reference
        experiment = self.tuner.experiment
        decode = make_decoder(experiment.decoder(device), experiment.gives_pictures)
        size = self.tuner.rollouts.shape.batch_size
        pictures = [decode(part.to(device)) for part in samples.split(size)]
        if experiment.gives_pictures:
            pictures = [round_to_bytes(part) for part in pictures]
        with torch.no_grad():
            fake = torch.cat([extractor(part).float().cpu() for part in pictures])
        return fid(fake, real).item()

    def _open(self, device: torch.device) -> tuple[Extractor, Tensor]:
        cache = cache_folder() / 'evaluation'
        extractor = make_extractor(
            self.extractor, lambda: self.dataset, cache, device, self.say, self.allow_code
        )
        indices = choose_pictures(self.dataset, 10_000)
        if self.label is not None:
            indices = [i for i in indices if int(self.dataset[i]['class_cond']) == self.label]
        pictures = self.tuner.experiment.gives_pictures
        return extractor, reference_features(
            self.dataset, indices, extractor, cache, 256, device, pictures
        )

    def _write(self, trainer: Trainer, row: dict[str, Any]) -> None:
        """Add a row; after a resume, rows of steps that are repeated are replaced."""
        rows = [old for old in read_tuning_log(self.path) if float(old['step']) < trainer.step]
        with whole_file(self.path) as temporary, temporary.open('w', newline='') as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows([*rows, {key: _text(value) for key, value in row.items()}])


def read_tuning_log(path: Path) -> list[dict[str, str]]:
    """Return the rows of the log `path`."""
    if not path.is_file():
        return []
    with path.open(newline='') as file:
        return [row for row in csv.DictReader(file) if row.keys() == set(COLUMNS)]


def _text(value: Any) -> str:
    return '' if value is None else f'{value:.8g}'
