"""Load the data of a training run: its loader, and the conditions that demo grids use."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from ...augmentation import BatchedAugmentation
from ...config import Experiment
from ...core.draws import Draws
from ...core.images import from_bytes
from ...core.random import derive_seed
from ...data import (
    Dataset,
    Loader,
    PythonData,
    RowStream,
    StreamData,
    StreamLoader,
    read_items,
)
from ...training import RunFolder
from .display import Display
from .held_out import items_to_train_on
from .settings import TrainSettings


def make_loader(
    settings: TrainSettings,
    experiment: Experiment,
    accelerator: Any,
    seed: int,
    folder: RunFolder,
    display: Display,
) -> Loader | StreamLoader:
    """Open the data set of a run, report its size and classes, and return its loader.

    Args:
        settings: The settings of the run.
        experiment: The config with its parts.
        accelerator: accelerate's Accelerator, for rank and device.
        seed: The seed of the order of the items.
        folder: The folder of the run, whose `cache` keeps encoded items.
        display: Where size, classes and notes of the data set are reported.

    Returns:
        The loader of the items that training may use.
    """
    dataset = experiment.dataset(
        accelerator.device, folder.path / 'cache', settings.allow_code, display.decoding
    )
    sections = experiment.sections
    batch_size = settings.batch_size or sections.training.batch_size
    indices = items_to_train_on(settings, experiment, dataset)
    if isinstance(dataset, StreamData):
        return StreamLoader(
            dataset,
            batch_size,
            accelerator.process_index,
            accelerator.num_processes,
            settings.grad_accum_steps,
            accelerator.device,
        )
    count = 'a stream of' if isinstance(dataset, RowStream) else f'{len(dataset):,}'
    display.say(
        f'{count} {"items" if isinstance(dataset, PythonData) else "images"}'
        + _describe_classes(dataset.class_names, sections.dataset.num_classes)
    )
    for note in dataset.notes:
        display.say(f'note: {note}')
    probability = sections.model.augment_prob
    augmentation = BatchedAugmentation(probability) if probability else None
    workers = min(settings.num_workers, os.cpu_count() or 1)
    return Loader(
        dataset,
        batch_size,
        seed=seed,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        grad_accum_steps=settings.grad_accum_steps,
        augmentation=augmentation,
        num_workers=workers,
        start_method=settings.start_method,
        device=accelerator.device,
        worker_timeout=settings.worker_timeout or None,
        item_indices=indices,
    )


def _describe_classes(names: list[str], num_classes: int) -> str:
    """Return the classes of a data set in words, with a note where the model uses others."""
    if not names:
        return ''
    text = ', '.join(f'{i} {name}' for i, name in enumerate(names[:10]))
    numbers = names == [str(i) for i in range(len(names))]
    class_text = '' if numbers else f': {text}' + (', ...' if len(names) > 10 else '')
    unused = ' (unused: dataset.num_classes is 0)' if not num_classes else ''
    never = ''
    if num_classes > len(names):
        never = f' (the model has {num_classes} classes, so some are never seen)'
    return f' in {len(names)} classes{class_text}{unused}{never}'


def read_first_conditions(
    conditions: Any, dataset: Dataset, n: int, draws: Draws
) -> dict[str, Tensor]:
    """Return the conditions of the first n items, for demo grids.

    Args:
        conditions: The conditions of the model, pairs of a name and a condition.
        dataset: The data set of the run.
        n: The number of items; those of a smaller data set are repeated.
        draws: The random numbers of the run.

    Returns:
        The conditions by name, without class labels, which demo grids draw themselves.
    """
    indices = [i % len(dataset) for i in range(n)]
    if conditions or not isinstance(dataset, PythonData):
        return _prepare_conditions(conditions, dataset, indices, draws) if conditions else {}
    items = dataset.read(indices, [derive_seed(draws.seed, 'demo', i) for i in range(n)])
    excluded = ('image', 'class_cond') if dataset.num_classes else ('image',)
    return {
        key: value
        for key, value in items.items()
        if key not in excluded and isinstance(value, Tensor)
    }


def _prepare_conditions(
    conditions: Any, dataset: Dataset, indices: list[int], draws: Draws
) -> dict[str, Tensor]:
    images, labels, index, _, texts = read_items(dataset, indices)
    batch = {
        'image': from_bytes(images) if images.dtype == torch.uint8 else images,
        'index': index,
        'item': torch.arange(len(indices)),
        'class_cond': labels,
        'text': texts,
    }
    tensors: dict[str, Tensor] = {}
    for _, condition in conditions:
        tensors.update(condition.prepare(batch, draws))
    return tensors
