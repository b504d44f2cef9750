"""Write the config of a checkpoint or an inference file as JSON, and list the shipped ones."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import (
    Experiment,
    find_checkpoint,
    read_autoencoder_config,
    read_weights,
    shipped_configs,
)
from ..core.files import write_json
from ..core.remote import is_url
from ..core.settings import check_settings, setting, takes_settings
from ..core.weights import load_safetensors_config


@dataclass(frozen=True)
class ConfigSettings:
    """Settings of `extract_config`."""

    checkpoint: str | os.PathLike[str] | None = setting(
        None, 'the .safetensors or .pth file', flags=('checkpoint',), many='?'
    )
    out: str | os.PathLike[str] | None = setting(
        None,
        'the file to write (default: the checkpoint with the ending .json)',
        flags=('-o', '--output', '--out'),
    )
    verify: bool = setting(True, 'accept a checkpoint that differs from its manifest')
    list: bool = setting(
        False, 'list the shipped configs, which are known by their names wherever a config is given'
    )

    def __post_init__(self) -> None:
        check_settings(
            'checkpoint must be given, or pass list=True'
            if self.checkpoint is None and not self.list
            else None,
            'checkpoint must be left out with list=True'
            if self.checkpoint is not None and self.list
            else None,
            'out must be given with a URL'
            if self.out is None and is_url(self.checkpoint)
            else None,
        )


@dataclass(frozen=True)
class ShippedConfig:
    """A config that comes with the package.

    Attributes:
        name: Its name, which stands for its path wherever a config is read.
        path: The file.
        size: Height and width of the pictures, or the sides of other items.
        channels: Their channels.
        network: The type of the network.
        dataset: The type of the data set.
        location: Where the data set lies; None where its type has no place.
    """

    name: str
    path: Path
    size: tuple[int, ...]
    channels: int
    network: str
    dataset: str
    location: str | None


@takes_settings(ConfigSettings)
def extract_config(settings: ConfigSettings) -> Path | list[ShippedConfig]:
    """Write the config that a .safetensors or .pth file carries as JSON.

    Args:
        settings: The settings, or the fields of ConfigSettings as arguments.

    Returns:
        The path of the file; the shipped configs if there is no checkpoint in the settings.

    Raises:
        FileNotFoundError: The checkpoint does not exist.
        ValueError: It carries no config.
    """
    checkpoint = settings.checkpoint
    if checkpoint is None:
        return list_configs()
    if is_url(checkpoint):
        checkpoint = find_checkpoint(checkpoint, settings.verify)
    if Path(checkpoint).suffix == '.safetensors':
        config = load_safetensors_config(checkpoint)
    else:
        config = read_weights(checkpoint, verify=settings.verify)[1]
    if config is None:
        raise ValueError(
            f'checkpoint must carry a config; {checkpoint} has none: take one that training wrote'
        )
    path = Path(settings.out) if settings.out is not None else Path(checkpoint).with_suffix('.json')
    write_json(path, config)
    return path


def list_configs() -> list[ShippedConfig]:
    """Return the configs that come with the package."""
    return [_describe(name, path) for name, path in shipped_configs().items()]


def _describe(name: str, path: Path) -> ShippedConfig:
    sections: Any = (
        read_autoencoder_config(path)[1]
        if name.startswith('autoencoders/')
        else Experiment.open(path).sections
    )
    model, dataset = sections.model, sections.dataset
    return ShippedConfig(
        name,
        path,
        tuple(model.input_size),
        model.input_channels,
        model.type,
        dataset.type,
        getattr(dataset, 'location', None),
    )
