"""Pickles read without running what they say: tensors, numbers, text and containers as they are, all else as inert records.

A pickle is a small program that can call any function there is. Here the only functions it can reach are those that rebuild a
tensor, and every other name becomes a record of that name and of what it would have been called with.
"""
from __future__ import annotations

import collections
import io
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch._utils
from torch import Tensor


class Record(dict[Any, Any]):
    """What stands in a pickle under a name that is not read: its name, what it was to be called with, and its state."""

    module: str = ''
    name: str = ''

    def __new__(cls, *args: Any, **kwargs: Any) -> Record:
        record = super().__new__(cls)
        record.arguments = args
        return record

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        self.items_added: list[Any] = []

    def __setstate__(self, state: Any) -> None:
        # A record is plain data: its state is kept beside it, never set as attributes.
        self.state = state

    def append(self, item: Any) -> None:
        self.items_added.append(item)

    def extend(self, items: Any) -> None:
        self.items_added.extend(items)

    def __hash__(self) -> int:     # type: ignore[override]
        return id(self)

    def __repr__(self) -> str:
        return f'<{self.module}.{self.name} as a record>'

    arguments: tuple[Any, ...] = ()
    state: Any = None


def _tensor_from_bytes(data: bytes) -> Any:
    return torch.load(io.BytesIO(data), weights_only=True)


#: The number that the files of torch before 1.6 begin with.
_OLD_FORMAT = 0x1950a86a20f9469cfc6c
_READ = {
    ('torch._utils', '_rebuild_tensor_v2'): torch._utils._rebuild_tensor_v2,
    ('torch._utils', '_rebuild_parameter'): torch._utils._rebuild_parameter,
    ('torch.storage', '_load_from_bytes'): _tensor_from_bytes,
    ('collections', 'OrderedDict'): collections.OrderedDict,
    ('torch', 'Size'): torch.Size,
    ('builtins', 'set'): set,
    ('builtins', 'frozenset'): frozenset,
    ('builtins', 'complex'): complex,
    ('builtins', 'bytearray'): bytearray,
    **{('torch', name): getattr(torch, name) for name in dir(torch) if isinstance(getattr(torch, name), torch.dtype)},
}


class InertUnpickler(pickle.Unpickler):
    """A reader that finds nothing but what rebuilds tensors; other names become Records."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _READ:
            return _READ[module, name]
        return type(name.rsplit('.', 1)[-1], (Record,), {'module': module, 'name': name})


def read_pickle(path: str | os.PathLike[str]) -> Any:
    """The contents of a .pkl, .pt or .ckpt file, whatever it holds; nothing in it runs. ValueError where it cannot be read so."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'no file at {path}; give the path of a .pkl, .pt or .ckpt file')
    try:
        with open(path, 'rb') as file:
            if file.read(4)[:2] == b'PK':
                return torch.load(path, map_location='cpu', weights_only=False, pickle_module=_MODULE)
            file.seek(0)
            content = InertUnpickler(file).load()
        return torch.load(path, map_location='cpu', weights_only=True) if content == _OLD_FORMAT else content
    except Exception as error:      # a damaged pickle can fail in any way
        raise ValueError(f'{path} cannot be read safely ({type(error).__name__}: {error}); it is damaged, or of a form that only running '
                         'its code would open, which is not done: save a state dict or .safetensors where it comes from') from None


def tensors_of(record: Any, prefix: str = '') -> Iterator[tuple[str, Tensor]]:
    """The parameters and buffers of a pickled nn.Module (a Record with its state), under the names of its state dict."""
    state = state_of(record)
    dropped = state.get('_non_persistent_buffers_set') or ()
    for group in ('_parameters', '_buffers'):
        for name, value in (state.get(group) or {}).items():
            if isinstance(value, Tensor) and name not in dropped:
                yield prefix + name, value.detach()
    for name, module in (state.get('_modules') or {}).items():
        if module is not None:
            yield from tensors_of(module, f'{prefix}{name}.')


def state_of(record: Any) -> dict[str, Any]:
    """The attributes of a pickled object: those of a Record, or of what such a record was called with."""
    if isinstance(record, Record):
        if isinstance(record.state, dict):
            return record.state
        meta = record.arguments[0] if record.arguments else None
        if isinstance(meta, dict) and isinstance(meta.get('state'), dict):      # the persistent objects of EDM
            return meta['state']
    return {}


#: What torch.load takes for the module `pickle`: the reader above and nothing else.
_MODULE: Any = SimpleNamespace(Unpickler=InertUnpickler, load=lambda file, **_: InertUnpickler(file).load(),
                               UnpicklingError=pickle.UnpicklingError, __name__='inert')
