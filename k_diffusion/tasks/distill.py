"""Distill a trained model into a flow map, which samples in one to four model calls."""

from __future__ import annotations

import dataclasses
import math
import os
from pathlib import Path
from typing import Any

from torch import nn

from ..config import find_checkpoint, read_weights
from ..config.load import fill_config
from ..core.settings import (
    at_least,
    check_settings,
    comma_list,
    one_of,
    same_setting,
    setting,
    takes_settings,
)
from .run.settings import Run, TrainSettings
from .train import train

METHODS = ('cmt', 'ect', 'meanflow')
#: The learning rate as a share of that of the checkpoint's own training.
RATE = 0.5
#: Mean and standard deviation of ln(sigma / sigma_data), the noise levels of a method.
LEVELS = {'ect': (-0.4, 2.0), 'cmt': (-0.4, 2.0), 'meanflow': (-0.4, 1.0)}
_FIELDS = {field.name: field for field in dataclasses.fields(TrainSettings)}


@dataclasses.dataclass(frozen=True)
class DistillSettings:
    """Settings of `distill`; a setting without a description here is the one of `train`."""

    checkpoint: str | os.PathLike[str] = setting(
        help="the model: a .pth or .safetensors file, or a run's folder (its latest checkpoint)"
    )
    method: str = setting(
        'cmt',
        'cmt: learn the paths of the model as a teacher; ect: consistency tuning from its own '
        'weights, without a teacher pass if there is no guidance; meanflow: the identity of '
        'mean flows, by forward derivatives',
        choices=METHODS,
    )
    steps: int = setting(2000, 'total number of optimizer steps')
    name: str = setting('distilled', 'the name of the run')
    run_dir: str | os.PathLike[str] | None = same_setting(TrainSettings, 'run_dir')
    calls: int = setting(
        2, 'default number of model calls of a sample; sampling accepts any number later'
    )
    guidance: float | None = setting(
        None, "the guidance scale that is distilled in (default: that of the config's sampling)"
    )
    guidance_interval: tuple[float, float] | None = setting(
        None,
        'the noise levels with guidance (default: those of the config)',
        metavar='LOW,HIGH',
        parse=comma_list(float, 'two noise levels such as 0.2,2', 2),
    )
    guidance_max: float | None = setting(
        None, 'make the guidance scale an input of the model, from 1 to this (not with cmt)'
    )
    paths: int | None = setting(None, 'cmt: number of paths of the teacher (default: 5000)')
    path_steps: int | None = setting(
        None,
        'cmt: number of model calls of a path; a calibrated sampler for it is used if there is one '
        "(default: the config's steps)",
    )
    path_share: float | None = setting(
        None, 'cmt: the share of the steps that learn paths, before ect (default: 1, paths alone)'
    )
    batch_size: int | None = same_setting(TrainSettings, 'batch_size')
    lr: float | None = setting(
        None, f'the learning rate (default: {RATE:g} times that of the checkpoint)'
    )
    mixed_precision: str | None = same_setting(TrainSettings, 'mixed_precision')
    grad_accum_steps: int = same_setting(TrainSettings, 'grad_accum_steps')
    micro_batch: str | int | None = same_setting(TrainSettings, 'micro_batch')
    compile: bool = same_setting(TrainSettings, 'compile')
    shard: bool = same_setting(TrainSettings, 'shard')
    seed: int | None = same_setting(TrainSettings, 'seed')
    device: str | None = same_setting(TrainSettings, 'device')
    num_workers: int = same_setting(TrainSettings, 'num_workers')
    save_every: int = same_setting(TrainSettings, 'save_every')
    keep_last: int = same_setting(TrainSettings, 'keep_last')
    demo_every: int = same_setting(TrainSettings, 'demo_every')
    sample_n: int = same_setting(TrainSettings, 'sample_n')
    evaluate_every: int = same_setting(TrainSettings, 'evaluate_every')
    evaluate_n: int = setting(0, 'number of samples of an evaluation (default: 0, never)')
    evaluate_with: str = setting('classifier', _FIELDS['evaluate_with'].metadata['help'])
    evaluate_against: str | None = same_setting(TrainSettings, 'evaluate_against')
    report: bool = same_setting(TrainSettings, 'report')
    dry_run: bool = same_setting(TrainSettings, 'dry_run')
    resume: str | os.PathLike[str] | None = same_setting(TrainSettings, 'resume')
    verify: bool = same_setting(TrainSettings, 'verify')
    allow_code: bool = same_setting(TrainSettings, 'allow_code')
    changes: Any = dataclasses.field(default_factory=list, metadata=_FIELDS['changes'].metadata)
    network: nn.Module | str | None = same_setting(TrainSettings, 'network')
    dataset: Any = same_setting(TrainSettings, 'dataset')
    optimizer: Any = same_setting(TrainSettings, 'optimizer')
    lr_schedule: Any = same_setting(TrainSettings, 'lr_schedule')
    hooks: Any = same_setting(TrainSettings, 'hooks')
    stop: Any = same_setting(TrainSettings, 'stop')
    show: bool = same_setting(TrainSettings, 'show')

    def __post_init__(self) -> None:
        check_settings(
            one_of(self, METHODS, 'method'),
            at_least(self, 1, 'steps', 'calls', 'paths', 'path_steps'),
            at_least(self, 0, 'path_share'),
            'shard must be left out with the method meanflow, whose forward derivatives need the '
            'whole network'
            if self.shard and self.method == 'meanflow'
            else None,
            None
            if self.guidance_max is None or self.guidance is None
            else 'guidance must be left out with guidance_max, which makes the scale an input; got '
            f'{self.guidance}',
        )


