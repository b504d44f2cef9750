"""Conversion of arguments: numpy arrays, lists and tensors become checked tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..core.images import from_bytes

#: Images in [-1, 1] with outliers are not all above 0 with a value above this.
_NO_LEVEL = 16.0


def as_tensor(value: Any, name: str, of_numbers: torch.dtype = torch.float64) -> Tensor:
    """Return a tensor unchanged, or convert a numpy array or a (nested) list to one.

    Args:
        value: A tensor, an array, or a list of numbers, lists, arrays or tensors.
        name: The name of the argument, for messages.
        of_numbers: The dtype of lists of Python numbers.

    Raises:
        TypeError: If it is something else.
        ValueError: If parts of a list have different shapes.
    """
    if isinstance(value, Tensor):
        if value.is_meta or value.layout is not torch.strided:
            which = 'without values (meta)' if value.is_meta else f'of the layout {value.layout}'
            raise TypeError(f'{name} must be a dense tensor; got one {which}')
        return value
    if (not isinstance(value, (list, tuple)) and not hasattr(value, '__array__')) or isinstance(
        value, (str, bytes, Mapping)
    ):
        raise TypeError(
            f'{name} must be a tensor, a numpy array or a list of numbers; got {_kind(value)}'
        )
    try:
        if hasattr(value, '__array__'):
            array = value.__array__()
            native = array.astype(array.dtype.newbyteorder('='), order='C')  # (a copy)
            return torch.from_numpy(native)
        if any(isinstance(part, Tensor) or hasattr(part, '__array__') for part in value):
            return torch.stack([as_tensor(part, name, of_numbers) for part in value])
        return torch.tensor(value, dtype=of_numbers)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(
            f'{name} must be an array of numbers, all rows of one length; '
            f'got {_kind(value)} that is none ({reason[:120]})'
        ) from None


def as_floats(value: Any, name: str) -> Tensor:
    """Return a tensor of floating-point numbers; raise a TypeError for other numbers.

    Args:
        value: A tensor, an array or a list.
        name: The name of the argument, for messages.
    """
    x = as_tensor(value, name)
    if not x.is_floating_point():
        raise TypeError(f'{name} must hold floating-point numbers; got {_dtype(x)}')
    return x


def as_features(value: Any, name: str, least: int = 2) -> Tensor:
    """Return features [N, D] in floating point, finite, with at least `least` rows.

    Args:
        value: A tensor, an array or a list.
        name: The name of the argument, for messages.
        least: The least number of rows.

    Raises:
        TypeError: If they are not floating-point numbers.
        ValueError: If they have another shape, are too few, or not finite.
    """
    x = as_tensor(value, name)
    if not x.is_floating_point():
        raise TypeError(
            f'{name} must hold features in floating point; got {_dtype(x)}. Pass images '
            'through a feature extractor, or convert features to float'
        )
    if x.ndim != 2 or x.shape[1] < 1:
        raise ValueError(
            f'{name} must be features [N, D], a row for each image; got shape {list(x.shape)}'
        )
    if len(x) < least:
        raise ValueError(f'{name} must have at least {least} rows; got {len(x)}')
    if not x.isfinite().all():
        raise ValueError(
            f'{name} must be finite; got NaN or infinity. Check the images and the extractor'
        )
    return x


def as_pair(x: Any, y: Any, least: int = 2) -> tuple[Tensor, Tensor]:
    """Return two sets of features of one width, on the device of x, in float64.

    Args:
        x: Features [N, D].
        y: Features [M, D].
        least: The least number of rows.

    Raises:
        ValueError: If their widths differ.
    """
    x, y = as_features(x, 'x', least), as_features(y, 'y', least)
    if x.shape[1] != y.shape[1]:
        raise ValueError(
            f'x and y must have features of one width; got {x.shape[1]} and '
            f'{y.shape[1]}. Use one extractor for both'
        )
    return x.double(), y.to(x.device).double()


def as_pictures(value: Any, name: str) -> Tensor:
    """Return images [B, C, H, W] in [-1, 1]; uint8 images are converted.

    Args:
        value: A tensor, an array or a list.
        name: The name of the argument, for messages.

    Raises:
        TypeError: If they are neither uint8 nor in floating point.
        ValueError: If they have another shape or scale.
    """
    x = as_tensor(value, name, torch.float32)
    if x.dtype != torch.uint8 and not x.is_floating_point():
        raise TypeError(
            f'{name} must be images of uint8 (0 to 255) or of floating-point numbers in '
            f'[-1, 1]; got {_dtype(x)}'
        )
    if x.ndim != 4 or min(x.shape[1:]) < 1:
        raise ValueError(f'{name} must be images [B, C, H, W]; got shape {list(x.shape)}')
    if x.shape[1] > 4 and x.shape[3] in (1, 3, 4):
        raise ValueError(
            f'{name} must be images [B, C, H, W]; got shape {list(x.shape)}, with the '
            'channels last. permute(0, 3, 1, 2) moves them'
        )
    if x.dtype == torch.uint8:
        return from_bytes(x)
    if x.numel() and x.min() >= 0 and x.max() > _NO_LEVEL:
        raise ValueError(
            f'{name} must be images in [-1, 1] in floating point; got values to '
            f'{x.max().item():g}. x / 127.5 - 1 converts 0 to 255'
        )
    return x


def as_bytes(value: Any, name: str, shape: str = '[N, C, H, W]') -> Tensor:
    """Return images of levels 0 to 255 as uint8.

    Args:
        value: A tensor, an array or a list.
        name: The name of the argument, for messages.
        shape: The names of the axes; ... for any.

    Raises:
        TypeError: If they have another type.
        ValueError: If they have another shape or other values.
    """
    x = as_tensor(value, name)
    if x.is_floating_point() and isinstance(value, (list, tuple)):
        if not ((x >= 0) & (x <= 255) & (x == x.round())).all():
            raise ValueError(f'{name} must hold integers from 0 to 255; got other values')
        x = x.to(torch.uint8)
    if x.dtype != torch.uint8:
        raise TypeError(f'{name} must be images of uint8, levels of 0 to 255; got {_dtype(x)}')
    if x.ndim < 1 or ('...' not in shape and x.ndim != shape.count(',') + 1):
        raise ValueError(f'{name} must be images {shape}; got shape {list(x.shape)}')
    return x


def whole_number(value: Any, name: str, least: int = 1) -> int:
    """Return an integer >= least.

    Args:
        value: The value.
        name: The name of the argument, for messages.
        least: The lower bound.
    """
    if isinstance(value, bool) or not hasattr(value, '__index__'):
        raise TypeError(f'{name} must be an integer; got {value!r}')
    number = value.__index__()
    if number < least:
        raise ValueError(f'{name} must be >= {least}; got {number}')
    return int(number)


def _kind(value: Any) -> str:
    return f'a {type(value).__name__}' if value is not None else 'None'


def _dtype(x: Tensor) -> str:
    return str(x.dtype).removeprefix('torch.')
