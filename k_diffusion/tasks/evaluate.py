"""Measure the quality of the samples of a trained model by the features of pictures."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
import warnings
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import find_checkpoint
from ..core.files import digest_of, write_json
from ..core.images import from_bytes, save_image
from ..core.python_files import digest_code
from ..core.registry import unknown
from ..core.settings import are_lists, at_least, check_settings, one_of, setting, takes_settings
from ..core.views import show_tensors
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
from ..generation import BETWEEN, choose_sampling
from ..sampling import find_sampler
from .drawing import Draw
from .model import ModelSettings, find_sampler_problem, load_sampler, open_model
from .processes import World, in_pieces, share_of, world
from .progress import show_progress
from .reference import (
    DATASET_WORDS,
    EXTRACTOR_WORDS,
    choose_pictures,
    classes_of,
    make_extractor,
    open_reference,
)

COPIES = (
    'copies'  # a measure that looks at the training set, whatever the samples are compared with
)
PAIRS = 24  # samples shown beside their nearest training pictures
_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Result of `evaluate`.

    Attributes:
        values: The values of the metrics by name.
        facts: What the values depend on: checkpoint, sampler, reference and so on.
        file: The JSON file with values and facts.
        picture: Samples beside the training pictures they are closest to; None if not measured.
    """

    values: dict[str, float]
    facts: dict[str, Any]
    file: Path
    picture: Path | None


def _parse_names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(',') if name.strip())


@dataclasses.dataclass(frozen=True)
class EvaluationSettings(ModelSettings):
    """Settings of `evaluate`."""

    checkpoint: str | os.PathLike[str] = setting(
        help="a .pth or .safetensors file, a run's folder (its latest checkpoint), or a URL of one"
    )
    n: int = setting(10_000, 'number of samples', flags=('-n',))
    metrics: Sequence[str] = setting(
        ('fid', 'kid', 'precision_recall'),
        'metrics (default: fid,kid,precision_recall): '
        + '; '.join(f'{m.name}: {m.meaning}' for m in METRICS.values())
        + (
            f'; {COPIES}: the share of samples that copy a training picture, with the likeliest '
            'ones as a picture'
        ),
        metavar='fid,kid,...',
        parse=_parse_names,
    )
    extractor: Any = setting(
        None,
        f'the feature extractor: {EXTRACTOR_WORDS} (default: tensor for '
        'data other than pictures, classifier for labelled data, else inception)',
    )
    dataset: Any = setting(
        None, f"the reference set (default: the model's data set): {DATASET_WORDS}", parse=str
    )
    reference_n: int = setting(50_000, 'maximum number of its pictures')
    out: str | os.PathLike[str] | None = setting(
        None, 'folder to write to (default: evaluation beside the checkpoint)'
    )
    batch_size: int = setting(64, 'samples per batch')
    steps: int | None = setting(None, "number of steps of the sampler (default: the config's)")
    sampler: Any = setting(
        None,
        "the sampler (default: the config's, else the recommended one for the number of steps), or "
        'FILE.py:FUNCTION, one of your own (see allow_code)',
        parse=str,
    )
    schedule: str | None = setting(
        None,
        "the spacing of noise levels (default: the config's, else that of the recommended sampler)",
    )
    guidance: float | None = setting(None, "classifier-free guidance scale (default: the config's)")
    seed: int = setting(0, 'sample i depends on (seed, i) alone')
    blocks: int | None = setting(
        None,
        'parts of the jackknife that gives fid its error, intervals and unbiased value, at the '
        'cost of as many '
        'distances; 0: none (default: 20 for at most 512 features, else 0)',
    )
    cache: str | os.PathLike[str] | None = setting(
        None, "the folder of cached reference features (default: the user's cache folder)"
    )

    def __post_init__(self) -> None:
        check_settings(are_lists(self, 'metrics'))
        unknown_metrics = [name for name in self.metrics if name not in (COPIES, *METRICS)]
        check_settings(
            at_least(self, 2, 'n', 'batch_size', 'reference_n'),
            at_least(self, 1, 'steps'),
            find_sampler_problem(self.sampler),
            one_of(self, BETWEEN, 'schedule'),
            f'blocks must be 0 (no interval) or at least 2; got {self.blocks}'
            if self.blocks is not None and (self.blocks < 0 or self.blocks == 1)
            else None,
            'metrics must be names of metrics; '
            f'{unknown("metric", unknown_metrics[0], [COPIES, *METRICS])}'
            if unknown_metrics
            else None,
        )


@takes_settings(EvaluationSettings)
def evaluate(settings: EvaluationSettings) -> Evaluation:
    """Draw samples, compare their features with a reference set, and write the values as JSON.

    The features of the samples are kept in the folder in pieces; the same call continues an
    evaluation that was stopped.

    Args:
        settings: The settings, or the fields of EvaluationSettings as arguments. `extractor` may
            also be a function from pictures [B, C, H, W] in [-1, 1], or tensors [B, C, ...] in the
            units of the data, to features [B, D]; `dataset` a tensor or a torch data set of
            pictures; `sampler` a function.

    Returns:
        The values and the files. In a launch of several processes, only the first returns values.

    Raises:
        FileNotFoundError: The checkpoint or the extractor does not exist.
        ValueError: A setting is wrong or does not fit the model.
    """
    with world() as processes:
        task = _Task(settings, processes)
        fake = task.compute_features()
        if processes.main:
            evaluation = task.measure(fake)
        else:
            evaluation = Evaluation({}, task.facts, task.folder / 'metrics.json', None)
        processes.wait()
    return evaluation