@takes_settings(DistillSettings)
def distill(settings: DistillSettings) -> Run:
    """Train a flow map that starts from a checkpoint and samples in one to four model calls.

    It is an ordinary training run: the same call continues it bit for bit, and the folder holds
    checkpoints, the averaged weights, demo grids and the report. `sample`, `evaluate` and
    `K.load_model` accept its checkpoints.

    Args:
        settings: The settings, or the fields of DistillSettings as arguments.

    Returns:
        The result of the run.

    Raises:
        FileNotFoundError: The checkpoint does not exist.
        ValueError: A setting is wrong, or the model cannot be distilled.
    """
    path = find_checkpoint(settings.checkpoint)
    _, carried_config = read_weights(path, verify=settings.verify)
    config = None if carried_config is None else fill_config(carried_config)
    if config is None:
        raise ValueError(
            f'checkpoint must be one that carries its config; {path} has none that can be read'
        )
    if config['model'].get('flow_map'):
        raise ValueError(f'checkpoint must be of a denoiser; {path} is a flow map already')
    arguments = {name: getattr(settings, name) for name in _FIELDS if hasattr(settings, name)}
    held_out = config['training'].get('held_out')
    arguments.update(
        config=distilled_config(config, path, settings),
        end_step=settings.steps,
        lr=None,
        # Items stay held out. Their loss, that of a denoiser, is not measured.
        held_out=held_out if isinstance(held_out, int) else 0,
    )
    return train(TrainSettings(**arguments))


def distilled_config(
    config: dict[str, Any], checkpoint: Path, settings: DistillSettings
) -> dict[str, Any]:
    """Return the config of a flow map that is distilled from a checkpoint.

    Args:
        config: The filled config of the checkpoint; it is not written to.
        checkpoint: The path of the checkpoint.
        settings: The settings.

    Raises:
        ValueError: Guidance is asked for, and the model has no condition to be guided by.
    """
    model, sampling = dict(config['model']), config['sampling']
    mean, std = LEVELS[settings.method]
    level = {'type': 'lognormal', 'mean': math.log(model['sigma_data']) + mean, 'std': std}
    as_input = settings.guidance_max is not None
    model.update(flow_map=True, guidance_input=as_input, sigma_sample_density=level)
    guidance = sampling['guidance'] if settings.guidance is None else settings.guidance
    conditional = bool(config['dataset']['num_classes'] or config['conditions'])
    if not conditional and (as_input or settings.guidance not in (None, 1)):
        raise ValueError(
            f'{"guidance_max" if as_input else "guidance"} must be left out for a model without '
            f'classes and conditions; {checkpoint.as_posix()} has none'
        )
    if as_input or not conditional:
        guidance = 1.0
    interval = settings.guidance_interval or sampling['guidance_interval']
    distillation = {
        'method': settings.method,
        'teacher': checkpoint.as_posix(),
        'guidance': guidance,
        'guidance_interval': interval if guidance != 1 or as_input else None,
        'guidance_max': settings.guidance_max,
        'path_steps': settings.path_steps or sampling['steps'],
    }
    for name in ('paths', 'path_share'):
        if getattr(settings, name) is not None:
            distillation[name] = getattr(settings, name)
    return {
        **config,
        'model': model,
        'dataset': {**config['dataset'], 'cond_dropout_rate': 0.0},
        'conditions': [{**entry, 'dropout': 0.0} for entry in config['conditions']],
        'optimizer': _scale_rates(config['optimizer'], settings.lr),
        'training': {**config['training'], 'ema_snapshots': 0},
        'sampling': {'steps': settings.calls},
        'distillation': distillation,
    }


def _scale_rates(optimizer: dict[str, Any], lr: float | None) -> dict[str, Any]:
    """Return an "optimizer" section at another learning rate, all its rates in proportion."""
    factor = RATE if lr is None else lr / optimizer['lr']
    rates = {key: value * factor for key, value in optimizer.items() if key in ('lr', 'adamw_lr')}
    return {**optimizer, **rates}
