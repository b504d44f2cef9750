"""Arrays in the .npy format, read by their header: only numbers of a known shape are made."""

from __future__ import annotations

import io

import torch
from torch import Tensor

from ...core.extras import require
from ..pictures import UnreadablePicture

MAGIC = b'\x93NUMPY'
#: Accepted types (numpy's names); all but uint8 become float32.
_TYPES = frozenset(('uint8', 'float16', 'float32', 'float64'))


def read_array(data: bytes | bytearray, shape: tuple[int, ...]) -> Tensor:
    """Return an array as a tensor: uint8, or float32 for floating-point numbers.

    Args:
        data: The .npy file.
        shape: The required shape.

    Raises:
        UnreadablePicture: If it has another shape or type, or is damaged.
    """
    numpy = require('numpy', 'train', 'reading arrays')
    file, form = io.BytesIO(data), numpy.lib.format
    try:
        version = form.read_magic(file)
        read_header = (
            form.read_array_header_1_0 if version == (1, 0) else form.read_array_header_2_0
        )
        stored_shape, by_columns, dtype = read_header(file)
    except (ValueError, EOFError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
        stored_shape, by_columns, dtype, reason = (), False, None, str(error)
    if dtype is None:
        raise UnreadablePicture(f'it must be a .npy array ({reason})')
    if dtype.name not in _TYPES or tuple(stored_shape) != tuple(shape):
        raise UnreadablePicture(
            f'it is an array {list(stored_shape)} of {dtype}; it must be {list(shape)} of uint8 or '
            'floating-point numbers'
        )
    if len(data) - file.tell() != dtype.itemsize * torch.Size(shape).numel():
        raise UnreadablePicture('it is an array that is cut, or has more bytes than its shape says')
    values = numpy.frombuffer(data, dtype, offset=file.tell()).reshape(
        stored_shape, order='F' if by_columns else 'C'
    )
    kind = numpy.uint8 if dtype.name == 'uint8' else numpy.float32
    result = torch.from_numpy(numpy.array(values, dtype=kind, order='C'))
    if result.is_floating_point() and not bool(result.isfinite().all()):
        raise UnreadablePicture('it is an array with values that are not finite numbers')
    return result
