"""k-diffusion evaluate: how good the samples of a trained model are, by the features of pictures."""
from __future__ import annotations

import dataclasses
import hashlib
import os
import sys
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import find_checkpoint, load_model
from ..core.files import digest_of, write_json
from ..core.images import from_bytes, save_image
from ..core.memory import keep_freed_memory
from ..core.names import escape_name
from ..core.registry import unknown
from ..data import Dataset
from ..evaluation import (
    METRICS,
    Neighbours,
    cache_folder,
    caution,
    measure,
    nearest_neighbours,
    neighbour_picture,
    reference_features,
)
from ..evaluation.intervals import BLOCKS
from .drawing import Draw
from .processes import World, in_pieces, share_of, world
from .progress import show_progress
from .reference import chosen_pictures, classes_of, make_extractor, open_reference
from .sample import how_to_sample

COPIES = 'copies'       # a measure that looks at the training set, whatever the samples are compared with
PAIRS = 24              # samples shown beside their nearest training pictures


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found: values by name, what they are of, and where they were written."""

    values: dict[str, float]
    facts: dict[str, Any]
    file: Path
    picture: Path | None


@dataclasses.dataclass(frozen=True)
class EvaluationSettings:
    """What an evaluation can be told; a None is the config's value. The flags of `k-diffusion evaluate` bear these names."""

    checkpoint: str | os.PathLike[str]      # a .pth or .safetensors file, or a run's folder (its latest checkpoint)
    n: int = 10_000                         # how many samples
    metrics: Sequence[str] = ('fid', 'kid', 'precision_recall')     # names of K.evaluation.METRICS, and 'copies'
    extractor: Any = None                   # inception, clip, ..., or a callable (default: classifier where there are classes)
    dataset: str | None = None              # what to compare with (default: the config's own data set)
    reference_n: int = 50_000               # the most pictures of it that are used
    out: str | os.PathLike[str] | None = None   # folder to write to (default: evaluation beside the checkpoint)
    config: str | None = None               # the config, where the checkpoint carries none
    batch_size: int = 64                    # how many samples at a time; changes no value beyond rounding
    steps: int | None = None                # how to sample, as in `sample`
    sampler: str | None = None
    schedule: str | None = None
    guidance: float | None = None
    seed: int = 0                           # sample i is drawn from (seed, i) alone
    blocks: int | None = None               # of the jackknife of fid; 0: none (default: as --help)
    device: str | None = None               # cpu, cuda, mps (default: the fastest there is)
    ema: bool = True                        # the averaged weights, or the raw ones of a .pth
    allow_code: bool = False                # let custom data sets and TorchScript run
    cache: str | os.PathLike[str] | None = None     # where reference features are kept (default: the user's cache folder)
    verify: bool = True                     # compare the checkpoint with the manifest beside it
    show: bool = True                       # words and a progress bar on stderr

    def __post_init__(self) -> None:
        for name, value in ('-n', self.n), ('--batch-size', self.batch_size), ('--reference-n', self.reference_n):
            if value < 2:
                raise ValueError(f'{name} is {value}; it must be at least 2')
        if self.blocks is not None and (self.blocks < 0 or self.blocks == 1):
            raise ValueError(f'--blocks must be 0 (no interval) or at least 2; got {self.blocks}')
        odd = [name for name in self.metrics if name not in (COPIES, *METRICS)]
        if odd:
            raise ValueError(f'--metrics: {unknown("metric", odd[0], [COPIES, *METRICS])}')


def evaluate(settings: EvaluationSettings) -> Evaluation:
    """Draws samples, compares their features with those of a reference set, and writes the values as JSON.

    The samples' features are kept in the folder piece by piece, so that an evaluation that was stopped goes on.
    """
    with world() as processes:
        task = _Task(settings, processes)
        fake = task.features()
        if processes.main:
            found = task.measured(fake)
        else:
            found = Evaluation({}, task.facts, task.folder / 'metrics.json', None)
        processes.wait()
    return found


