"""k-diffusion likelihood: how many bits per dimension pictures take under a trained model."""
from __future__ import annotations

import dataclasses
import hashlib
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..config import find_checkpoint, load_model
from ..core.files import digest_of, whole_file, write_json
from ..core.memory import keep_freed_memory
from ..core.plots import plot_histogram
from ..core.random import derive_seed
from ..evaluation import image_bits
from .processes import World, in_pieces, share_of, world
from .progress import show_progress
from .reference import chosen_pictures, classes_of, open_reference


@dataclasses.dataclass(frozen=True)
class Likelihood:
    """What `likelihood` found: bits per dimension of each picture, their mean and its standard error, and the files."""

    bits: list[float]
    mean: float
    stderr: float
    csv: Path
    histogram: Path


@dataclasses.dataclass(frozen=True)
class LikelihoodSettings:
    """What `likelihood` can be told; the flags of `k-diffusion likelihood` bear these names."""

    checkpoint: str | os.PathLike[str]      # a .pth or .safetensors file, or a run's folder (its latest checkpoint)
    dataset: str | None = None              # whose pictures (default: the config's own data set)
    n: int = 1000                           # how many of them, drawn from the seed
    steps: int = 32                         # of the solver, each of 4 model calls
    probes: int = 1                         # of the trace, per model call
    exact: bool = False                     # the exact trace: as many backward passes as a picture has elements
    points: int = 1                         # dequantised points per picture
    sigma_min: float | None = None          # of the density: the data with so much noise (default: the config's)
    unconditional: bool = False             # do not tell the model the classes
    out: str | os.PathLike[str] | None = None   # folder to write to (default: likelihood beside the checkpoint)
    config: str | None = None               # the config, where the checkpoint carries none
    batch_size: int = 64                    # how many pictures at a time
    seed: int = 0                           # what is drawn for a picture depends on it and the picture alone
    device: str | None = None               # cpu, cuda, mps (default: the fastest there is)
    ema: bool = True                        # the averaged weights, or the raw ones of a .pth
    allow_code: bool = False                # whether a "custom" data set may run its file
    verify: bool = True                     # compare the checkpoint with the manifest beside it
    show: bool = True                       # words and a progress bar on stderr

    def __post_init__(self) -> None:
        for name in ('n', 'steps', 'probes', 'points', 'batch_size'):
            if getattr(self, name) < 1:
                raise ValueError(f'-{"-" * (name != "n")}{name.replace("_", "-")} is {getattr(self, name)}; it must be at least 1')


def likelihood(settings: LikelihoodSettings) -> Likelihood:
    """Bits per dimension of n pictures: written as a table, a histogram and a summary.

    A picture of 8-bit levels v is taken as (v + u) / 127.5 - 1 with u uniform in [-1/2, 1/2), and its density p under the model
    with noise of sigma_min as -log2 p / dimensions + log2 127.5 bits. The prior has the config's sigma_data.
    """
    with world() as processes:
        task = _Task(settings, processes)
        show = settings.show and processes.main
        if show:
            print(f'{len(task.indices):,} pictures of {task.pictures.source}, {4 * settings.steps * settings.points} model calls each',
                  file=sys.stderr, flush=True)
        share = share_of(len(task.indices), processes)
        with show_progress('likelihood', share, 'image', show) as bar:
            bits = in_pieces(task.pieces, len(task.indices), task.bits, processes, lambda done: bar.update(done - bar.n))
        found = _summary(bits.double(), task.folder)
        if processes.main:
            _write(found, task)
        processes.wait()
    return found


class _Task:
    """The model, the pictures and what it is told of them."""

    def __init__(self, settings: LikelihoodSettings, processes: World) -> None:
        self.settings = settings
        path = find_checkpoint(settings.checkpoint)
        self.device = processes.device(settings.device)
        if self.device.type == 'cpu':
            keep_freed_memory()
        self.denoiser, config = load_model(path, self.device, settings.config, settings.ema,
                                           settings.verify)
        if config['encoder']['type'] != 'pixels' or config['conditions']:
            raise ValueError(f'{path} diffuses latents or is told more than classes, and bits per dimension are of pixels given a class at '
                             'most; take K.sampling.log_likelihood for the density of latents')
        self.pictures = open_reference(config, settings.dataset, settings.allow_code, path.parent)
        self.indices = chosen_pictures(self.pictures, settings.n, settings.seed)
        labels, known = classes_of(self.pictures, self.indices), config['dataset']['num_classes']
        if known and labels and max(labels) >= known and not settings.unconditional:
            raise ValueError(f'{self.pictures.source} has the class {max(labels)} and the model knows {known} classes; '
                             'give pictures of its own classes, or --unconditional')
        none_told = settings.unconditional or not labels
        self.classes = None if not known else [known] * len(self.indices) if none_told else labels
        low = config['model']['sigma_min'] if settings.sigma_min is None else settings.sigma_min
        self.range, self.data_std = (low, config['model']['sigma_max']), config['model']['sigma_data']
        self.folder = Path(settings.out) if settings.out is not None else path.parent / 'likelihood'
        self.facts = {'checkpoint': digest_of(path), 'data': self.pictures.source, 'steps': settings.steps, 'probes': settings.probes,
                      'exact': settings.exact, 'points': settings.points, 'sigma': list(self.range), 'seed': settings.seed,
                      'unconditional': settings.unconditional, 'ema': settings.ema}
        determined_by = repr((self.facts, self.classes, self.indices))
        self.pieces = self.folder / f'pieces-{hashlib.blake2b(determined_by.encode(), digest_size=8).hexdigest()}'

    def bits(self, items: Sequence[int]) -> Tensor:
        """Bits per dimension of the chosen pictures at these places."""
        settings, indices = self.settings, [self.indices[i] for i in items]
        cond = None if self.classes is None else {'class_cond': torch.tensor([self.classes[i] for i in items])}
        return image_bits(self.denoiser, torch.stack([self.pictures[i]['image'] for i in indices]), *self.range,
                          [derive_seed(settings.seed, 'picture', i) for i in indices], cond, points=settings.points,
                          steps=settings.steps, probes=settings.probes, trace='exact' if settings.exact else 'probes',
                          data_std=self.data_std, batch_size=settings.batch_size, device=self.device)


def _summary(bits: Tensor, folder: Path) -> Likelihood:
    stderr = bits.std().item() / math.sqrt(len(bits)) if len(bits) > 1 else math.nan
    return Likelihood(bits.tolist(), bits.mean().item(), stderr, folder / 'bits.csv', folder / 'bits.svg')


def _write(found: Likelihood, task: _Task) -> None:
    n = len(found.bits)
    with whole_file(found.csv) as temporary:
        rows = [f'{index},{"" if task.classes is None else task.classes[i]},{found.bits[i]:.6f}\n' for i, index in enumerate(task.indices)]
        temporary.write_text('picture,class,bits_per_dim\n' + ''.join(rows))
    plot_histogram(found.histogram, found.bits, f'{n:,} pictures, mean {found.mean:.4f}', 'bits per dimension')
    stderr = None if math.isnan(found.stderr) else found.stderr
    write_json(task.folder / 'bits.json', {'bits_per_dim': found.mean, 'stderr': stderr, 'n': n, **task.facts})
