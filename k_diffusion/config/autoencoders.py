"""The config of an autoencoder: its own "model" section, and sections shared with denoisers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from .. import data, models, training
from .load import choose, plain, read_source
from .schema import Findings, read_section


@dataclass(frozen=True)
class AutoencoderSections:
    """A checked config of an autoencoder."""

    model: models.AutoencoderConfig
    dataset: Any
    optimizer: Any
    lr_sched: Any
    ema_sched: Any
    training: training.TrainingConfig


def read_autoencoder_config(
    source: str | os.PathLike[str] | Mapping[str, Any],
) -> tuple[dict[str, Any], AutoencoderSections]:
    """Read the config of an autoencoder.

    Args:
        source: A path or a dict.

    Returns:
        The config with every default, and its sections.

    Raises:
        ValueError: If it has wrong keys; the message names all of them.
    """
    raw, name = read_source(source)
    findings = Findings()
    model = raw.get('model', {})
    if not isinstance(model, Mapping) or model.get('type') != 'autoencoder':
        raise ValueError(
            f'{name} must have the model.type "autoencoder"; for other models use k-diffusion train'
        )
    parts = {
        'model': read_section(models.AutoencoderConfig, model, 'model', findings),
        'dataset': choose(
            data.DATASETS, raw.get('dataset', {}), 'dataset', findings, 'imagefolder'
        ),
        'optimizer': choose(
            training.OPTIMIZERS,
            raw.get('optimizer', {}),
            'optimizer',
            findings,
            'adamw',
            {'adamw': {'lr': 1e-3}},
        ),
        'lr_sched': choose(
            training.LR_SCHEDS, raw.get('lr_sched', {}), 'lr_sched', findings, 'warmup-decay'
        ),
        'ema_sched': choose(
            training.EMA_SCHEDS, raw.get('ema_sched', {}), 'ema_sched', findings, 'power'
        ),
        'training': read_section(
            training.TrainingConfig, raw.get('training', {}), 'training', findings
        ),
    }
    odd = [key for key in raw if key not in parts] + findings.unknown
    findings.errors += [f'{key} is not a key of this config; remove it' for key in odd]
    if findings.errors:
        raise ValueError(f'{name} cannot be used: ' + '; '.join(findings.errors))
    sections = AutoencoderSections(**parts)
    return {key: plain(asdict(part)) for key, part in parts.items()}, sections