class _Task:
    """An evaluation put together: the model, what its samples are compared with, and how."""

    def __init__(self, settings: EvaluationSettings, processes: World) -> None:
        self.settings, self.processes = settings, processes
        self.path = find_checkpoint(settings.checkpoint)
        self.device = processes.device(settings.device)
        if self.device.type == 'cpu':
            keep_freed_memory()
        denoiser, config = load_model(self.path, self.device, settings.config, settings.ema,
                                      settings.verify)
        self.folder = Path(settings.out) if settings.out is not None else self.path.parent / 'evaluation'
        self.cache = Path(settings.cache) if settings.cache is not None else cache_folder() / 'evaluation'
        self.training_set = lru_cache(lambda: open_reference(config, None, settings.allow_code, self.path.parent))
        reference = self.training_set() if settings.dataset is None else open_reference(config, settings.dataset, settings.allow_code)
        self._compare_with(reference, settings.extractor or ('classifier' if config['dataset']['num_classes'] else 'inception'))
        how = how_to_sample(config, sampler=settings.sampler and settings.sampler.removeprefix('sample_'), steps=settings.steps,
                            schedule=settings.schedule, guidance=settings.guidance)
        self.draw = Draw(denoiser, config, how, settings.seed, classes_of(reference, self.indices), settings.batch_size, self.device)
        self.facts |= {'seed': settings.seed, **dataclasses.asdict(how)}

    def _compare_with(self, reference: Dataset, named: Any) -> None:
        self.indices = chosen_pictures(reference, self.settings.reference_n)
        with self.processes.main_first():
            self.extractor = (
                named
                if callable(named)
                else make_extractor(
                    named,
                    self.training_set,
                    self.cache,
                    self.device,
                    self.say,
                    self.settings.allow_code,
                )
            )
            self.real = self._reference_features(reference, self.indices)
        self.facts = {'checkpoint': str(self.path), 'n': self.settings.n, 'reference': reference.source, 'reference_n': len(self.indices),
                      'extractor': named if isinstance(named, str) else getattr(named, '__name__', type(named).__name__),
                      'features': self.real.shape[1]}

    def _reference_features(self, dataset: Dataset, indices: Sequence[int]) -> Tensor:
        return reference_features(dataset, indices, self.extractor, self.cache, self.settings.batch_size, self.device)

    def say(self, text: str) -> None:
        if self.settings.show and self.processes.main:
            print(escape_name(text), file=sys.stderr, flush=True)

    def features(self) -> Tensor:
        """Of the samples: [N, D]."""
        n = self.settings.n
        self.say(f'{n:,} samples by {self.draw.how.sampler}, {self.draw.how.steps} steps, '
                 f'against {len(self.indices):,} pictures of {self.facts["reference"]}')
        determined_by = {
            **self.facts,
            'n': 0,
            'levels': 256,
            'checkpoint': digest_of(self.path),
            'ema': self.settings.ema,
            'classes': self.draw.labels,
            'extractor': getattr(self.extractor, 'fingerprint', self.facts['extractor']),
        }
        key = hashlib.blake2b(repr(determined_by).encode(), digest_size=8).hexdigest()
        show = self.settings.show and self.processes.main
        with show_progress('evaluate', share_of(n, self.processes), 'image', show) as bar:
            return in_pieces(self.folder / f'pieces-{key}', n, self._piece, self.processes, lambda done: bar.update(done - bar.n))

    @torch.no_grad()
    def _piece(self, items: Sequence[int]) -> Tensor:
        batches = self.draw(items).split(self.settings.batch_size)
        return torch.cat([self.extractor(batch.to(self.device)).float().cpu() for batch in batches])

    def measured(self, fake: Tensor) -> Evaluation:
        """The values of the metrics, written down."""
        settings = self.settings
        blocks = (
            settings.blocks
            if settings.blocks is not None
            else BLOCKS
            if fake.shape[1] <= 512
            else 0
        )
        values = measure(
            fake, self.real, [name for name in settings.metrics if name != COPIES], blocks
        )
        picture = None
        if COPIES in settings.metrics:
            copied, picture = self._copies(fake)
            values |= copied
        write_json(self.folder / 'metrics.json', {**values, **self.facts})
        if caution(settings.n) and 'fid' in values:
            self.say(f'note: {caution(settings.n)}')
        return Evaluation(values, self.facts, self.folder / 'metrics.json', picture)

    def _copies(self, fake: Tensor) -> tuple[dict[str, float], Path]:
        """The share of samples that look like copies of a training picture; the likeliest ones beside it as a picture."""
        training_set = self.training_set()
        indices = chosen_pictures(training_set, self.settings.reference_n)
        found = nearest_neighbours(fake, self._reference_features(training_set, indices))
        most = found.ratio.argsort()[:PAIRS].tolist()
        near = from_bytes(torch.stack([training_set[indices[int(found.index[i])]]['image'] for i in most]))
        shown = Neighbours(torch.arange(len(most)), found.distance[most], found.ratio[most])
        save_image(self.folder / 'copies.png', neighbour_picture(self.draw(most), near, shown))
        return {'copies': found.copies(), 'nearest_ratio': found.ratio.median().item()}, self.folder / 'copies.png'