class _Task:
    """An evaluation: the model, the reference set, its features and the extractor."""

    def __init__(self, settings: EvaluationSettings, processes: World) -> None:
        self.settings, self.processes = settings, processes
        self.path = find_checkpoint(settings.checkpoint, settings.verify)
        denoiser, experiment, self.device = open_model(settings, processes.device(settings.device))
        sections = experiment.sections
        self.folder = (
            Path(settings.out) if settings.out is not None else self.path.parent / 'evaluation'
        )
        self.cache = (
            Path(settings.cache) if settings.cache is not None else cache_folder() / 'evaluation'
        )
        self.training_set = lru_cache(
            lambda: open_reference(
                experiment, None, settings.allow_code, self.path.parent, self.device
            )
        )
        reference = (
            self.training_set()
            if settings.dataset is None
            else open_reference(
                experiment, settings.dataset, settings.allow_code, device=self.device
            )
        )
        self.pictures = experiment.gives_pictures
        default = 'classifier' if sections.dataset.num_classes else 'inception'
        self._compare_with(
            reference, settings.extractor or (default if self.pictures else 'tensor')
        )
        name, own = load_sampler(settings.sampler, settings.allow_code)
        sampling = choose_sampling(
            vars(sections.sampling),
            sampler=name,
            steps=settings.steps,
            schedule=settings.schedule,
            guidance=settings.guidance,
        )
        self.draw = Draw(
            denoiser,
            experiment,
            sampling,
            settings.seed,
            classes_of(reference, self.indices),
            settings.batch_size,
            self.device,
            own,
        )
        sampler = self.draw.sampler if own is None else find_sampler(own).name
        self.facts |= {'seed': settings.seed, **dataclasses.asdict(sampling), 'sampler': sampler}

    def _compare_with(self, reference: Dataset, extractor: Any) -> None:
        self.indices = choose_pictures(reference, self.settings.reference_n)
        with self.processes.main_first():
            self.extractor = (
                extractor
                if callable(extractor)
                else make_extractor(
                    extractor,
                    self.training_set,
                    self.cache,
                    self.device,
                    self.say,
                    self.settings.allow_code,
                )
            )
            self.real = self._reference_features(reference, self.indices)
        self.facts = {
            'checkpoint': str(self.path),
            'n': self.settings.n,
            'reference': reference.source,
            'reference_n': len(self.indices),
            'extractor': extractor
            if isinstance(extractor, str)
            else getattr(extractor, '__name__', type(extractor).__name__),
            'features': self.real.shape[1],
        }

    def _reference_features(self, dataset: Dataset, indices: Sequence[int]) -> Tensor:
        return reference_features(
            dataset,
            indices,
            self.extractor,
            self.cache,
            self.settings.batch_size,
            self.device,
            self.pictures,
        )

    def say(self, text: str) -> None:
        """Log `text` on the first process."""
        if self.settings.show and self.processes.main:
            _LOG.info('%s', text)

    def compute_features(self) -> Tensor:
        """Return the features of the samples [N, D]."""
        n = self.settings.n
        self.say(
            f'{n:,} samples by {self.facts["sampler"]}, {self.facts["steps"]} steps, '
            f'against {len(self.indices):,} pictures of {self.facts["reference"]}'
        )
        determined_by = {
            **self.facts,
            'n': 0,
            'levels': 256 if self.pictures else None,
            'checkpoint': digest_of(self.path),
            'ema': self.settings.ema,
            'code': [digest_code(self.settings.network), digest_code(self.settings.sampler)],
            'classes': self.draw.labels,
            'extractor': getattr(self.extractor, 'fingerprint', self.facts['extractor']),
        }
        key = hashlib.blake2b(repr(determined_by).encode(), digest_size=8).hexdigest()
        show = self.settings.show and self.processes.main
        with show_progress('evaluate', share_of(n, self.processes), 'image', show) as bar:
            return in_pieces(
                self.folder / f'pieces-{key}',
                n,
                self._piece,
                self.processes,
                lambda done: bar.update(done - bar.n),
            )

    @torch.no_grad()
    def _piece(self, items: Sequence[int]) -> Tensor:
        batches = self.draw(items).split(self.settings.batch_size)
        return torch.cat([self.extractor(batch.to(self.device)).float().cpu() for batch in batches])

    def measure(self, fake: Tensor) -> Evaluation:
        """Compute the metrics of features [N, D] of samples and write them."""
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
            shares, picture = self._find_copies(fake)
            values |= shares
        write_json(self.folder / 'metrics.json', {**values, **self.facts})
        if caution(settings.n) and 'fid' in values:
            warnings.warn(str(caution(settings.n)), stacklevel=4)
        return Evaluation(values, self.facts, self.folder / 'metrics.json', picture)

    def _find_copies(self, fake: Tensor) -> tuple[dict[str, float], Path]:
        """Return the share of samples that copy training pictures, and a picture of the closest."""
        training_set = self.training_set()
        indices = choose_pictures(training_set, self.settings.reference_n)
        neighbours = nearest_neighbours(fake, self._reference_features(training_set, indices))
        most = neighbours.ratio.argsort()[:PAIRS].tolist()
        near = torch.stack([training_set[indices[int(neighbours.index[i])]]['image'] for i in most])
        fakes = self.draw(most)
        if self.pictures:
            near = from_bytes(near)
        else:
            fakes, near = show_tensors(torch.cat([fakes, near])).chunk(2)
        pairs = Neighbours(
            torch.arange(len(most)), neighbours.distance[most], neighbours.ratio[most]
        )
        save_image(self.folder / 'copies.png', neighbour_picture(fakes, near, pairs))
        return {
            'copies': neighbours.copies(),
            'nearest_ratio': neighbours.ratio.median().item(),
        }, self.folder / 'copies.png'
