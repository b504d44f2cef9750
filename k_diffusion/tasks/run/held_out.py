"""The loss on items that are not trained on, at fixed noise levels and with fixed noise."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...config import Experiment
from ...config.conditioning import Conditions, conditions_of
from ...config.latents import encode_dataset, picture_frame
from ...core.draws import Draws
from ...core.modules import eval_mode
from ...core.random import generator
from ...data import (
    Dataset,
    DatasetConfig,
    Images,
    Loader,
    StreamData,
    StreamLoader,
    as_dataset,
    open_dataset,
    read_items,
)
from ...training import StopAsked, Trainer
from ..reference import read_held_out_section
from .objective import Objective
from .settings import TrainSettings

#: Of a data set so many items are measured at most; of the training set as many as are held out.
MOST = 1024
#: Items of a forward pass, whatever the batch size of the run, and ranges of noise levels.
CHUNK, BINS = 32, 8
#: Of noise and levels, whatever the seed of the run, so that runs can be compared.
SEED = 0


def split_items(n: int, held_out: int) -> tuple[Tensor, Tensor]:
    """Return the held-out items and the items of training, of n items, each int64 in order.

    The choice depends on the two numbers alone.

    Args:
        n: The number of items.
        held_out: How many of them are held out.

    Raises:
        ValueError: No item would be left to train on.
    """
    if held_out >= n:
        raise ValueError(
            f'held_out must be below the {n:,} items of the data set; got {held_out:,}'
        )
    order = torch.randperm(n, generator=generator(SEED, 'held-out items'))
    return order[:held_out].sort().values, order[held_out:].sort().values


def fixed_quantiles(n: int) -> Tensor:
    """Return the quantiles of the noise density of n items, float64 [n].

    They are the middles of n equal strata in an order drawn once.
    """
    order = torch.randperm(n, generator=generator(SEED, 'held-out levels', n))
    return (order + 0.5) / n


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Held-out items: a data set, how many are measured, which they may be, their conditions."""

    dataset: Dataset
    n: int
    item_indices: Tensor | None  # the numbers that are held out of this data set; None: any
    conditions: Conditions

    def loader(self, accelerator: Any) -> Loader | StreamLoader:
        """Return the chunks of this process of `accelerator`, each of at most CHUNK items."""
        rank, world = accelerator.process_index, accelerator.num_processes
        size = min(CHUNK, self.n)
        if isinstance(self.dataset, StreamData):
            return StreamLoader(self.dataset, size, rank, world, device=accelerator.device)
        loader = Loader(
            self.dataset, size, SEED, device=accelerator.device, item_indices=self.item_indices
        )
        loader.rank, loader.world_size = rank, world  # (a pass may be shorter than the processes)
        return loader


def open_held_out(
    experiment: Experiment,
    which: Any,
    cache_dir: Path,
    allow_code: bool = False,
    num_classes: int = 0,
    device: Any = 'cpu',
) -> HeldOut:
    """Open a data set of held-out items, encoded and scaled as the training set is.

    Args:
        experiment: The experiment of the run, its data set open.
        which: A text as `read_held_out_section` takes it, a section, or data from Python.
        cache_dir: Where latents are kept.
        allow_code: Let a "custom" data set run its Python file.
        num_classes: The number of classes of labels of data from Python.
        device: Where pictures are encoded.

    Raises:
        ValueError: Its items are not those that the model takes.
    """
    sections, encoder = experiment.sections, experiment.encoder(device)
    if isinstance(which, (str, os.PathLike)):
        which = read_held_out_section(str(which), sections)
    if isinstance(which, DatasetConfig):
        frame = picture_frame(sections.model, encoder)
        dataset = open_dataset(which, *frame, experiment.base, allow_code, memory_limit=0)
    else:
        dataset = as_dataset(which, num_classes)
    names = experiment.dataset().class_names
    if sections.dataset.num_classes and dataset.class_names != names:
        raise ValueError(
            f'held_out must have the classes of the training set, {", ".join(names[:10])}; got '
            f'{", ".join(dataset.class_names[:10]) or "none"}'
        )
    if encoder is not None or sections.conditions:
        dataset = _in_memory(dataset)
    if encoder is not None:
        dataset = encode_dataset(dataset, encoder, cache_dir, device)
    if list(dataset.image_shape) != experiment.shape:
        raise ValueError(
            f'held_out must hold items of the shape {experiment.shape}; got '
            f'{list(dataset.image_shape)}'
        )
    conditions = conditions_of(sections, dataset, device)
    n = MOST if isinstance(dataset, StreamData) else min(MOST, len(dataset))
    if not n:
        raise ValueError('held_out must hold at least one item; got none')
    return HeldOut(dataset, n, None, conditions)


