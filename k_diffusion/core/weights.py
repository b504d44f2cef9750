"""Weights on disk: .pth read without running code, .safetensors with their config in the
metadata.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, cast

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from .extras import require
from .files import HashingFile, Written, read_json, whole_file
from .images import raw_bytes
from .pickle_state import Foreign, Unreadable
from .torch_files import read_torch_file


def load_checkpoint(path: str | os.PathLike[str]) -> Any:
    """Reads a .pth file that holds tensors, numbers, strings, lists and dicts; anything else is
    refused, nothing runs.

    A missing, empty, cut or foreign file raises one sentence that names it.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f'no checkpoint at {path}; give the path of a .pth or .safetensors file'
        )
    try:
        return read_torch_file(path, data_only=True)
    except Foreign as error:
        raise ValueError(
            f'{path} is no checkpoint of tensors, numbers and text alone ({error}); anything else '
            'is refused, since '
            'reading it could run code: save a state_dict where it comes from'
        ) from None
    except (Unreadable, OSError) as error:
        raise ValueError(
            f'{path} is damaged, cut short or not a checkpoint ({error}); '
            'use an older one from the same folder'
        ) from None


def save_checkpoint(path: str | os.PathLike[str], value: Any) -> Written:
    """Writes a .pth file, whole or not at all; returns its size and SHA-256."""
    with whole_file(path) as temporary, open(temporary, 'wb') as plain:
        file = HashingFile(plain)
        torch.save(value, cast(IO[bytes], file))  # torch writes, and asks nothing else of it
        plain.flush()
        return file.written()


def get_safetensors_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The metadata of a .safetensors file (text by name), without its tensors."""
    with open_safetensors(path) as file:
        return file.metadata() or {}


def load_safetensors(path: str | os.PathLike[str], device: Any = 'cpu') -> dict[str, Tensor]:
    """The tensors of a .safetensors file by name."""
    with open_safetensors(path, str(device)) as file:
        try:
            return {name: file.get_tensor(name) for name in file.keys()}
        except safetensors.SafetensorError as error:  # (a type of numbers that torch has not)
            raise ValueError(
                f'{path} cannot be read as tensors of torch ({error}); convert it where it comes '
                'from'
            ) from None


def load_safetensors_config(path: str | os.PathLike[str]) -> Any:
    """The config that travels in the metadata of a .safetensors file."""
    metadata = get_safetensors_metadata(path)
    if 'config' not in metadata:
        raise ValueError(
            f'{path} carries no config in its metadata; pass the config file beside it as '
            'config=...'
        )
    return read_json(metadata['config'], f'the config inside {path}')


def save_safetensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    config: Any = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write tensors, a config as the metadata key "config" and other metadata, whole or not at
    all.
    """
    require('numpy', 'train', 'writing .safetensors')
    texts = dict(metadata or {})
    if config is not None:
        texts['config'] = json.dumps(config, indent=4)
    with whole_file(path) as temporary:
        plain = {name: t.detach().contiguous() for name, t in tensors.items()}
        try:
            safetensors.torch.save_file(plain, temporary, texts or None)
        except safetensors.SafetensorError as error:
            raise OSError(f'{path} could not be written ({error})') from None
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # safetensors writes files that only their owner may read


def open_safetensors(path: str | os.PathLike[str], device: str = 'cpu') -> Any:
    """A .safetensors file whose tensors are read one by one: a context of keys(),
    get_tensor(name), metadata().
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f'no file at {path}; give the path of a .safetensors file')
    try:
        return safetensors.safe_open(path, framework='pt', device=device)
    except safetensors.SafetensorError as error:
        raise ValueError(
            f'{path} is damaged, cut short or not a .safetensors file ({error})'
        ) from None


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """A digest of weights by name, whatever their order and device: names, shapes and values as
    float32.
    """
    state = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        values = tensors[name].detach()
        values = (
            (values.float() if values.is_floating_point() else values.long()).cpu().contiguous()
        )
        state.update(f'{name} {list(values.shape)} '.encode())
        state.update(raw_bytes(values.reshape(-1).view(torch.uint8)))
    return state.hexdigest()
