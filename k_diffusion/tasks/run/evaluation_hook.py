"""Evaluate sample quality during training, without effect on the randomness of training."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...config import Experiment
from ...core.files import note_once, whole_file
from ...core.modules import eval_mode
from ...core.plots import plot_curves
from ...data import Dataset
from ...evaluation import Extractor, caution, compute_features, measure, reference_features
from ...generation import SamplingConfig, choose_sampling
from ...training import StopAsked, Trainer
from ..drawing import Draw
from ..reference import choose_pictures, classes_of, make_extractor, open_reference

COLUMNS = ('step', 'time', 'loss', 'fid', 'kid')  # the original's
REFERENCE = 10_000  # pictures at most that samples are compared with
STEPS = 50  # model calls of a sample (of a flow map: the config's)


@dataclasses.dataclass
class EvaluationHook:
    """Compare the features of `n` samples of the averaged model with those of a reference set.

    The noises are the same each time. It writes NAME_metrics.csv (step, time, loss, fid, kid) and
    NAME_metrics.svg. If there is no extractor, it reports that once.
    """

    every: int
    folder: Path
    name: str
    denoiser: nn.Module
    experiment: Experiment
    n: int
    batch_size: int
    say: Callable[[str], None]
    training_set: Dataset
    extractor: str  # as `evaluate` takes it
    against: str | None = None  # a data set other than the training set, as `evaluate` takes it
    allow_code: bool = False
    listeners: Sequence[Callable[[int, Mapping[str, float]], None]] = ()
    task = 'evaluation'

    def __post_init__(self) -> None:
        self._ready: tuple[Extractor, Tensor, Draw] | None = None
        self._given_up = False

    def __call__(self, trainer: Trainer) -> None:
        trainer.check_finite()
        if not self._given_up and self._ready is None:
            self._prepare(trainer)
        if self._ready is None:
            return
        try:
            values = self._measure(trainer, *self._ready)
        except StopAsked:
            self.say(
                f'the evaluation of step {trainer.step:,} is cancelled by a stop request; it '
                'runs when the run is resumed'
            )
            raise
        if not trainer.accelerator.is_main_process:
            return
        rows = self._write(trainer, values)
        plot_curves(
            self.folder / f'{self.name}_metrics.svg',
            {key: {key: [(row['step'], row[key]) for row in rows]} for key in ('fid', 'kid')},
        )
        self.say(
            f'step {trainer.step:,}: fid {values["fid"]:.4g}, kid {values["kid"]:.3g} +- '
            f'{values["kid_stderr"]:.1g} '
            f'({self.n:,} samples, {self.extractor} features)'
        )
        for listener in self.listeners:
            listener(trainer.step, values)

    def _prepare(self, trainer: Trainer) -> None:
        """Open the extractor and the reference features, on all processes or on none."""
        accelerator, reason = trainer.accelerator, ''
        with accelerator.main_process_first():
            try:
                self._ready = self._open(accelerator.device)
            except (OSError, ImportError, ValueError) as error:
                reason = ' '.join(str(error).split())
        failures = accelerator.reduce(
            torch.tensor(float(self._ready is None), device=accelerator.device), 'sum'
        )
        if failures.item():
            self._ready, self._given_up = None, True
            other = (
                '; the extractor classifier needs no download'
                if self.extractor != 'classifier'
                else ''
            )
            self.say(
                f'evaluation is skipped: {reason or "another process has no extractor"}; training '
                f'continues{other}'
            )
        elif caution(self.n):
            self.say(f'note: {caution(self.n)}')

    def _open(self, device: torch.device) -> tuple[Extractor, Tensor, Draw]:
        cache = self.folder / 'cache'
        reference = (
            self.training_set
            if self.against is None
            else open_reference(self.experiment, self.against, self.allow_code, device=device)
        )
        if (
            not self.experiment.gives_pictures and self.extractor == 'inception'
        ):  # (the default, which takes pictures)
            self.extractor = 'tensor'
        extractor = make_extractor(
            self.extractor, lambda: self.training_set, cache, device, self.say, self.allow_code
        )
        indices = choose_pictures(reference, REFERENCE)
        features = reference_features(
            reference,
            indices,
            extractor,
            cache,
            self.batch_size,
            device,
            self.experiment.gives_pictures,
        )
        few = getattr(self.denoiser, 'flow_map', False)
        how = choose_sampling(vars(self.experiment.sections.sampling), steps=None if few else STEPS)
        return extractor, features, self._draw(how, classes_of(reference, indices), device)

    def _draw(self, how: SamplingConfig, classes: list[int] | None, device: torch.device) -> Draw:
        return Draw(self.denoiser, self.experiment, how, 0, classes, self.batch_size, device)

    def _measure(
        self, trainer: Trainer, extractor: Extractor, real: Tensor, draw: Draw
    ) -> dict[str, float]:
        accelerator, position = trainer.accelerator, 0

        def sample(count: int) -> Tensor:
            nonlocal position
            first = position + accelerator.process_index * count
            position += accelerator.num_processes * count
            return draw(range(first, first + count), look_up).to(accelerator.device)

        def look_up(*_: Any) -> None:
            if trainer.stop_asked():
                raise StopAsked

        with eval_mode(self.denoiser), torch.no_grad(), accelerator.autocast():
            fake = compute_features(
                accelerator,
                sample,
                lambda x: extractor(x).float(),
                self.n,
                self.batch_size,
                round_pictures=False,
            ).cpu()
        return measure(fake, real, ('fid', 'kid')) if accelerator.is_main_process else {}

    def _write(self, trainer: Trainer, values: Mapping[str, float]) -> list[dict[str, float]]:
        """Add a row; after a resume, rows of steps that are repeated are replaced."""
        path = self.folder / f'{self.name}_metrics.csv'
        new = {
            'step': trainer.step,
            'time': trainer.elapsed,
            'loss': trainer.ema_stats.get('loss', math.nan),
            'fid': values['fid'],
            'kid': values['kid'],
        }
        rows = [row for row in read_metrics(path) if row['step'] < trainer.step] + [new]
        with whole_file(path) as temporary:
            lines = [
                ','.join(f'{row[key]:{".0f" if key == "step" else ".8g"}}' for key in COLUMNS)
                for row in rows
            ]
            temporary.write_text('\n'.join([','.join(COLUMNS), *lines]) + '\n')
        return rows


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Return the rows of the metrics file `path`, in this format or the original's.

    Other lines are skipped, with a note.
    """
    texts = path.read_bytes().decode('utf-8', 'replace').split('\n') if path.is_file() else []
    lines = [line for line in map(str.strip, texts) if line and line != ','.join(COLUMNS)]
    rows = [row for row in map(_row, lines) if row is not None]
    if len(rows) < len(lines):
        odd = len(lines) - len(rows)
        note_once(f'{odd} lines of {path} are not rows of metrics; they are passed over')
    return rows


def _row(line: str) -> dict[str, float] | None:
    try:
        row = dict(zip(COLUMNS, map(float, line.split(',')), strict=True))
    except ValueError:
        return None
    values = [row[key] for key in COLUMNS if key != 'loss']  # (the loss may be unknown)
    return row if row['step'] >= 0 and all(map(math.isfinite, values)) else None
