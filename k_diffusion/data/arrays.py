"""Files of tensors, opened for their shape and read row by row: .npy, .safetensors, .pt."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.extras import require
from ..core.names import escape_name
from ..core.weights import load_checkpoint, open_safetensors

#: Names of the data in files with several tensors.
USUAL_KEYS = ('x', 'data', 'image', 'images')
#: Number of mapped files kept open.
_KEPT_OPEN = 64

_SAFETENSORS = {
    'F64': torch.float64,
    'F32': torch.float32,
    'F16': torch.float16,
    'BF16': torch.bfloat16,
    'I64': torch.int64,
    'I32': torch.int32,
    'I16': torch.int16,
    'I8': torch.int8,
    'U8': torch.uint8,
    'U16': torch.uint16,
    'BOOL': torch.bool,
}


class ArrayFile(ABC):
    """A tensor in a file: shape and type are read at once, values on request."""

    def __init__(self, path: Path, shape: Iterable[int], dtype: torch.dtype) -> None:
        if dtype.is_complex or dtype == torch.bool:
            raise ValueError(
                f'{escape_name(path)} must hold real numbers; got '
                f'{str(dtype).removeprefix("torch.")}: '
                'take real and imaginary part as two channels'
                if dtype.is_complex
                else f'{escape_name(path)} must hold numbers; got bool: convert it to uint8'
            )
        self.path, self.shape, self.dtype = path, tuple(shape), dtype
        self.stamp = _stamp(path)

    @abstractmethod
    def read(self, row: int | None) -> Tensor:
        """Return a row of the tensor, or all of it.

        Args:
            row: The row; None for all.
        """


class NumpyFile(ArrayFile):
    """A .npy file, mapped into memory."""

    def __init__(self, path: Path, key: str | None) -> None:
        array = _map_array(path, _stamp(path))
        numpy = require('numpy', 'train', 'reading .npy')
        try:
            dtype = torch.from_numpy(numpy.empty(0, array.dtype.newbyteorder('='))).dtype
        except TypeError:
            raise ValueError(
                f'{escape_name(path)} must hold numbers; got the type {array.dtype}'
            ) from None
        super().__init__(path, array.shape, dtype)

    def read(self, row: int | None) -> Tensor:
        """Return a row, or the whole array if row is None."""
        numpy = require('numpy', 'train', 'reading .npy')
        array = _map_array(self.path, self.stamp)
        part = array if row is None else array[row]
        return torch.from_numpy(numpy.array(part, dtype=array.dtype.newbyteorder('='), order='C'))


class SafetensorsFile(ArrayFile):
    """A tensor of a .safetensors file, mapped into memory."""

    def __init__(self, path: Path, key: str | None) -> None:
        with open_safetensors(path) as file:
            self.key = _choose(path, list(file.keys()), key)
            part = file.get_slice(self.key)
            kind = part.get_dtype()
            if kind not in _SAFETENSORS:
                raise ValueError(
                    f'{escape_name(path)} must hold numbers of a type that torch has; got {kind}: '
                    'convert it'
                )
            super().__init__(path, part.get_shape(), _SAFETENSORS[kind])

    def read(self, row: int | None) -> Tensor:
        """Return a row, or the whole array if row is None."""
        file = _map_tensors(self.path, self.stamp)
        tensor: Tensor = (
            file.get_tensor(self.key) if row is None else file.get_slice(self.key)[row : row + 1][0]
        )
        return tensor


class TorchFile(ArrayFile):
    """A tensor of a .pt file, read whole and kept; nothing in it is executed."""

    def __init__(self, path: Path, key: str | None) -> None:
        content = load_checkpoint(path)
        if isinstance(content, dict):
            tensors = {
                str(name): value for name, value in content.items() if isinstance(value, Tensor)
            }
            content = tensors[_choose(path, list(tensors), key)]
        if not isinstance(content, Tensor):
            raise ValueError(
                f'{escape_name(path)} must hold a tensor, or a dict of tensors; got a '
                f'{type(content).__name__}'
            )
        self.tensor = content.detach()
        super().__init__(path, content.shape, content.dtype)

    def read(self, row: int | None) -> Tensor:
        """Return a row, or the whole array if row is None."""
        return (self.tensor if row is None else self.tensor[row]).contiguous()


_KINDS: dict[str, Callable[[Path, str | None], ArrayFile]] = {
    '.npy': NumpyFile,
    '.safetensors': SafetensorsFile,
    '.pt': TorchFile,
    '.pth': TorchFile,
}
ENDINGS = tuple(_KINDS)


def open_array(path: Path, key: str | None = None) -> ArrayFile:
    """Open a file of tensors.

    Args:
        path: The file.
        key: The name of the tensor, in a file with several.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read, or has no such tensor.
    """
    if path.suffix not in _KINDS:
        raise ValueError(f'{escape_name(path)} must end in {", ".join(ENDINGS)}')
    return _KINDS[path.suffix](path, key)


def _choose(path: Path, names: list[str], key: str | None) -> str:
    """Return the name of the tensor that is meant."""
    usual = next(
        (name for name in USUAL_KEYS if name in names), names[0] if len(names) == 1 else None
    )
    choice = usual if key is None else key
    if choice is None or choice not in names:
        shortlist = ', '.join(escape_name(name) for name in sorted(names)[:8]) or 'none'
        what = (
            'dataset.key must name one of its tensors'
            if key is None
            else f'it has no tensor {key!r}'
        )
        raise ValueError(f'{escape_name(path)} holds the tensors {shortlist}; {what}')
    return choice


def _stamp(path: Path) -> tuple[int, int]:
    """Return size and modification time of a file, which identify its version."""
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


@lru_cache(maxsize=_KEPT_OPEN)
def _map_array(path: Path, stamp: Any) -> Any:
    """A mapped .npy file."""
    numpy = require('numpy', 'train', 'reading .npy')
    try:
        return numpy.load(path, mmap_mode='r', allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(
            f'{escape_name(path)} is damaged, cut short or not a .npy file of numbers '
            f'({str(error).splitlines()[0][:120]})'
        ) from None


@lru_cache(maxsize=_KEPT_OPEN)
def _map_tensors(path: Path, stamp: Any) -> Any:
    return open_safetensors(path).__enter__()
