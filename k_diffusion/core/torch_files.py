"""Reading files of torch.save without torch.load: zip files, older files, and pickles.

torch.load looks at the contents of a file and may pass it to torch.jit, whose archives run code
while they are read. Here each layout is read by the code below. A tensor is made only if its sizes,
strides and offset are within its storage, and a storage only from bytes in the file.
"""

from __future__ import annotations

import io
import math
import os
import re
import struct
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from .pickle_state import Budget, Foreign, Name, Unreadable, checked_key
from .unpickling import Machine
from .zip_members import Member, read_chunks, read_members

_STORAGES: dict[str, torch.dtype] = {
    'DoubleStorage': torch.float64,
    'FloatStorage': torch.float32,
    'HalfStorage': torch.float16,
    'BFloat16Storage': torch.bfloat16,
    'LongStorage': torch.int64,
    'IntStorage': torch.int32,
    'ShortStorage': torch.int16,
    'CharStorage': torch.int8,
    'ByteStorage': torch.uint8,
    'BoolStorage': torch.bool,
    'ComplexDoubleStorage': torch.complex128,
    'ComplexFloatStorage': torch.complex64,
    'UntypedStorage': torch.uint8,
}
_STORAGE_NAMES = {
    (module, name): dtype
    for name, dtype in _STORAGES.items()
    for module in ('torch', 'torch.cuda', 'torch.storage')
}
_TYPES = {
    ('torch', 'Tensor'),
    ('torch._tensor', 'Tensor'),
    ('torch.nn.parameter', 'Parameter'),
    ('torch.nn.parameter', 'Buffer'),
}
_DTYPES = {
    ('torch', name): dtype
    for name in dir(torch)
    if isinstance(dtype := getattr(torch, name), torch.dtype)
}
#: The numbers at the start of a file of torch before 1.6.
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_DIMENSIONS, _DEPTH = 64, 100


class Storage:
    """Elements of one type: `count` of them from byte `start` of `data`.

    Args:
        data: The bytes.
        dtype: The type of the elements.
        start: Their first byte.
        count: Their number.
    """

    __slots__ = ('count', 'data', 'dtype', 'start')

    def __init__(
        self, data: torch.UntypedStorage, dtype: torch.dtype, start: int, count: int
    ) -> None:
        self.data, self.dtype, self.start, self.count = data, dtype, start, count


def read_torch_file(path: str | os.PathLike[str], data_only: bool) -> Any:
    """Read the contents of a file of torch.save, or of a pickle.

    Args:
        path: The file.
        data_only: Refuse anything but tensors, numbers, text and containers of these (True), or
            return it as Records (False).

    Raises:
        Unreadable: If the file is damaged, of another form, or exceeds the limits of `unpickling`.
        Foreign: If data_only is set and the file holds something else.
    """
    size = Path(path).stat().st_size
    budget = Budget(size)
    records = () if data_only else None
    with open(path, 'rb') as file:
        is_zip = file.read(2) == b'PK'
        file.seek(0)
        content = (
            _read_zip(file, size, budget, records)
            if is_zip
            else _read_stream(file, size, budget, records)
        )
    if data_only:
        check_data(content, size)
    return content


def check_data(content: Any, size: int = 0) -> None:
    """Refuse contents that nest deeply, hold themselves, or repeat their parts without end.

    Code that walks them would not return.

    Args:
        content: The contents.
        size: The size of the file, in bytes.

    Raises:
        Unreadable: If a limit is exceeded.
        Foreign: If there is anything but data.
    """
    budget = Budget(size)

    def walk(value: Any, depth: int) -> None:
        budget.spend(1)
        if depth > _DEPTH:
            raise Unreadable(f'it nests more than {_DEPTH} containers, or a container holds itself')
        if isinstance(value, dict):
            for key, item in value.items():
                walk(key, depth + 1)
                walk(item, depth + 1)
        elif isinstance(value, (list, tuple, set, frozenset)) and type(value) is not Name:
            for item in value:
                walk(item, depth + 1)
        elif type(value) is Name or not isinstance(value, _DATA):
            raise Foreign(f'it holds {type(value).__name__} as a value')

    walk(content, 0)


