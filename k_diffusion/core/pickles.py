"""Pickles read without running what they say: tensors, numbers, text and containers as they are,
all else as inert records.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from .torch_files import read_torch_file
from .unpickling import TEXT_LENGTH, Foreign, Record, Unreadable

__all__ = ['Record', 'read_pickle', 'state_of', 'tensors_of']

#: Levels of modules, modules and tensors in all, and characters of all their names, that a pickled
#: network may have: modules that hold one module twice each can make a network of billions of parts
#: out of a small file.
_LEVELS, _PARTS, _CHARACTERS = 100, 100_000, 1 << 23


def read_pickle(path: str | os.PathLike[str]) -> Any:
    """The contents of a .pkl, .pt or .ckpt file, whatever it holds; nothing in it runs.

    ValueError where it cannot be read so.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'no file at {path}; give the path of a .pkl, .pt or .ckpt file')
    try:
        return read_torch_file(path, data_only=False)
    except Foreign as error:
        raise ValueError(
            f'{path} cannot be read safely: {error}; give a state dict or .safetensors saved '
            'where it comes from'
        ) from None
    except Unreadable as error:
        raise ValueError(
            f'{path} cannot be read safely: {error}. It is damaged, or of a form that only '
            'running its code would open; '
            'give a state dict or .safetensors saved where it comes from'
        ) from None


def tensors_of(record: Any, prefix: str = '') -> Iterator[tuple[str, Tensor]]:
    """The parameters and buffers of a pickled nn.Module (a Record with its state), under the
    names of its state dict.
    """
    waiting, seen, characters = [(record, prefix, 0)], 0, 0

    def count(name: str, level: int) -> str:
        nonlocal seen, characters
        seen, characters = seen + 1, characters + len(name)
        if (
            seen > _PARTS
            or level > _LEVELS
            or len(name) > 2 * TEXT_LENGTH
            or characters > _CHARACTERS
        ):
            raise ValueError(
                f'the network in this file has more than {_PARTS:,} parts, {_LEVELS} levels or '
                f'{_CHARACTERS:,} '
                'characters of names, or holds itself'
            )
        return name

    while waiting:
        module, prefix, level = waiting.pop()
        state = state_of(module)
        dropped = _mapping(state.get('_non_persistent_buffers_set'))
        for group in ('_parameters', '_buffers'):
            for key, value in _mapping(state.get(group)).items():
                name = count(f'{prefix}{key}', level)
                if isinstance(value, Tensor) and key not in dropped:
                    yield name, value.detach()
        inner = [
            (value, count(f'{prefix}{key}.', level + 1), level + 1)
            for key, value in _mapping(state.get('_modules')).items()
            if value is not None
        ]
        waiting += reversed(inner)


def _mapping(value: Any) -> Mapping[Any, Any]:
    """A dict of a pickle, where there is one; the names of a set as keys."""
    if isinstance(value, (set, frozenset)):
        return dict.fromkeys(value)
    return value if isinstance(value, dict) else {}


def state_of(record: Any) -> dict[str, Any]:
    """The attributes of a pickled object: those of a Record, or of what such a record was called
    with.
    """
    if isinstance(record, Record):
        if isinstance(record.state, dict):
            return record.state
        meta = record.arguments[0] if record.arguments else None
        if isinstance(meta, dict) and isinstance(
            meta.get('state'), dict
        ):  # the persistent objects of EDM
            return meta['state']
    return {}
