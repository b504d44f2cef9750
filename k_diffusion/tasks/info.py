"""Compute the parameters, arithmetic, memory and estimated time of a model."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from math import prod
from typing import Any

import torch

from ..config import Experiment, find_checkpoint, find_config, read_weights
from ..config.load import Sections
from ..core.accelerators import GPUS
from ..core.devices import choose_device
from ..core.machine import memory_bytes, multiply_rate
from ..core.settings import at_least, check_settings, one_of, setting, takes_settings
from ..models.sizing import Sizes, sizes
from ..training.sharding import group_sizes
from .scaling import Cluster, Scaling, Work, simulate

#: The share of the rate of large matrix products that whole training steps were seen to reach: 0.4
#: to 0.8 on a CPU.
SHARE = 0.5


@dataclass(frozen=True)
class Info:
    """Costs of a model.

    Multiply-adds are of a forward pass for one picture, bytes of training in float32 with AdamW.
    """

    name: str
    type: str
    input: list[int]  # channels, and the sides
    parameters: int
    multiply_adds: int
    sampling_multiply_adds: int  # of one picture, with the steps of the config
    activation_bytes: int  # of one picture
    batch_size: int
    training_bytes: int  # of a batch
    memory_bytes: int | None  # of the device
    device: str
    rate: float  # floating-point operations per second
    images_per_second: float  # of training
    steps: int | None  # of the run, as the config has it
    training_seconds: float | None
    scaling: list[Scaling] | None = None  # on many GPUs: of DDP and of FSDP2

    def __str__(self) -> str:
        channels, *size = self.input
        shape = f'{size[1]}x{size[0]}' if len(size) == 2 else 'x'.join(map(str, size))
        items = {0: 'vectors', 1: 'sequences', 2: 'pictures', 3: 'volumes'}[len(size)]
        memory = ''
        if self.memory_bytes:
            memory = f' ({self.device} has {format_bytes(self.memory_bytes)})'
        rate, of_batch = self.images_per_second, self.activation_bytes * self.batch_size
        per_second = f'about {rate:,.0f} images/s' if rate >= 100 else f'about {rate:.2g} images/s'
        if self.training_seconds is not None:
            whole = format_seconds(self.training_seconds)
            time = f'{whole} for the {self.steps:,} steps of the config'
        else:
            time = f'{format_seconds(1e6 / rate)} for each million pictures'
        rows = {
            'model': f'{self.type}, {items}{" of " * bool(size)}{shape}, {channels} '
            f'channel{"s" * (channels > 1)}',
            'parameters': f'{self.parameters:,}',
            'forward': f'{format_count(self.multiply_adds)} multiply-adds a picture',
            'sampling': f'{format_count(self.sampling_multiply_adds)} multiply-adds a picture',
            'activations': f'{format_bytes(self.activation_bytes)} a picture, '
            f'{format_bytes(of_batch)} a batch of {self.batch_size}, '
            'in float32 (about half in bf16)',
            'training': f'{format_bytes(self.training_bytes)}: weights, gradients, AdamW, average, '
            f'activations{memory}',
            'speed': f'{per_second} of training on {self.device}, at {SHARE:.0%} of '
            f'{format_count(self.rate)} operations/s',
            'time': f'about {time}',
        }
        text = [f'{name:13}{value}' for name, value in rows.items()]
        text += [f'{scaling.way:13}{describe_scaling(scaling)}' for scaling in self.scaling or []]
        if self.memory_bytes and self.training_bytes > self.memory_bytes:
            text.append(
                f'It does not fit into the memory of {self.device}: take a smaller batch, '
                'checkpointing or a smaller model.'
            )
        return '\n'.join(text)


@dataclass(frozen=True)
class InfoSettings:
    """Settings of `info`."""

    source: str | os.PathLike[str] = setting(
        help='a .json config, a .pth or .safetensors file, a run, or the name of a shipped config',
        flags=('source',),
        metavar='CONFIG|CHECKPOINT',
    )
    batch_size: int | None = setting(None, "pictures in a batch (default: the config's)")
    device: str | None = setting(None, 'cpu, cuda, mps (default: the fastest available)')
    rate: float | None = setting(
        None,
        'floating-point operations per second of the device '
        '(default: measured in a third of a second)',
    )
    gpus: int | None = setting(None, 'number of GPUs: show what training on them takes')
    gpu: str = setting('h100', f'the type of GPU: {", ".join(GPUS)}')
    network: float = setting(
        400.0, 'the network rate of each GPU to other nodes, of 8 GPUs each', metavar='GBIT/S'
    )
    disk: float = setting(1.0, 'the rate at which a node writes checkpoints', metavar='GB/S')
    verify: bool = setting(True, 'accept a checkpoint that differs from its manifest')

    def __post_init__(self) -> None:
        positive = self.rate is None or self.rate > 0
        unused = [
            field.name
            for field in fields(self)
            if field.name in ('gpu', 'network', 'disk')
            and getattr(self, field.name) != field.default
        ]
        check_settings(
            at_least(self, 1, 'batch_size', 'gpus'),
            one_of(self, GPUS, 'gpu'),
            None if self.network > 0 else f'network must be above 0; got {self.network}',
            None if self.disk > 0 else f'disk must be above 0; got {self.disk}',
            None if positive else f'rate must be above 0; got {self.rate}',
            f'gpus must be given with {" and ".join(unused)}'
            if unused and self.gpus is None
            else None,
        )


@takes_settings(InfoSettings)
def info(settings: InfoSettings) -> Info:
    """Compute the costs of the model of a config, a checkpoint or a run, without allocating it.

    Args:
        settings: The settings, or the fields of InfoSettings as arguments.

    Returns:
        The counts, and estimates of memory and time.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: It carries no config, or one that cannot be used.
    """
    sections = Experiment.open(_config_of(settings.source, settings.verify)).sections
    model, classes = sections.model, sections.dataset.num_classes
    counts = sizes(model, classes + 1 if classes else 0)
    device = choose_device(settings.device)
    batch_size = settings.batch_size or sections.training.batch_size
    rate = settings.rate or multiply_rate(device)
    images_per_second = SHARE * rate / (3 * 2 * counts.multiply_adds)
    steps = sections.training.end_step
    passes = 2 if classes and sections.sampling.guidance != 1 else 1
    return Info(
        str(settings.source),
        model.type,
        [model.input_channels, *model.input_size],
        counts.parameters,
        counts.multiply_adds,
        passes * sections.sampling.steps * counts.multiply_adds,
        counts.activation_bytes,
        batch_size,
        counts.training_bytes(batch_size),
        memory_bytes(device),
        device.type,
        rate,
        images_per_second,
        steps,
        steps * batch_size / images_per_second if steps else None,
        None if settings.gpus is None else _simulate(settings, sections, counts, batch_size),
    )


def _simulate(
    settings: InfoSettings, sections: Sections, counts: Sizes, batch_size: int
) -> list[Scaling]:
    classes = sections.dataset.num_classes
    with torch.device('meta'):
        network = sections.model.build(num_classes=classes + 1 if classes else 0)
    work = Work(
        group_sizes(network),
        counts.multiply_adds,
        counts.activation_bytes / 2,  # in bf16
        batch_size,
        prod([sections.model.input_channels, *sections.model.input_size]),
    )
    network_rate, disk = settings.network * 1e9 / 8, settings.disk * 1e9
    cluster = Cluster(settings.gpus or 1, GPUS[settings.gpu], network_rate, disk=disk)
    return simulate(work, cluster, SHARE)


def describe_scaling(scaling: Scaling) -> str:
    """Return the costs of a step on many GPUs, a `scaling`, as text."""
    fits = '' if scaling.fits else ' (more than a GPU has)'
    return (
        f'{format_bytes(scaling.memory_bytes)} a GPU{fits}, of it '
        f'{format_bytes(scaling.state_bytes)} weights and the like; '
        f'{format_bytes(scaling.traffic_bytes)} sent a step; '
        f'{scaling.step_seconds * 1000:,.0f} ms a step, {scaling.efficiency:.0%} arithmetic; '
        f'{scaling.items_per_second:,.0f} items/s, '
        f'{format_bytes(scaling.data_bytes_per_second)}/s of data; '
        f'a checkpoint of {format_bytes(scaling.checkpoint_bytes)} '
        f'in {format_seconds(scaling.checkpoint_seconds)}, '
        f'best every {format_seconds(scaling.save_every_seconds)}'
    )


def _config_of(source: str | os.PathLike[str], verify: bool) -> Any:
    path = find_config(find_checkpoint(source, verify))
    if path.suffix in ('.json', '.safetensors'):
        return path
    config = read_weights(path, verify=verify)[1]
    if config is None:
        raise ValueError(
            f'source must carry a config; {path} carries none, '
            'give the config that it was trained with'
        )
    return config


def format_count(value: float) -> str:
    """Return `value` with a word for its magnitude: '1.23 million' for 1234567."""
    for unit, word in (
        (1e15, ' quadrillion'),
        (1e12, ' trillion'),
        (1e9, ' billion'),
        (1e6, ' million'),
    ):
        if value >= unit:
            return f'{value / unit:.3g}{word}'
    return f'{value:,.0f}'


def format_bytes(value: float) -> str:
    """Return `value` bytes as MiB, GiB or TiB."""
    for unit, word in ((2**40, 'TiB'), (2**30, 'GiB')):
        if value >= unit:
            return f'{value / unit:,.1f} {word}'
    return f'{value / 2**20:,.1f} MiB'


def format_seconds(seconds: float) -> str:
    """Return `seconds` in a suitable unit."""
    for unit, word in ((86400 * 365, 'years'), (86400, 'days'), (3600, 'hours'), (60, 'minutes')):
        if seconds >= 1.5 * unit:
            return (
                f'{seconds / unit:,.2g} {word}'
                if seconds < 100 * unit
                else f'{seconds / unit:,.0f} {word}'
            )
    return f'{seconds:.2g} seconds'
