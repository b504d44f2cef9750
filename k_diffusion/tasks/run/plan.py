"""Plan a run without training: its steps, costs, and its first batch as a picture."""

from __future__ import annotations

import itertools
import shutil
import time
from pathlib import Path
from typing import Any

import torch

from ...core.images import make_grid, save_image
from ...core.modules import n_params
from ...core.views import show_tensors
from ...models.flops import flop_counter
from ...training import RunFolder, Trainer, unwrap
from .display import clock
from .settings import TrainSettings


def plan(
    settings: TrainSettings, trainer: Trainer, folder: RunFolder, path: Path | None
) -> dict[str, Any]:
    """Take a few steps on a trainer that is not used further, and return the plan.

    Args:
        settings: The settings of the run.
        trainer: Its trainer.
        folder: Its folder.
        path: The checkpoint that it continues from, or None.

    Returns:
        Texts by name, including the path of the picture of the first batch.
    """
    parameters = n_params(unwrap(trainer.model))
    picture = folder.path / f'{folder.name}_first_batch.png'
    batches = trainer.loader.iterate(trainer.items)
    first = next(batches)
    with flop_counter() as counter:
        trainer.train_step(itertools.chain([first], batches))
    seconds = min(_time_step(trainer, batches) for _ in range(3))
    if trainer.accelerator.is_main_process:
        picture.parent.mkdir(parents=True, exist_ok=True)
        few = first['image'][:64].cpu()
        is_picture = few.ndim == 4 and few.shape[1] in (1, 3, 4)
        save_image(picture, make_grid(few if is_picture else show_tensors(few), padding=1))
    state_bytes = sum(x.numel() * x.element_size() for x in _tensors(trainer.state_dict()))
    steps = None if trainer.end_step is None else trainer.end_step - trainer.step + 4
    saves = None if steps is None else -(-steps // settings.save_every)
    return {
        'run': f'{folder.name} in {folder.path}',
        'begins': f'from {path}' if path else 'at step 0',
        'processes': f'{trainer.accelerator.num_processes} on {trainer.accelerator.device.type}',
        'a step': f'{trainer.loader.items_per_step} images (micro-batches: '
        f'{trainer.grad_accum_steps})',
        'steps': 'until it is stopped'
        if steps is None
        else f'{steps:,} ({steps * trainer.loader.items_per_step:,} images)',
        'parameters': f'{parameters:,}',
        'work': f'{2 * counter.flops / 1e9:,.1f} GFLOP a step and process, forward and backward',
        'speed': (
            f'{seconds * 1000:,.1f} ms a step, '
            f'{trainer.loader.items_per_step / seconds:,.0f} images/s'
        ),
        'time': 'unknown'
        if steps is None
        else f'{clock(steps * seconds)} (without grids and saving)',
        'a checkpoint': f'{state_bytes / 1e6:,.1f} MB every {settings.save_every:,} steps'
        + _disk(folder.path, state_bytes, saves, settings),
        'first batch': str(picture),
    }


def _time_step(trainer: Trainer, batches: Any) -> float:
    start = time.perf_counter()
    trainer.train_step(batches)
    if trainer.accelerator.device.type != 'cpu':
        torch.accelerator.synchronize()
    return time.perf_counter() - start


def _disk(folder: Path, each: int, saves: int | None, settings: TrainSettings) -> str:
    """Return the disk space of all checkpoints as text, with a warning if it is too little."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    count = (
        saves
        if not settings.keep_last or saves is None
        else min(saves, settings.keep_last + settings.keep_best)
    )
    if count is None:
        return f', {free / 1e9:,.1f} GB are free'
    warning = '; NOT ENOUGH: pass keep_last=3' if count * each > free else ''
    return (
        f', {count} in all: {count * each / 1e9:,.2f} GB of the {free / 1e9:,.1f} GB that are '
        f'free{warning}'
    )


def _tensors(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
