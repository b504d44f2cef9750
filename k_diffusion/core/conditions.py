"""Conditions as trees: dicts, lists and tuples with tensors, numbers, strings and None as leaves.

A tensor whose leading dimension is the number of items has an entry for each item. So does a list
or tuple of as many strings. Everything else is a value that all items share.
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
    """The conditions of several streams do not fit into one batch."""


def share(value: Tensor) -> Tensor:
    """Mark a tensor as one value that all items share, regardless of its leading dimension.

    This is needed where an unbatched tensor has as many rows as there are items: the position ids
    [16, 3] of a network that is called on 16 items.

    Args:
        value: A tensor of any shape.

    Returns:
        A view of it with the mark. The denoiser receives it unchanged.
    """
    alias = value.view_as(value)
    setattr(alias, _MARK, True)
    return alias


def is_shared(value: Any) -> bool:
    """Return True for a tensor that `share` has marked.

    Args:
        value: The value.
    """
    return hasattr(value, _MARK)


def has_entries(value: Any, n: int) -> bool:
    """Return True if a leaf is a tensor with an entry for each of n items.

    Args:
        value: The leaf.
        n: Number of items.
    """
    return isinstance(value, Tensor) and value.ndim > 0 and len(value) == n and not is_shared(value)


def map_leaves(function: Callable[..., Any], tree: Tree, *others: Tree) -> Tree:
    """Apply a function to each leaf of a tree, or to corresponding leaves of several trees.

    Args:
        function: The function.
        tree: The tree.
        *others: Trees of the same structure.

    Raises:
        DifferentTrees: If the trees differ in keys, lengths or kinds of container.
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
        raise DifferentTrees('one tree has a leaf where another has a container')
    return function(tree, *others)


def convert_tensors(tree: Tree, convert: Callable[[Tensor], Tensor]) -> Tree:
    """Apply a conversion of dtype or device to the tensors of a tree; marks are kept.

    Args:
        tree: The tree.
        convert: The conversion.
    """

    def apply(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return share(convert(value)) if is_shared(value) else convert(value)

    return map_leaves(apply, tree)


def expand_single(tree: Tree, n: int) -> Tree:
    """Expand the tensors of a tree that have one entry to n items; marked ones are kept.

    Args:
        tree: The tree.
        n: Number of items.
    """

    def apply(value: Any) -> Any:
        return value.expand(n, *value.shape[1:]) if has_entries(value, 1) else value

    return map_leaves(apply, tree)


def cast_floating(tree: Tree, dtype: torch.dtype) -> Tree:
    """Cast the floating-point tensors of a tree.

    Args:
        tree: The tree.
        dtype: The dtype.
    """
    return convert_tensors(
        tree, lambda value: value.to(dtype) if value.is_floating_point() else value
    )


def select_entries(tree: Tree, items: Tensor, n: int) -> Tree:
    """Select the entries of some of n items; values that the items share are kept.

    Args:
        tree: The tree.
        items: Indices [b]; they may repeat.
        n: The number of items of the tree.
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

    Tensors with an entry for each item are concatenated; if one stream has a tensor with a single
    entry, it is expanded first. Equal values that the items share are kept once.

    Args:
        trees: The trees.
        n: Number of items of each stream.

    Raises:
        DifferentTrees: If they do not fit into one batch.
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

    The entries are selected together with the condition, because only its shape tells whether a
    null value has an entry for each item.

    Args:
        null: The null values by name.
        items: The indices of the items.
        total: The number of items of the whole batch.
    """

    def __init__(self, null: Mapping[str, Any], items: Tensor, total: int) -> None:
        super().__init__(null)
        self.rows, self.total = items, total
        if isinstance(null, NullRows):
            self.rows, self.total = null.rows[items], null.total

    def select(self, null: Tree, cond: Tree) -> Tree:
        """Return the entries of a null value that has one for each item of the whole batch.

        Args:
            null: The null value.
            cond: The condition.
        """
        if _lists_items(null, self.total):
            return type(null)(null[i] for i in self.rows.tolist())
        if not isinstance(null, Tensor) or not isinstance(cond, Tensor) or is_shared(cond):
            return null
        has_rows = null.ndim == cond.ndim > 0 and len(null) == self.total > 1
        return null[self.rows.to(null.device)] if has_rows else null


def replace_by_null(
    name: str, null: Tree, cond: Tree, n: int, rows: NullRows | None = None
) -> Tree:
    """Replace a condition of n items by its null value.

    Args:
        name: The name of the condition, for messages.
        null: A number (for every entry), a tensor of the shape of an item or with a leading
            dimension of 1 or n, None or a string; or a tree of these. A dict replaces its entries
            and keeps the others. One number serves all leaves of a tree.
        cond: The condition, a tree.
        n: The number of items.
        rows: Selects the entries of null values that have one for each item of a larger batch.

    Raises:
        ValueError: If the dtype of the condition cannot hold the null value, or its shape does not
            fit.
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
        return  # reading the values would wait for the device
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
            f'got {values[wrong].flatten()[0].item()}. Pass the condition as int64, or another '
            'null value'
        )
