"""The base of denoisers that wrap denoisers: attributes, and selection of items of a batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, TypeVar

from torch import Tensor

from .arguments import check_denoiser
from .protocols import DenoiseFn

W = TypeVar('W', bound='DenoiserWrapper')


class DenoiserWrapper:
    """Base of the dataclasses that wrap a denoiser in their field `denoise`.

    A wrapper has the attributes of the wrapped denoiser (noise range, tables, device, experiment),
    except `pair` and `parts`, which a wrapper with two estimates defines itself. Fields named in
    `per_item` may hold an entry for each item of the batch.
    """

    denoise: DenoiseFn
    per_item: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        check_denoiser('denoise', self.denoise)

    def __getattr__(self, name: str) -> Any:
        if name.startswith('_') or name in ('denoise', 'pair', 'parts'):
            raise AttributeError(f'{type(self).__name__!r} object has no attribute {name!r}')
        return getattr(self.denoise, name)

    def select_items(self: W, items: Tensor, shape: Sequence[int]) -> W:
        """Return the wrapper for some items of a batch, or itself if it holds no entries of items.

        Args:
            items: Indices [b] into the batch; they may repeat.
            shape: The shape [B, ...] of the whole batch x.
        """
        changes: dict[str, Any] = {}
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if field.name in self.per_item:
                part = self.select_field(field.name, value, items, shape)
            else:
                part = select_items(value, items, shape)
            if part is not value:
                changes[field.name] = part
        return dataclasses.replace(self, **changes) if changes else self  # type: ignore[type-var]

    def select_field(self, name: str, value: Any, items: Tensor, shape: Sequence[int]) -> Any:
        """Select the entries of a field named in `per_item`, for tensors with a batch axis like x.

        Args:
            name: The field.
            value: Its value.
            items: Indices [b] into the batch.
            shape: The shape [B, ...] of the whole batch x.
        """
        return select_like_x(value, items, shape)


def select_like_x(value: Any, items: Tensor, shape: Sequence[int]) -> Any:
    """Select the entries of a tensor [B, ...] with as many dimensions as x; others are kept.

    Args:
        value: The value.
        items: Indices [b] into the batch.
        shape: The shape [B, ...] of the whole batch x.
    """
    if isinstance(value, Tensor) and value.ndim == len(shape) and len(value) == shape[0] > 1:
        return value[items.to(value.device)]
    return value


def select_items(denoise: Any, items: Tensor, shape: Sequence[int]) -> Any:
    """Return a denoiser (or a part of one) for some items of a batch.

    Args:
        denoise: The denoiser.
        items: Indices [b] into the batch.
        shape: The shape [B, ...] of the whole batch x.
    """
    select = getattr(type(denoise), 'select_items', None)
    return denoise if select is None else select(denoise, items, shape)