def _in_memory(dataset: Dataset) -> Dataset:
    """Return at most MOST pictures of a data set, decoded; tensors as they are."""
    if len(dataset.image_shape) != 3 or dataset.streams:
        return dataset
    numbers = dataset.order(SEED, 0, 0, min(MOST, len(dataset))).sort().values
    batch = read_items(dataset, numbers.tolist())
    return Images(batch.images, batch.labels, dataset.class_names, dataset.source)


def items_to_train_on(
    settings: TrainSettings, experiment: Experiment, dataset: Dataset
) -> Tensor | None:
    """Return the numbers of the items that are not held out; None if all are trained on.

    Args:
        settings: The settings of the run.
        experiment: Its experiment.
        dataset: Its data set.

    Raises:
        ValueError: The items of a stream are to be held out, or all items.
    """
    count = choose_held_out(settings, experiment)
    if not isinstance(count, int) or not count:
        return None
    if dataset.streams or isinstance(dataset, StreamData):
        raise ValueError(
            f'held_out must name another data set, since {dataset.source} is read as a stream; '
            f'got {count}'
        )
    return split_items(len(dataset), count)[1]


def choose_held_out(settings: TrainSettings, experiment: Experiment) -> Any:
    """Return the held-out items: a number of items, a data set, or None for the default.

    The value in `settings` takes precedence over that of `experiment`.
    """
    training = experiment.sections.training
    return training.held_out if settings.held_out is None else settings.held_out