_DATA = (str, bytes, bytearray, int, float, complex, type(None), Tensor, torch.dtype, torch.device)


# Layouts


def _machine(
    file: BinaryIO,
    size: int,
    budget: Budget,
    records: Any,
    persistent: Callable[[Any], Any] | None = None,
    nested: bool = True,
) -> Machine:
    calls = _Rebuilders(budget).functions()
    if nested:
        calls['torch.storage', '_load_from_bytes'] = lambda data: _read_nested(
            data, budget, records
        )
    names = _TYPES | _STORAGE_NAMES.keys() | calls.keys()
    return Machine(
        file,
        size,
        budget,
        calls=calls,
        constants=_DTYPES,
        names=names,
        records=records,
        persistent=persistent,
    )


def _read_zip(file: BinaryIO, size: int, budget: Budget, records: Any) -> Any:
    members = read_members(file, size)
    roots = [
        name[: -len('data.pkl')] for name in members if re.fullmatch(r'([^/]*/)?data\.pkl', name)
    ]
    if any(name.endswith('constants.pkl') or re.match(r'([^/]*/)?code/', name) for name in members):
        raise Foreign('it is a TorchScript archive, which is a program')
    if len(roots) != 1:
        raise Unreadable('it is a zip file that torch.save did not write')
    root, storages = roots[0], {}
    order = (
        b''.join(read_chunks(file, size, members[name], budget))
        if (name := f'{root}byteorder') in members
        else b'little'
    )
    if order not in (b'little', b'big'):
        raise Unreadable('its byte order is not known')

    def storage(key: Any, dtype: torch.dtype, count: int) -> torch.UntypedStorage:
        if key not in storages:
            member = members.get(f'{root}data/{key}')
            if member is None:
                raise Unreadable('a tensor of it has no data')
            storages[key] = _fill_storage(
                read_chunks(file, size, member, budget), member, dtype, count
            )
            if order.decode() != sys.byteorder:
                storages[key].byteswap(dtype)
        return storages[key]

    pickle = b''.join(read_chunks(file, size, members[f'{root}data.pkl'], budget))
    return _machine(
        io.BytesIO(pickle), len(pickle), budget, records, lambda key: _resolve(key, storage)
    ).load()


def _fill_storage(
    chunks: Iterable[bytes], member: Member, dtype: torch.dtype, count: int
) -> torch.UntypedStorage:
    if member.size != count * dtype.itemsize:
        raise Unreadable(
            f'a tensor of it has {member.size:,} bytes of data; its type and count require '
            f'{count * dtype.itemsize:,}'
        )
    data, at = torch.empty(member.size, dtype=torch.uint8), 0
    for chunk in chunks:
        if chunk:
            data[at : at + len(chunk)] = torch.frombuffer(bytearray(chunk), dtype=torch.uint8)
            at += len(chunk)
    return data.untyped_storage()


def _read_stream(file: BinaryIO, size: int, budget: Budget, records: Any) -> Any:
    """Read a pickle or a file of torch before 1.6.

    The latter consists of pickles of a head, the contents and the keys of storages, then their
    bytes.
    """
    first = _machine(file, size, budget, records).load()
    return (
        _read_old(file, size, budget, records) if type(first) is int and first == _MAGIC else first
    )


def _read_nested(data: Any, budget: Budget, records: Any) -> Any:
    """Read the argument of a pickled storage: a file of torch before 1.6 as bytes."""
    if type(data) is not bytes:
        raise Unreadable('a storage of it is not made from bytes')
    file = io.BytesIO(data)
    if _machine(file, len(data), budget, records, nested=False).load() != _MAGIC:
        raise Unreadable('a storage of it is not one that torch wrote')
    return _read_old(file, len(data), budget, records, nested=False)


