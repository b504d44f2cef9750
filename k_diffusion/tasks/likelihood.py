"""Compute the bits per dimension of pictures under a trained model."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import find_checkpoint
from ..core.files import digest_of, whole_file, write_json
from ..core.plots import plot_histogram
from ..core.python_files import digest_code
from ..core.random import derive_seed
from ..core.settings import at_least, check_settings, setting, takes_settings
from ..evaluation import image_bits
from .model import ModelSettings, open_model, refuse_flow_map
from .processes import World, in_pieces, share_of, world
from .progress import show_progress
from .reference import DATASET_WORDS, choose_pictures, classes_of, open_reference

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Likelihood:
    """Result of `likelihood`.

    Attributes:
        bits: Bits per dimension of each picture.
        mean: Their mean.
        stderr: Its standard error.
        csv: The file of the values.
        histogram: Their histogram, a .svg file.
    """

    bits: list[float]
    mean: float
    stderr: float
    csv: Path
    histogram: Path


@dataclasses.dataclass(frozen=True)
class LikelihoodSettings(ModelSettings):
    """Settings of `likelihood`."""

    checkpoint: str | os.PathLike[str] = setting(
        help="a .pth or .safetensors file, a run's folder (its latest checkpoint), or a URL of one"
    )
    dataset: Any = setting(
        None, f"the pictures (default: the model's data set): {DATASET_WORDS}", parse=str
    )
    n: int = setting(1000, 'number of pictures, drawn from the seed', flags=('-n',))
    steps: int = setting(32, 'number of steps of the solver, each of 4 model calls')
    probes: int = setting(1, 'number of probes of the trace per model call')
    exact: bool = setting(
        False, 'compute the exact trace, by one backward pass for each element of a picture'
    )
    points: int = setting(1, 'number of dequantised points per picture; more tighten the bound')
    sigma_min: float | None = setting(
        None, "the noise level of the data whose density is computed (default: the config's)"
    )
    unconditional: bool = setting(False, 'evaluate the model without classes')
    out: str | os.PathLike[str] | None = setting(
        None, 'folder to write to (default: likelihood beside the checkpoint)'
    )
    batch_size: int = setting(64, 'pictures per batch')
    seed: int = setting(0, 'the noise of a picture depends on the seed and the picture alone')

    def __post_init__(self) -> None:
        check_settings(at_least(self, 1, 'n', 'steps', 'probes', 'points', 'batch_size'))


@takes_settings(LikelihoodSettings)
def likelihood(settings: LikelihoodSettings) -> Likelihood:
    """Compute the bits per dimension of pictures under a trained model.

    It writes a table, a histogram and a summary. A picture of 8-bit levels v is taken as (v + u) /
    127.5 - 1 with u uniform in [-1/2, 1/2), and its density p under the model with noise of
    sigma_min as -log2 p / dimensions + log2 127.5 bits. The prior has the config's sigma_data.

    Args:
        settings: The settings, or the fields of LikelihoodSettings as arguments; `dataset` may be a
            tensor or a torch data set of pictures.

    Returns:
        The bits per dimension of each picture, their mean and its standard error, and the files.

    Raises:
        FileNotFoundError: The checkpoint does not exist.
        ValueError: A setting is wrong, or does not fit the model or the pictures.
    """
    with world() as processes:
        task = _Task(settings, processes)
        n, show = len(task.indices), settings.show and processes.main
        if show:
            _LOG.info(
                '%s pictures of %s, %d model calls each',
                f'{n:,}',
                task.pictures.source,
                4 * settings.steps * settings.points,
            )
        with show_progress('likelihood', share_of(n, processes), 'image', show) as bar:
            bits = in_pieces(
                task.pieces, n, task.compute_bits, processes, lambda done: bar.update(done - bar.n)
            )
        result = _summarise(bits.double(), task.folder)
        if processes.main:
            _write(result, task)
        processes.wait()
    return result


class _Task:
    """The model, the pictures and their classes."""

    def __init__(self, settings: LikelihoodSettings, processes: World) -> None:
        self.settings = settings
        path = find_checkpoint(settings.checkpoint, settings.verify)
        self.denoiser, experiment, self.device = open_model(
            settings, processes.device(settings.device)
        )
        refuse_flow_map(self.denoiser, settings.checkpoint)
        sections = experiment.sections
        model = sections.model
        if sections.encoder.type != 'pixels' or sections.conditions:
            raise ValueError(
                'checkpoint must be of a model of pixels without conditions besides classes; '
                f'{path} is not. '
                'K.sampling.log_likelihood gives the density of latents'
            )
        if not experiment.gives_pictures:
            raise ValueError(
                f'checkpoint must be of a model of pictures; {path} is of a model of tensors. '
                'K.sampling.log_likelihood gives their density'
            )
        self.pictures = open_reference(
            experiment, settings.dataset, settings.allow_code, path.parent
        )
        self.indices = choose_pictures(self.pictures, settings.n, settings.seed)
        labels, num_classes = classes_of(self.pictures, self.indices), sections.dataset.num_classes
        if num_classes and labels and max(labels) >= num_classes and not settings.unconditional:
            raise ValueError(
                f'dataset must have classes below {num_classes}, the number of classes of the '
                f'model; {self.pictures.source} has class {max(labels)}. Give pictures of its '
                'classes, or pass unconditional=True'
            )
        unknown_class = settings.unconditional or not labels
        self.classes = (
            None
            if not num_classes
            else [num_classes] * len(self.indices)
            if unknown_class
            else labels
        )
        low = model.sigma_min if settings.sigma_min is None else settings.sigma_min
        self.range, self.data_std = (low, model.sigma_max), model.sigma_data
        self.folder = Path(settings.out) if settings.out is not None else path.parent / 'likelihood'
        self.facts = {
            'checkpoint': digest_of(path),
            'data': self.pictures.source,
            'steps': settings.steps,
            'probes': settings.probes,
            'exact': settings.exact,
            'points': settings.points,
            'sigma': list(self.range),
            'seed': settings.seed,
            'unconditional': settings.unconditional,
            'ema': settings.ema,
        }
        determined_by = repr(
            (self.facts, self.classes, self.indices, digest_code(settings.network))
        )
        self.pieces = (
            self.folder
            / f'pieces-{hashlib.blake2b(determined_by.encode(), digest_size=8).hexdigest()}'
        )

    def compute_bits(self, items: Sequence[int]) -> Tensor:
        """Return the bits per dimension of the pictures at some positions of the list."""
        settings, indices = self.settings, [self.indices[i] for i in items]
        cond = (
            None
            if self.classes is None
            else {'class_cond': torch.tensor([self.classes[i] for i in items])}
        )
        return image_bits(
            self.denoiser,
            torch.stack([self.pictures[i]['image'] for i in indices]),
            *self.range,
            [derive_seed(settings.seed, 'picture', i) for i in indices],
            cond,
            points=settings.points,
            steps=settings.steps,
            probes=settings.probes,
            trace='exact' if settings.exact else 'probes',
            data_std=self.data_std,
            batch_size=settings.batch_size,
            device=self.device,
        )


def _summarise(bits: Tensor, folder: Path) -> Likelihood:
    stderr = bits.std().item() / math.sqrt(len(bits)) if len(bits) > 1 else math.nan
    return Likelihood(
        bits.tolist(), bits.mean().item(), stderr, folder / 'bits.csv', folder / 'bits.svg'
    )


def _write(result: Likelihood, task: _Task) -> None:
    n = len(result.bits)
    with whole_file(result.csv) as temporary:
        rows = [
            f'{index},{"" if task.classes is None else task.classes[i]},{result.bits[i]:.6f}\n'
            for i, index in enumerate(task.indices)
        ]
        temporary.write_text('picture,class,bits_per_dim\n' + ''.join(rows))
    plot_histogram(
        result.histogram,
        result.bits,
        f'{n:,} pictures, mean {result.mean:.4f}',
        'bits per dimension',
    )
    stderr = None if math.isnan(result.stderr) else result.stderr
    write_json(
        task.folder / 'bits.json',
        {'bits_per_dim': result.mean, 'stderr': stderr, 'n': n, **task.facts},
    )
