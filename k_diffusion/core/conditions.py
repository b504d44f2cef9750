"""Conditions are trees: dicts, lists and tuples with tensors, numbers, strings and None as leaves.

A tensor whose leading dimension is the number of items has an entry for each item. A list or tuple
of as many strings has one too. Everything else is a value that all items share.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

Tree: TypeAlias = Any

_MARK = '_shared_by_items'


class DifferentTrees(ValueError):
    """The conditions of several streams cannot be held by one batch."""


def share(value: Tensor) -> Tensor:
    """Mark a tensor as one value that all items share, whatever its leading dimension.

    It is needed where an unbatched tensor has as many rows as there are items: the position ids
    [16, 3] of a network that is called on 16 items.

    Args:
        value: a tensor of any shape.

    Returns:
        A view of it with the mark. The denoiser is given it as it is.
    """
    alias = value.view_as(value)
    setattr(alias, _MARK, True)
    return alias


def is_shared(value: Any) -> bool:
    """Return True for a tensor that `share` has marked."""
    return hasattr(value, _MARK)


def has_entries(value: Any, n: int) -> bool:
    """Return True if a leaf is a tensor with an entry for each of n items."""
    return isinstance(value, Tensor) and value.ndim > 0 and len(value) == n and not is_shared(value)


def map_leaves(function: Callable[..., Any], tree: Tree, *others: Tree) -> Tree:
    """Apply a function to each leaf of a tree, or to the leaves in one place of several trees.

    Raises:
        DifferentTrees: the trees differ in their keys, their lengths or their kinds of container.
    """
    if isinstance(tree, Mapping):
        if any(not isinstance(other, Mapping) or other.keys() != tree.keys() for other in others):
            raise DifferentTrees('the dicts differ in their keys')
        return {
            key: map_leaves(function, value, *(other[key] for other in others))
            for key, value in tree.items()
        }
    if isinstance(tree, (list, tuple)):
        if any(type(other) is not type(tree) or len(other) != len(tree) for other in others):
            raise DifferentTrees('the sequences differ in their lengths or types')
        entries = [map_leaves(function, *values) for values in zip(tree, *others)]
        return type(tree)(*entries) if hasattr(tree, '_fields') else type(tree)(entries)
    if any(isinstance(other, (Mapping, list, tuple)) for other in others):
        raise DifferentTrees('a leaf stands where another tree has a container')
    return function(tree, *others)


def convert_tensors(tree: Tree, convert: Callable[[Tensor], Tensor]) -> Tree:
    """Apply a conversion of dtype or device to the tensors of a tree; marks are kept."""

    def apply(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return share(convert(value)) if is_shared(value) else convert(value)

    return map_leaves(apply, tree)


def expand_single(tree: Tree, n: int) -> Tree:
    """Expand the tensors of a tree that have one entry to n items; marked ones are kept."""

    def apply(value: Any) -> Any:
        return value.expand(n, *value.shape[1:]) if has_entries(value, 1) else value

    return map_leaves(apply, tree)


def cast_floating(tree: Tree, dtype: torch.dtype) -> Tree:
    """Cast the floating tensors of a tree."""
    return convert_tensors(
        tree, lambda value: value.to(dtype) if value.is_floating_point() else value
    )


def select_entries(tree: Tree, items: Tensor, n: int) -> Tree:
    """Select the entries of some of n items; values that the items share are kept.

    Args:
        items: indices [b]; they may repeat.
        n: the number of items that the tree is for.
    """
    if isinstance(tree, Mapping):
        return {key: select_entries(value, items, n) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        if _lists_items(tree, n):
            return type(tree)(tree[i] for i in items.tolist())
        entries = [select_entries(value, items, n) for value in tree]
        return type(tree)(*entries) if hasattr(tree, '_fields') else type(tree)(entries)
    return tree[items.to(tree.device)] if has_entries(tree, n) else tree


def join_trees(trees: Sequence[Tree], n: int) -> Tree:
    """Join the trees of several streams of n items into the tree of one batch, stream by stream.

    Tensors with an entry for each item are concatenated; where one stream has a tensor with a
    single entry, it is expanded first. Equal values that the items share are kept once.

    Raises:
        DifferentTrees: one batch cannot hold them.
    """

    def join(*values: Any) -> Any:
        if all(has_entries(value, n) for value in values):
            return _concatenate(values)
        if all(_is_same(value, values[0]) for value in values):
            return values[0]
        if all(has_entries(value, n) or has_entries(value, 1) for value in values):
            return _concatenate([value.expand(n, *value.shape[1:]) for value in values])
        raise DifferentTrees('a value that the items share differs')

    if any(_holds_item_lists(tree, n) for tree in trees):
        raise DifferentTrees('a list has an entry for each item')
    return map_leaves(join, *trees)


def _concatenate(values: Sequence[Tensor]) -> Tensor:
    if len({(value.shape, value.dtype, value.device) for value in values}) > 1:
        raise DifferentTrees('entries differ in shape, dtype or device')
    return torch.cat(list(values))


def _is_same(a: Any, b: Any) -> bool:
    """Return True if two leaves are one value. Tensors on a device are compared by identity."""
    if a is b:
        return True
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.is_cpu and b.is_cpu and a.dtype == b.dtype and torch.equal(a, b)
    return isinstance(a, (numbers.Number, str, bytes)) and type(a) is type(b) and bool(a == b)


def _lists_items(value: Tree, n: int) -> bool:
    return (
        isinstance(value, (list, tuple))
        and len(value) == n > 0
        and all(isinstance(entry, str) for entry in value)
    )


def _holds_item_lists(tree: Tree, n: int) -> bool:
    if isinstance(tree, Mapping):
        return any(_holds_item_lists(value, n) for value in tree.values())
    if isinstance(tree, (list, tuple)):
        return _lists_items(tree, n) or any(_holds_item_lists(value, n) for value in tree)
    return False


class NullRows(dict[str, Any]):
    """Null values for some items of a batch.

    A value's shape tells only beside its condition whether it has an entry for each item, so the
    entries are selected then.
    """

    def __init__(self, null: Mapping[str, Any], items: Tensor, total: int) -> None:
        super().__init__(null)
        self.rows, self.total = items, total
        if isinstance(null, NullRows):
            self.rows, self.total = null.rows[items], null.total

    def select(self, null: Tree, cond: Tree) -> Tree:
        """Return the entries of a null value that has one for each item of the whole batch."""
        if _lists_items(null, self.total):
            return type(null)(null[i] for i in self.rows.tolist())
        if not isinstance(null, Tensor) or not isinstance(cond, Tensor) or is_shared(cond):
            return null
        has_rows = null.ndim == cond.ndim > 0 and len(null) == self.total > 1
        return null[self.rows.to(null.device)] if has_rows else null


def replace_by_null(
    name: str, null: Tree, cond: Tree, n: int, rows: NullRows | None = None
) -> Tree:
    """Replace a condition of n items by what stands for its absence.

    Args:
        name: the condition's name, for messages.
        null: a number (for every entry), a tensor of one item's shape or with a leading dimension
            of 1 or n, None or a string; or a tree of these. A dict replaces the entries it holds
            and keeps the others. One number serves for all leaves of a tree.
        cond: the condition, a tree.
        n: the number of items.
        rows: selects the entries of null values that have one for each item of a larger batch.

    Raises:
        ValueError: the condition's dtype cannot hold the null value, or its shape does not fit.
    """
    if rows is not None:
        null = rows.select(null, cond)
    if isinstance(cond, Mapping) and isinstance(null, Mapping):
        unknown = sorted(map(str, null.keys() - cond.keys()))
        if unknown:
            raise ValueError(
                f'null[{name!r}] must hold keys of the condition {sorted(map(str, cond))}; '
                f'got {unknown[0]!r}'
            )
        return {
            key: replace_by_null(f'{name}.{key}', null[key], value, n, rows)
            if key in null
            else value
            for key, value in cond.items()
        }
    if isinstance(cond, (list, tuple)) and type(cond) is type(null) and len(cond) == len(null):
        pairs = [
            replace_by_null(f'{name}.{i}', *pair, n, rows) for i, pair in enumerate(zip(null, cond))
        ]
        return type(cond)(*pairs) if hasattr(cond, '_fields') else type(cond)(pairs)
    if isinstance(null, numbers.Number) and isinstance(cond, (Mapping, list, tuple)):
        return map_leaves(lambda value: replace_by_null(name, null, value, n, rows), cond)
    if isinstance(cond, Tensor) and isinstance(null, (Tensor, numbers.Number)):
        value = _expand_null(name, null, cond, n)
        return share(value) if is_shared(cond) else value
    return null


def _expand_null(name: str, null: Tensor | numbers.Number, cond: Tensor, n: int) -> Tensor:
    value = torch.as_tensor(null)
    if not cond.is_floating_point() and not cond.is_complex():
        _check_integer(name, null, cond.dtype)
    value = value.to(dtype=cond.dtype, device=cond.device)
    if value.ndim == 0 or value.shape == cond.shape or value.shape == cond.shape[1:]:
        return value.expand_as(cond)
    if value.ndim == cond.ndim - 1:
        value = value[None]
    fits = value.shape[1:] == cond.shape[1:] or _is_other_length(value, cond)
    if value.ndim == cond.ndim and len(value) in (1, n) and fits:
        return value.expand(n, *value.shape[1:])
    raise ValueError(
        f'null[{name!r}] must have the shape of one item of the condition, '
        f'{list(cond.shape[1:])}, with or without a leading dimension of 1 or {n}; '
        f'got {list(torch.as_tensor(null).shape)}'
    )


def _is_other_length(null: Tensor, cond: Tensor) -> bool:
    """Return True for sequences of another length: of vectors [n, T, E], or of tokens [n, T]."""
    return null.shape[2:] == cond.shape[2:] and (cond.ndim > 2 or not cond.is_floating_point())


def _check_integer(name: str, null: Any, dtype: torch.dtype) -> None:
    if isinstance(null, Tensor) and not null.is_cpu:
        return  # a look at its values would wait for the device
    values = torch.as_tensor(null)
    low, high = (0, 1) if dtype == torch.bool else (torch.iinfo(dtype).min, torch.iinfo(dtype).max)
    wrong = (
        (values < low)
        | (values > high)
        | (values != values.round() if values.is_floating_point() else False)
    )
    if wrong.any():
        raise ValueError(
            f'null[{name!r}] must be a value that the dtype of the condition, {dtype}, can hold; '
            f'got {values[wrong].flatten()[0].item()}: give the condition as int64, or another '
            'null value'
        )