def _read_old(file: BinaryIO, size: int, budget: Budget, records: Any, nested: bool = True) -> Any:
    """Read the rest of a file of torch before 1.6, after its first number."""
    storages: dict[Any, tuple[torch.UntypedStorage, torch.dtype, int]] = {}

    def storage(key: Any, dtype: torch.dtype, count: int) -> torch.UntypedStorage:
        if key not in storages:
            if count * dtype.itemsize > size:
                raise Unreadable('it is cut short')
            budget.allocate(count * dtype.itemsize)
            storages[key] = torch.UntypedStorage(count * dtype.itemsize), dtype, count
        return storages[key][0]

    machine = _machine(file, size, budget, records, nested=nested)
    if machine.load() != _PROTOCOL:
        raise Unreadable('its version is not known')
    head = machine.load()
    machine.persistent = lambda key: _resolve(key, storage)
    content = machine.load()
    machine.persistent = None
    keys = machine.load()
    if (
        type(keys) is not list
        or len(keys) != len(storages)
        or {checked_key(key, budget) for key in keys} != storages.keys()
    ):
        raise Unreadable('its list of tensors is damaged')
    swap = isinstance(head, Mapping) and head.get('little_endian') is False
    for data, dtype, count in (storages[key] for key in keys):
        _fill_old(file, data, dtype, count)
        if swap != (sys.byteorder == 'big'):
            data.byteswap(dtype)
    return content


def _fill_old(file: BinaryIO, data: torch.UntypedStorage, dtype: torch.dtype, count: int) -> None:
    head = file.read(8)
    if len(head) < 8 or struct.unpack('<q', head)[0] != count:
        raise Unreadable('it is cut short, or a tensor of it has another size than it says')
    view, at = torch.empty(0, dtype=torch.uint8).set_(data), 0
    while at < count * dtype.itemsize:
        chunk = file.read(min(1 << 20, count * dtype.itemsize - at))
        if not chunk:
            raise Unreadable('it is cut short')
        view[at : at + len(chunk)] = torch.frombuffer(bytearray(chunk), dtype=torch.uint8)
        at += len(chunk)


def _resolve(key: Any, storage: Callable[[Any, torch.dtype, int], torch.UntypedStorage]) -> Any:
    """Return the storage of a persistent id ('storage', type, key, location, count[, view])."""
    if type(key) is tuple and key and key[0] in ('module', b'module'):
        return key[1]
    if type(key) is not tuple or len(key) not in (5, 6) or key[0] not in ('storage', b'storage'):
        raise Unreadable('it refers to something other than a storage')
    _, kind, name, _, count = key[:5]
    dtype = _STORAGE_NAMES.get(kind) if type(kind) is Name else None
    if dtype is None or type(name) not in (str, bytes, int) or not _is_count(count):
        raise Unreadable('a storage of it is of an unknown type or size')
    if type(name) is not int and len(name) > 100:
        raise Unreadable('a storage of it is damaged')
    start, data = 0, storage(name, dtype, count)
    if data.nbytes() < count * dtype.itemsize:
        raise Unreadable('a storage of it has two sizes')
    if len(key) == 6 and key[5] is not None:
        _, first, length = key[5]
        if not _is_count(first) or not _is_count(length) or first + length > count:
            raise Unreadable('a part of a storage of it lies outside it')
        start, count = first * dtype.itemsize, length
    return Storage(data, dtype, start, count)


# Tensors


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 48


