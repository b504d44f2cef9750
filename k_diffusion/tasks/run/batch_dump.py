"""Write the batch of a step whose loss is not a number.

When a loss is fetched, its batch is already gone. The batch is a function of the seed and of
positions in the stream, so it is made again.
"""

from __future__ import annotations

import copy
import itertools
import json
import math
import warnings
from collections.abc import Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...core.weights import save_safetensors
from ...data import RowStream, StreamLoader
from ...training import Trainer
from .objective import Objective


class BatchDump:
    """Write NAME_nan_STEP.safetensors for the first steps whose loss is not a number.

    It contains the clean batch `image` [B, C, ...], `noise`, `sigma` [B], `u` [B] (its quantiles),
    `item` [B] (positions in the stream), `index` [B] (items of the data set) and the conditions as
    `cond.NAME`; step, loss, seed and draws of the run and texts are metadata. For a stream that can
    only be read in order, it contains `item` and `u` alone. Each process writes its own share.

    Args:
        folder: The folder of the run.
        name: The run.
        most: The maximum number of files, including those of earlier starts.
    """

    every = 0

    def __init__(self, folder: Path, name: str, most: int) -> None:
        self.folder, self.name, self.most = folder, name, most

    def __call__(self, trainer: Trainer) -> None:
        """Do nothing: the hook acts when losses are fetched."""

    def see_losses(self, trainer: Trainer, losses: Sequence[tuple[int, float]]) -> None:
        """Write the batches of `trainer` whose `losses`, pairs of step and loss, are not finite."""
        for step, loss in losses:
            rank = trainer.accelerator.process_index
            mine = f'_rank{rank}' if trainer.accelerator.num_processes > 1 else ''
            count = len(list(self.folder.glob(f'{self.name}_nan_*{mine}.safetensors')))
            if math.isfinite(loss) or count >= self.most:
                continue
            path = self.folder / f'{self.name}_nan_{step:08}{mine}.safetensors'
            try:
                tensors, texts = make_again(trainer, step)
                facts = {'step': str(step), 'loss': str(loss), 'seed': str(trainer.seed)}
                facts['draws'] = str(trainer.draws.version)
                save_safetensors(path, tensors, None, {**facts, **texts})
            except Exception as error:  # (data of a user's own may raise anything)
                warnings.warn(
                    f'the batch of step {step} could not be written ({error}); training continues',
                    stacklevel=2,
                )


def make_again(trainer: Trainer, step: int) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the batch of this process in one of the last steps.

    Args:
        trainer: The trainer.
        step: The step.

    Returns:
        Tensors by name, and texts by name.
    """
    first = trainer.items_of(step)
    quantiles = trainer.quantiles(first)
    parts: dict[str, list[Tensor]] = {}
    texts: list[str] = []
    with closing(_batches(trainer, first)) as batches:
        for batch in itertools.islice(batches, trainer.grad_accum_steps):
            u = quantiles[batch['item'] - first]
            texts += batch.get('text', [])
            for key, value in _contents(trainer, {**batch, 'u': u}).items():
                parts.setdefault(key, []).append(value.detach().cpu())
    tensors = {key: torch.cat(values) for key, values in parts.items()}
    return tensors, {'texts': json.dumps(texts)} if texts else {}


def _batches(trainer: Trainer, first: int) -> Generator[dict[str, Any], None, None]:
    """Yield the batches of a step again; for streams only the positions of their items."""
    loader = copy.copy(trainer.loader)
    if isinstance(loader, StreamLoader) or isinstance(getattr(loader, 'dataset', None), RowStream):
        size = loader.items_per_step // trainer.grad_accum_steps
        size //= trainer.accelerator.num_processes
        for micro in itertools.count():
            rank = micro * trainer.accelerator.num_processes + trainer.accelerator.process_index
            yield {'item': torch.arange(first + rank * size, first + (rank + 1) * size)}
    if hasattr(loader, 'num_workers'):
        loader.num_workers = 0
    yield from loader.iterate(first)


def _contents(trainer: Trainer, batch: dict[str, Any]) -> dict[str, Tensor]:
    """Return the tensors of a batch and the inputs of its loss."""
    tensors = {'item': batch['item'], 'u': batch['u']}
    tensors |= {key: batch[key] for key in ('index', 'image') if key in batch}
    if 'image' in batch and isinstance(trainer.loss, Objective):
        x, noise, sigma, cond = trainer.loss.prepare(batch)
        tensors |= {'image': x, 'noise': noise, 'sigma': sigma}
        tensors |= {f'cond.{key}': v for key, v in cond.items() if isinstance(v, Tensor)}
    return tensors
