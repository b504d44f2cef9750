"""Cache files of tensors with a checksum, computed again if the checksum does not fit."""

from __future__ import annotations

import json
import os
import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .images import raw_bytes
from .names import escape_name
from .weights import load_safetensors, load_safetensors_config, save_safetensors

_CHUNK = 1 << 24


def save_cache(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Write tensors and facts with a checksum of both; missing folders are created.

    Args:
        path: The file.
        tensors: The tensors by name.
        facts: JSON values by name.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    values = dict(facts or {})
    save_safetensors(path, tensors, {**values, 'checksum': _checksum(tensors, values)})


def load_cache(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Read a file that save_cache wrote.

    Args:
        path: The file.

    Returns:
        The tensors and the facts. None if there is no file, and, with a warning, if it is damaged
            or has no checksum.
    """
    if not Path(path).is_file():
        return None
    try:
        tensors, facts = load_safetensors(path), load_safetensors_config(path)
        if facts.pop('checksum') == _checksum(tensors, facts):
            return tensors, facts
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    warnings.warn(
        f'{escape_name(path)} is damaged or was written by an older version; its contents '
        'are computed again',
        stacklevel=3,
    )
    return None


def _checksum(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> int:
    """Return the CRC-32 of facts, names, types, shapes and values."""
    state = zlib.crc32(json.dumps(facts, sort_keys=True).encode())
    for name in sorted(tensors):
        values = tensors[name].detach().cpu()
        state = zlib.crc32(f'{name} {values.dtype} {list(values.shape)} '.encode(), state)
        for part in values.contiguous().reshape(-1).view(torch.uint8).split(_CHUNK):
            state = zlib.crc32(raw_bytes(part), state)
    return state
