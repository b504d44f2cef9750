"""Write the averaged weights of a training checkpoint as a file for inference."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from ..config import find_checkpoint, load_config, make_model, read_weights
from ..core.remote import is_url
from ..core.settings import check_settings, one_of, setting, takes_settings
from ..core.weights import save_safetensors
from ..training import load_weights

_DTYPES = {'fp32': torch.float32, 'fp16': torch.float16, 'bf16': torch.bfloat16}


@dataclass(frozen=True)
class ConvertSettings:
    """Settings of `convert`."""

    checkpoint: str | os.PathLike[str] = setting(help='the .pth checkpoint', flags=('checkpoint',))
    out: str | os.PathLike[str] | None = setting(
        None,
        'the .safetensors file to write (default: the checkpoint with this ending)',
        flags=('-o', '--output', '--out'),
    )
    dtype: str = setting('fp16', 'the dtype of the weights', choices=tuple(_DTYPES))
    config: str | None = setting(None, 'the config, if the checkpoint has none')
    verify: bool = setting(True, 'accept a checkpoint that differs from its manifest')

    def __post_init__(self) -> None:
        has_ending = self.out is None or Path(self.out).suffix == '.safetensors'
        check_settings(
            one_of(self, _DTYPES, 'dtype'),
            None if has_ending else f'out must end in .safetensors; got {self.out}',
            'out must be given with a URL'
            if self.out is None and is_url(self.checkpoint)
            else None,
        )


@takes_settings(ConvertSettings)
def convert(settings: ConvertSettings) -> Path:
    """Write the averaged weights of a checkpoint as .safetensors, with the config in its metadata.

    Args:
        settings: The settings, or the fields of ConvertSettings as arguments.

    Returns:
        The path of the file.

    Raises:
        FileNotFoundError: The checkpoint does not exist.
        ValueError: The checkpoint has no config and the settings neither, or the output would
            overwrite the checkpoint.
    """
    checkpoint = find_checkpoint(settings.checkpoint, settings.verify)
    weights, own_config = read_weights(checkpoint, verify=settings.verify)
    source = settings.config if settings.config is not None else own_config
    if source is None:
        raise ValueError(
            f'config must be given, since {checkpoint} carries none; name the one that it was '
            'trained with'
        )
    config = load_config(source)
    load_weights(make_model(config), weights, checkpoint)
    path = (
        Path(settings.out)
        if settings.out is not None
        else Path(checkpoint).with_suffix('.safetensors')
    )
    if path.resolve() == Path(checkpoint).resolve():
        raise ValueError(f'out must differ from the checkpoint; got {path}')
    save_safetensors(
        path, {key: value.to(_DTYPES[settings.dtype]) for key, value in weights.items()}, config
    )
    return path
