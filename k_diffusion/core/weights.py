"""Weights on disk: .pth read without running code, .safetensors with a config in its metadata."""

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
from .files import FileDigest, HashingFile, read_json, whole_file
from .images import raw_bytes
from .pickle_state import Foreign, Unreadable
from .torch_files import read_torch_file


def load_checkpoint(path: str | os.PathLike[str]) -> Any:
    """Read a .pth file of tensors, numbers, strings, lists and dicts, without running code.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, not a checkpoint, or contains anything else.
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
            f'{path} must be a checkpoint of tensors, numbers and text only ({error}), because '
            'reading '
            'anything else could run code. Save a state_dict where it comes from'
        ) from None
    except (Unreadable, OSError) as error:
        raise ValueError(
            f'{path} is damaged, cut short or not a checkpoint ({error}); '
            'use an older one from the same folder'
        ) from None


def save_checkpoint(path: str | os.PathLike[str], value: Any) -> FileDigest:
    """Write a .pth file, completely or not at all.

    Args:
        path: The file.
        value: What torch.save takes.

    Returns:
        Its size and SHA-256.
    """
    with whole_file(path) as temporary, open(temporary, 'wb') as plain:
        file = HashingFile(plain)
        torch.save(value, cast(IO[bytes], file))  # torch calls only write and flush
        plain.flush()
        return file.digest()


def get_safetensors_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """Return the metadata of a .safetensors file, without reading its tensors.

    Args:
        path: The file.
    """
    with open_safetensors(path) as file:
        return file.metadata() or {}


def load_safetensors(path: str | os.PathLike[str], device: Any = 'cpu') -> dict[str, Tensor]:
    """Read the tensors of a .safetensors file by name.

    Args:
        path: The file.
        device: Their device.

    Raises:
        ValueError: If torch cannot represent a tensor.
    """
    with open_safetensors(path, str(device)) as file:
        try:
            return {name: file.get_tensor(name) for name in file.keys()}
        except safetensors.SafetensorError as error:  # such as a dtype that torch does not have
            raise ValueError(
                f'{path} must hold tensors of dtypes that torch has ({error}); convert it where it '
                'comes from'
            ) from None


def load_safetensors_config(path: str | os.PathLike[str]) -> Any:
    """Read the config in the metadata of a .safetensors file.

    Args:
        path: The file.

    Raises:
        ValueError: If it has none.
    """
    metadata = get_safetensors_metadata(path)
    if 'config' not in metadata:
        raise ValueError(
            f'{path} has no config in its metadata; pass the config file that belongs to it as '
            'config=...'
        )
    return read_json(metadata['config'], f'the config inside {path}')


def save_safetensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    config: Any = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a .safetensors file, completely or not at all.

    Args:
        path: The file.
        tensors: Tensors by name.
        config: Stored under the metadata key "config".
        metadata: Further metadata.

    Raises:
        OSError: If it cannot be written.
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
        temporary.chmod(0o666 & ~umask)  # safetensors creates files readable by their owner only


def open_safetensors(path: str | os.PathLike[str], device: str = 'cpu') -> Any:
    """Open a .safetensors file for reading tensors one by one.

    Args:
        path: The file.
        device: The device of the tensors.

    Returns:
        A context with keys(), get_tensor(name) and metadata().

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged.
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
    """Return a digest of weights: names, shapes and values as float32, for any order and device.

    Args:
        tensors: The weights by name.
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
