"""Reading pickles without running them: data unchanged, all else as inert records."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from .pickle_state import TEXT_LENGTH, Foreign, Record, Unreadable
from .torch_files import read_torch_file

__all__ = ['Record', 'read_pickle', 'state_of', 'tensors_of']

#: Largest depth of modules, number of modules and tensors, and number of characters of all their
#: names in a pickled network. Modules that hold one module twice each can turn a small file into a
#: network of billions of parts.
_LEVELS, _PARTS, _CHARACTERS = 100, 100_000, 1 << 23


def read_pickle(path: str | os.PathLike[str]) -> Any:
    """Read the contents of a .pkl, .pt or .ckpt file without running anything in it.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read without running code.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'no file at {path}; path must be a .pkl, .pt or .ckpt file')
    try:
        return read_torch_file(path, data_only=False)
    except Foreign as error:
        raise ValueError(
            f'{path} cannot be read safely: {error}; export a state dict or .safetensors where it '
            'was made'
        ) from None
    except Unreadable as error:
        raise ValueError(
            f'{path} cannot be read safely: {error}. It is damaged, or of a form that needs its '
            'code to run; export a state dict or .safetensors where it was made'
        ) from None


def tensors_of(record: Any, prefix: str = '') -> Iterator[tuple[str, Tensor]]:
    """Yield the parameters and buffers of a pickled nn.Module by their names in its state dict.

    Args:
        record: A Record with the state of the module.
        prefix: Put before the names.

    Raises:
        ValueError: If the network has too many parts, or holds itself.
    """
    waiting, parts, characters = [(record, prefix, 0)], 0, 0

    def count(name: str, level: int) -> str:
        nonlocal parts, characters
        parts, characters = parts + 1, characters + len(name)
        if (
            parts > _PARTS
            or level > _LEVELS
            or len(name) > 2 * TEXT_LENGTH
            or characters > _CHARACTERS
        ):
            raise ValueError(
                f'the network in this file must have at most {_PARTS:,} parts, {_LEVELS} levels '
                'and '
                f'{_CHARACTERS:,} characters of names, and must not hold itself'
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
    """Return a dict of a pickle, or the names in a set as keys; {} for anything else."""
    if isinstance(value, (set, frozenset)):
        return dict.fromkeys(value)
    return value if isinstance(value, dict) else {}


def state_of(record: Any) -> dict[str, Any]:
    """Return the attributes of a pickled object.

    Args:
        record: A Record, or a Record that was called with such a state.
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