class _Rebuilders:
    """The functions that torch's pickles name, with checked arguments."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.of_tensors: dict[tuple[str, str], Callable[..., Any]] = {
            ('torch._utils', '_rebuild_tensor'): self.make_tensor_v1,
            ('torch._utils', '_rebuild_tensor_v2'): self.make_tensor_v2,
            ('torch._utils', '_rebuild_tensor_v3'): self.make_tensor_v3,
            ('torch._utils', '_rebuild_parameter'): self.make_parameter,
            ('torch._utils', '_rebuild_parameter_with_state'): self.make_parameter,
        }

    def functions(self) -> dict[tuple[str, str], Callable[..., Any]]:
        """Return the functions by (module, name)."""
        return {
            **self.of_tensors,
            ('torch._tensor', '_rebuild_from_type_v2'): self.make_from_type,
            ('torch.tensor', '_rebuild_from_type_v2'): self.make_from_type,
            ('torch', 'Size'): _size,
            ('torch', 'device'): _device,
        }

    def _make_tensor(
        self, storage: Any, offset: Any, size: Any, stride: Any, dtype: torch.dtype | None = None
    ) -> Tensor:
        self.budget.spend(16)
        if type(storage) is not Storage or type(size) is not tuple or type(stride) is not tuple:
            raise Unreadable('a tensor of it is damaged')
        dtype = dtype or storage.dtype
        room = storage.start + storage.count * storage.dtype.itemsize
        first, rest = divmod(storage.start, dtype.itemsize)
        if (
            rest
            or len(size) != len(stride)
            or len(size) > _DIMENSIONS
            or not all(map(_is_count, (offset, *size, *stride)))
        ):
            raise Unreadable('a tensor of it is damaged')
        count = math.prod(size)
        last = first + offset + sum((length - 1) * step for length, step in zip(size, stride))
        too_many = math.prod(filter(None, size)) >= 1 << 60
        if (count and (last + 1) * dtype.itemsize > room) or too_many:
            raise Unreadable('a tensor of it reaches beyond its data')
        self.budget.allocate(count * dtype.itemsize)
        if not count:
            return torch.empty(size, dtype=dtype)
        return torch.empty(0, dtype=dtype).set_(storage.data, first + offset, size, stride)

    def make_tensor_v1(self, storage: Any, offset: Any, size: Any, stride: Any) -> Tensor:
        """Make a tensor as torch._utils._rebuild_tensor does, from the same arguments."""
        return self._make_tensor(storage, offset, size, stride)

    def make_tensor_v2(
        self,
        storage: Any,
        offset: Any,
        size: Any,
        stride: Any,
        gradient: Any = False,
        hooks: Any = None,
        extra: Any = None,
    ) -> Tensor:
        """Make a tensor as torch._utils._rebuild_tensor_v2 does, from the same arguments."""
        _check_extra(extra)
        return _with_gradient(self._make_tensor(storage, offset, size, stride), gradient)

    def make_tensor_v3(
        self,
        storage: Any,
        offset: Any,
        size: Any,
        stride: Any,
        gradient: Any,
        hooks: Any,
        dtype: Any,
        extra: Any = None,
    ) -> Tensor:
        """Make a tensor as torch._utils._rebuild_tensor_v3 does, from the same arguments."""
        _check_extra(extra)
        if not isinstance(dtype, torch.dtype):
            raise Unreadable('a tensor of it has an unknown type')
        return _with_gradient(self._make_tensor(storage, offset, size, stride, dtype), gradient)

    def make_parameter(
        self, data: Any, gradient: Any = False, hooks: Any = None, state: Any = None
    ) -> Tensor:
        """Make a parameter as torch._utils._rebuild_parameter does, from the same arguments."""
        if not isinstance(data, Tensor):
            raise Unreadable('a parameter of it is damaged')
        self.budget.spend(16)
        return nn.Parameter(
            data.detach(), gradient is True and (data.is_floating_point() or data.is_complex())
        )

    def make_from_type(self, function: Any, kind: Any, arguments: Any, state: Any = None) -> Tensor:
        """Make a tensor as torch._tensor._rebuild_from_type_v2 does, from the same arguments."""
        if function not in self.of_tensors or type(arguments) is not tuple:
            raise Unreadable('a tensor of it is made by an unknown function')
        return self.of_tensors[function](*arguments)


def _check_extra(extra: Any) -> None:
    if extra:
        raise Unreadable(
            'a tensor of it is stored conjugated or negated, which is not read; save its '
            '.resolve_conj()'
        )


def _with_gradient(tensor: Tensor, gradient: Any) -> Tensor:
    return tensor.requires_grad_(
        gradient is True and (tensor.is_floating_point() or tensor.is_complex())
    )


def _size(lengths: Any = ()) -> torch.Size:
    if (
        type(lengths) not in (tuple, list)
        or len(lengths) > _DIMENSIONS
        or not all(map(_is_count, lengths))
    ):
        raise Unreadable('a shape in it is damaged')
    return torch.Size(lengths)


def _device(name: Any, index: Any = None) -> torch.device:
    if type(name) is not str or len(name) > 20 or (index is not None and not _is_count(index)):
        raise Unreadable('a device in it is damaged')
    return torch.device(name) if index is None else torch.device(name, index)