@dataclasses.dataclass
class HeldOutLoss:
    """Measure the loss of the averaged model on held-out items, for the log.

    Item i has the same noise and the same noise level each time, in chunks of a fixed size, no
    condition is dropped, and the generators of training are not used: the value depends on the
    weights alone. It is a part of the Trainer under 'held_out'.
    """

    every: int
    denoiser: nn.Module
    items: HeldOut
    loss: Objective
    say: Callable[[str], None]
    task = 'held-out loss'

    def __post_init__(self) -> None:
        self.values: dict[str, Any] = {}
        self._logged_at: int | None = None

    def __call__(self, trainer: Trainer) -> None:
        losses = self.measure(trainer.accelerator, trainer.stop_asked)
        total, by_noise = summarize(losses)
        self.values = {
            'held_out_loss': total,
            'held_out_loss_by_noise': by_noise,
            'held_out_step': trainer.step,
        }
        self._logged_at = None
        text = 'not a number' if total is None else f'{total:.4f}'
        self.say(f'step {trainer.step:,}: held-out loss {text} ({self.items.n:,} items)')

    def measure(self, accelerator: Any, stop_asked: Callable[[], bool] = lambda: False) -> Tensor:
        """Return the loss [n] of each item, float32 on the CPU, on all processes.

        Args:
            accelerator: accelerate's Accelerator.
            stop_asked: Returns True if the run should stop.

        Raises:
            StopAsked: A process was asked to stop.
        """
        n, world = self.items.n, accelerator.num_processes
        size, quantiles = min(CHUNK, n), fixed_quantiles(n)
        losses = torch.zeros(n, device=accelerator.device)
        passes = range(
            accelerator.process_index * size, -(-n // (size * world)) * size * world, size * world
        )
        batches: Any = self.items.loader(accelerator).iterate()
        with closing(batches), eval_mode(self.denoiser), torch.no_grad(), accelerator.autocast():
            for first, batch in zip(passes, batches):
                if stop_asked():
                    raise StopAsked
                batch['u'] = quantiles[batch['item'].clamp(max=n - 1)]
                count = max(0, min(size, n - first))
                losses[first : first + count] = self.loss(batch)[:count].float()
        whole: Tensor = accelerator.reduce(losses, 'sum')
        return whole.cpu()

    def logged(self, step: int) -> dict[str, Any]:
        """Return the values of the newest measurement, for the line of one `step` in each log."""
        if not self.values or self._logged_at not in (None, step):
            return {}
        self._logged_at = step
        return self.values

    def state_dict(self) -> dict[str, Any]:
        """Return the state, for a checkpoint."""
        return {'values': dict(self.values), 'logged_at': self._logged_at}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load the state of a checkpoint, `state_dict`."""
        self.values, self._logged_at = dict(state_dict['values']), state_dict['logged_at']


def summarize(losses: Tensor) -> tuple[float | None, list[float | None]]:
    """Return the mean of the losses [n] of items at `fixed_quantiles(n)`, and that of each range.

    None stands for a mean that is not a finite number, and for a range without items.
    """
    losses, bins = losses.double(), (fixed_quantiles(len(losses)) * BINS).long()
    means = [losses.mean(), *(losses[bins == i].mean() for i in range(BINS))]
    total, *by_noise = (float(mean) if mean.isfinite() else None for mean in means)
    return total, by_noise


def make_held_out_loss(
    settings: TrainSettings,
    experiment: Experiment,
    denoiser: nn.Module,
    accelerator: Any,
    *,
    cache_dir: Path,
    memory_format: torch.memory_format,
    say: Callable[[str], None],
) -> HeldOutLoss | None:
    """Return the hook of the held-out loss of a run; None if nothing is held out.

    A distillation has none: the loss of a denoiser says little of a flow map.

    Args:
        settings: The settings of the run.
        experiment: Its experiment.
        denoiser: The denoiser with the averaged weights.
        accelerator: accelerate's Accelerator.
        cache_dir: The folder of encoded items.
        memory_format: The memory format of pictures.
        say: Report a line of text.
    """
    if experiment.sections.distillation.method is not None:
        return None
    items = _open_chosen(settings, experiment, accelerator, cache_dir, say)
    if items is None:
        return None
    conditions = [
        (dataclasses.replace(config, dropout=0.0), condition)
        for config, condition in items.conditions
    ]
    loss = Objective(
        denoiser,
        experiment.density,
        Draws(SEED),
        num_classes=experiment.sections.dataset.num_classes,
        memory_format=memory_format,
        conditions=conditions,
        compute=settings.loss,
    )
    return HeldOutLoss(settings.evaluate_every, denoiser, items, loss, say)


def _open_chosen(
    settings: TrainSettings,
    experiment: Experiment,
    accelerator: Any,
    cache_dir: Path,
    say: Callable[[str], None],
) -> HeldOut | None:
    dataset, device = experiment.dataset(), accelerator.device
    which = choose_held_out(settings, experiment)
    if isinstance(which, int):
        if not which:
            return None
        numbers = split_items(len(dataset), which)[0]
        return HeldOut(dataset, len(numbers), numbers, experiment.conditions(device))
    required = which is not None
    if not required and settings.dataset is None:
        which = experiment.sections.dataset.test_split()
    if which is None:
        return None
    items, classes = None, experiment.sections.dataset.num_classes
    try:
        with accelerator.main_process_first():
            items = open_held_out(
                experiment, which, cache_dir, settings.allow_code, classes, device
            )
    except (OSError, ValueError) as error:
        if required:
            raise
        say(f'note: the held-out loss is disabled, since the test split cannot be used: {error}')
    missing = accelerator.reduce(torch.tensor(float(items is None), device=device), 'sum')
    return None if missing.item() else items
