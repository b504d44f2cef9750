"""Choose a config for a folder of pictures, by the pictures and the machine."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from ...config import Experiment, load_config, shipped_config
from ...config.load import read_dataset_section
from ...config.overrides import change_config
from ...core.devices import choose_device
from ...core.files import write_json
from ...core.machine import multiply_rate
from ...core.names import escape_name
from ...data import DecodedPictures, Inspection, inspect_pictures
from ...models.sizing import sizes
from ...training import RunFolder
from ..info import SHARE
from .settings import TrainSettings

#: Sides of pictures, and the shipped config for each on a GPU.
LADDER = {
    32: 'config_32_unet',
    64: 'config_64_unet',
    128: 'config_128_unet',
    256: 'config_256_unet',
}
#: The largest side that is chosen, the minutes of a run and its batch size, on a CPU and on others.
CPU, GPU = (32, 10.0, 64), (64, 60.0, 128)
#: Folders are classes where there are so many, each with at least so many pictures.
CLASSES, LEAST = range(2, 1001), 5
STEPS = (200, 200_000)


def pick_config(
    settings: TrainSettings,
) -> tuple[dict[str, Any], list[str], DecodedPictures | None]:
    """Return a config for the pictures in settings.data, sentences, and the decoded pictures.

    The sentences are about the choices. The pictures are those that were looked at, if they fit
    into memory.

    It is written into the folder of the run as NAME_config.json. A run with a checkpoint continues
    with the config in its folder.

    Args:
        settings: The settings of the run.

    Raises:
        ValueError: There are no pictures, or several processes would each choose a config.
    """
    folder = Path(settings.run_dir or Path('runs') / settings.name)
    path = folder / f'{settings.name}_config.json'
    several = int(os.environ.get('WORLD_SIZE', 1)) > 1
    if path.is_file() and (several or RunFolder(folder, settings.name).latest()):
        sentence = f'the config is that of {path}'
        if settings.size is not None or settings.minutes is not None or settings.classes != 'auto':
            sentence += '; size, classes and minutes have an effect at the start of a run only'
        return load_config(path), [sentence], None
    if several:
        raise ValueError(
            'config must be written by one process before several train from data; '
            f'{path} is missing: run once without a launcher and with dry_run=True'
        )
    device = choose_device(settings.device)
    largest, minutes, batch_size = CPU if device.type == 'cpu' else GPU
    section = {'type': 'imagefolder', 'location': str(settings.data)}
    grey_range = _grey_range(section, settings)
    inspection, size = _look_at(settings, largest, grey_range)
    classes = _classes_of(inspection, settings.classes)
    config = _recipe(inspection, size, device)
    config['dataset'] = {
        **section,
        'num_classes': classes,
        **({'labels': 'folders'} if classes else {}),
        **({'grey_range': list(grey_range)} if grey_range else {}),
    }
    if settings.network is not None:
        config['optimizer'] = {'type': 'adamw', 'lr': 1e-3}  # (which needs no more of a network)
    minutes = settings.minutes or minutes
    config['training'] = {'batch_size': min(batch_size, inspection.readable)}
    steps, speed = _steps(config, minutes, device)
    config['training']['end_step'] = steps
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, config)
    model = config['model']
    classes_in_words = f'with the {classes} folders as classes' if classes else 'without classes'
    sentences = [
        f'{inspection.readable:,} pictures of {escape_name(str(settings.data))}, most of them '
        f'{" x ".join(map(str, inspection.sizes.most_common(1)[0][0]))}'
        + (f', {len(inspection.broken):,} that cannot be read' if inspection.broken else ''),
        f'picked: {size}x{size}, {"grey" if inspection.channels == 1 else "colour"}, the network '
        f'{model["type"]} with channels {model["channels"]}, {classes_in_words}, '
        f'sigma_data {model["sigma_data"]:g}',
        f'picked: {steps:,} steps of {config["training"]["batch_size"]}, about {minutes:g} minutes '
        f'at {speed:,.0f} images/s on {device.type} (an estimate; set size, classes or minutes to '
        f'change it); the config is {path}',
    ]
    return config, sentences, inspection.decoded


def _grey_range(section: dict[str, Any], settings: TrainSettings) -> tuple[float, float] | None:
    """Return dataset.grey_range from the changes of the config, which are applied later."""
    changed_section = change_config({'dataset': section}, settings.changes)['dataset']
    return getattr(read_dataset_section(changed_section), 'grey_range', None)


def _look_at(
    settings: TrainSettings, largest: int, grey_range: tuple[float, float] | None
) -> tuple[Inspection, int]:
    """Decode the pictures at the chosen size."""

    def look(side: int) -> Inspection:
        return inspect_pictures(
            settings.data or '', (side, side), sheet=0, grey_range=grey_range, keep=True
        )

    size = settings.size or min(32, largest)
    inspection = look(size)
    if settings.size is None:
        best = _choose_size(inspection.sizes, largest)
        if best != size:
            size, inspection = best, look(best)
    if inspection.sigma_data == 0:
        raise ValueError(
            f'data must hold more than one pixel value; all pixels of {settings.data} are equal'
        )
    return inspection, size


def _choose_size(counts: Counter[tuple[int, int]], largest: int) -> int:
    """Return the largest side with a recipe that at least half of the pictures have."""
    shorter = sorted(min(size) for size, count in counts.items() for _ in range(count))
    median = shorter[len(shorter) // 2]
    return max([side for side in (16, *LADDER) if side <= min(median, largest)], default=16)


def _classes_of(inspection: Inspection, mode: str) -> int:
    """Return the number of classes of the model: the number of folders, or 0."""
    counts = inspection.classes
    fit = (
        sum(counts.values()) == inspection.readable
        and len(counts) in CLASSES
        and min(counts.values()) >= LEAST
    )
    if mode == 'folders' and (len(counts) < 2 or sum(counts.values()) != inspection.readable):
        raise ValueError(
            'classes must be none or auto, since the pictures do not all lie in '
            f'folders of their classes ({len(counts)} folders)'
        )
    return len(counts) if mode == 'folders' or (mode == 'auto' and fit) else 0


def _recipe(inspection: Inspection, size: int, device: torch.device) -> dict[str, Any]:
    """Return the sections of the shipped config that suits a size, for these pictures."""
    if device.type == 'cpu':
        name = 'config_demo' if size <= 16 else 'config_icons'
    else:
        name = LADDER[min((side for side in LADDER if side >= size), default=256)]
    config = json.loads(shipped_config(name).read_text())
    model = config['model']
    sigma_data = round(inspection.sigma_data, 4)
    density = model['sigma_sample_density']
    density['mean'] = round(density['mean'] + math.log(sigma_data / model['sigma_data']), 3)
    patch = model['patch_size'] * max(1, size // 64 if device.type == 'cpu' else 1)
    unit = patch * 2 ** (len(model['channels']) - 1)
    if size % unit:
        raise ValueError(
            f'size must be a multiple of {unit} for the network that suits it; got {size}'
        )
    model.update(
        input_size=[size, size],
        input_channels=inspection.channels,
        sigma_data=sigma_data,
        patch_size=patch,
    )
    return {key: config[key] for key in ('model', 'optimizer', 'lr_sched', 'ema_sched')}


def _steps(config: dict[str, Any], minutes: float, device: torch.device) -> tuple[int, float]:
    """Return the estimated number of steps in some minutes, and images per second."""
    sections = Experiment.open(config).sections
    classes = sections.dataset.num_classes
    work = 3 * 2 * sizes(sections.model, classes + 1 if classes else 0).multiply_adds
    speed = SHARE * multiply_rate(device) / work
    steps = round(60 * minutes * speed / sections.training.batch_size)
    return min(max(steps, STEPS[0]), STEPS[1]), speed
