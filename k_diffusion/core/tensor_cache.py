"""Files of tensors that can be computed again: kept with a checksum, and computed again where
they do not have it.
"""

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
    """Write tensors and facts (JSON values by name) with a checksum of both; the folder is made
    where there is none.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    values = dict(facts or {})
    save_safetensors(path, tensors, {**values, 'checksum': _checksum(tensors, values)})


def load_cache(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Read what save_cache wrote.

    Returns:
        The tensors and the facts. None where there is no file, and, with a warning, where it is
            damaged or has no checksum.
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
        f'{escape_name(path)} is damaged or was written by an older version; what it held is '
        'computed again',
        stacklevel=3,
    )
    return None


def _checksum(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> int:
    """CRC-32 of facts, names, types, shapes and values."""
    state = zlib.crc32(json.dumps(facts, sort_keys=True).encode())
    for name in sorted(tensors):
        values = tensors[name].detach().cpu()
        state = zlib.crc32(f'{name} {values.dtype} {list(values.shape)} '.encode(), state)
        for part in values.contiguous().reshape(-1).view(torch.uint8).split(_CHUNK):
            state = zlib.crc32(raw_bytes(part), state)
    return state
