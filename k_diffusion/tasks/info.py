"""k-diffusion info: what the model of a config or checkpoint costs: parameters, arithmetic, memory and an estimate of time."""
from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from ..config import find_checkpoint, load_config, read_weights, sections_of
from ..core.devices import choose_device
from ..core.machine import memory_bytes, multiply_rate
from ..models.sizing import sizes

#: The share of the rate of large matrix products that whole training steps were seen to reach: 0.4 to 0.8 on a CPU.
SHARE = 0.5


@dataclass(frozen=True)
class Info:
    """What a model costs. Multiply-adds are of a forward pass for one picture; bytes are of training in float32 with AdamW."""

    name: str
    type: str
    input: list[int]                    # channels, height, width
    parameters: int
    multiply_adds: int
    sampling_multiply_adds: int         # of one picture, with the steps of the config
    activation_bytes: int               # of one picture
    batch_size: int
    training_bytes: int                 # of a batch
    memory_bytes: int | None            # of the device
    device: str
    rate: float                         # floating-point operations per second
    images_per_second: float            # of training
    steps: int | None                   # of the run, as the config has it
    training_seconds: float | None


def info(source: str | os.PathLike[str], batch_size: int | None = None, device: str | None = None,
         rate: float | None = None, verify: bool = True) -> Info:
    """What the model of a config (.json), a checkpoint (.pth, .safetensors) or a run's folder costs; nothing of it is allocated.

    `rate` is how many floating-point operations per second the device does; left out, a third of a second is spent measuring it.
    """
    config = load_config(_config_of(source, verify))
    sections = sections_of(config)
    model, classes = sections.model, sections.dataset.num_classes
    found = sizes(model, classes + 1 if classes else 0)
    where = choose_device(device)
    batch_size = batch_size or sections.training.batch_size
    rate = rate or multiply_rate(where)
    images_per_second = SHARE * rate / (3 * 2 * found.multiply_adds)
    steps = sections.training.end_step
    guided = 2 if classes and sections.sampling.guidance != 1 else 1
    return Info(
        str(source), model.type, [model.input_channels, *model.input_size], found.parameters, found.multiply_adds,
        guided * sections.sampling.steps * found.multiply_adds, found.activation_bytes, batch_size, found.training_bytes(batch_size),
        memory_bytes(where), where.type, rate, images_per_second, steps, steps * batch_size / images_per_second if steps else None)


def _config_of(source: str | os.PathLike[str], verify: bool) -> Any:
    path = find_checkpoint(source)
    if path.suffix in ('.json', '.safetensors'):
        return path
    if not path.exists() and path.parent.name == 'configs':
        return path
    config = read_weights(path, verify=verify)[1]
    if config is None:
        raise ValueError(f'{path} carries no config; give the config file it was trained with')
    return config


def number(value: float) -> str:
    """1234567 -> '1.23 million'."""
    for unit, word in ((1e15, ' quadrillion'), (1e12, ' trillion'), (1e9, ' billion'), (1e6, ' million')):
        if value >= unit:
            return f'{value / unit:.3g}{word}'
    return f'{value:,.0f}'


def size(value: float) -> str:
    """Bytes as MiB, GiB, TiB."""
    for unit, word in ((2**40, 'TiB'), (2**30, 'GiB')):
        if value >= unit:
            return f'{value / unit:,.1f} {word}'
    return f'{value / 2**20:,.1f} MiB'


def duration(seconds: float) -> str:
    """Seconds in the unit that suits them."""
    for unit, word in ((86400 * 365, 'years'), (86400, 'days'), (3600, 'hours'), (60, 'minutes')):
        if seconds >= 1.5 * unit:
            return f'{seconds / unit:,.2g} {word}' if seconds < 100 * unit else f'{seconds / unit:,.0f} {word}'
    return f'{seconds:.2g} seconds'
