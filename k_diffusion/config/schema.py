"""JSON to dataclasses, with all errors of a section found at once, each with its key."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal, Union, get_args, get_origin


@dataclasses.dataclass
class Findings:
    """The results of reading a config.

    Attributes:
        errors: Messages.
        unknown: Unknown keys that are not misspellings of known ones.
    """

    errors: list[str] = dataclasses.field(default_factory=list)
    unknown: list[str] = dataclasses.field(default_factory=list)


class Mismatch(ValueError):
    """A value has another type than its key."""


def near_miss(key: str, names: Iterable[str]) -> str | None:
    """Return the known key that a key misspells, or None.

    The two differ by one letter added, lost, changed or swapped, or are nearly equal.

    Args:
        key: The key.
        names: The known keys.
    """
    for other in names:
        matcher = difflib.SequenceMatcher(None, key, other)
        same = sum(block.size for block in matcher.get_matching_blocks())
        one_edit = (
            abs(len(key) - len(other)) <= 1
            and max(len(key), len(other)) - same <= 1
            and len(key) > 2
        )
        swapped = len(key) == len(other) and sorted(key) == sorted(other) and len(key) - same <= 1
        if one_edit or swapped or key.lower() == other or matcher.ratio() >= 0.85:
            return other
    return None


def read_section(
    cls: type, value: Any, path: str, findings: Findings, defaults: Mapping[str, Any] | None = None
) -> Any:
    """Make an instance of a dataclass from a JSON object; None if it has errors.

    Args:
        cls: The dataclass.
        value: The JSON object.
        path: Its name in messages.
        findings: Collects errors and unknown keys.
        defaults: Replace the defaults of the dataclass, for sections whose defaults depend on
            another section.
    """
    if not isinstance(value, Mapping):
        findings.errors.append(
            f'{path} must be an object with the keys {", ".join(_fields(cls))}; got {_show(value)}'
        )
        return None
    before = len(findings.errors)
    _sort_unknown(value, _fields(cls), path, findings)
    hints = typing.get_type_hints(cls)
    arguments: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        if field.name in value:
            _read_key(
                arguments,
                field.name,
                hints[field.name],
                value[field.name],
                f'{path}.{field.name}',
                findings,
            )
        elif defaults and field.name in defaults:
            arguments[field.name] = defaults[field.name]
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            findings.errors.append(
                f'{path}.{field.name} is missing; it takes {describe(hints[field.name])}'
            )
    if len(findings.errors) > before:
        return None
    try:
        return cls(**arguments)
    except ValueError as error:
        findings.errors.append(f'{path}.{error}')
        return None


def _fields(cls: type) -> list[str]:
    return [field.name for field in dataclasses.fields(cls)]


def _sort_unknown(
    value: Mapping[str, Any], names: list[str], path: str, findings: Findings
) -> None:
    for key in value:
        if key not in names:
            near = near_miss(str(key), names)
            if near:
                findings.errors.append(f'{path}.{key} is not a key; did you mean {path}.{near}?')
            else:
                findings.unknown.append(f'{path}.{key}')


def _read_key(
    arguments: dict[str, Any], name: str, hint: Any, value: Any, path: str, findings: Findings
) -> None:
    try:
        arguments[name] = coerce(hint, value, path, findings)
    except Mismatch:
        findings.errors.append(f'{path} is {_show(value)}; it takes {describe(hint)}')


def coerce(hint: Any, value: Any, path: str, findings: Findings) -> Any:
    """Convert a value to a type; integral floats are accepted as ints.

    Args:
        hint: The type.
        value: The value.
        path: Its name in messages.
        findings: Collects errors.

    Raises:
        Mismatch: If it does not fit.
    """
    origin = get_origin(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        return _first_that_fits(get_args(hint), value, path, findings)
    if origin is Literal:
        return _expect(value in get_args(hint), value)
    if dataclasses.is_dataclass(hint):
        return read_section(typing.cast(type, hint), value, path, findings)
    if origin in (list, tuple):
        return _sequence(hint, value, path, findings)
    if hint is dict or origin is dict:
        return dict(_expect(isinstance(value, Mapping), value))
    return _scalar(hint, value)


def _first_that_fits(hints: tuple[Any, ...], value: Any, path: str, findings: Findings) -> Any:
    for hint in hints:
        try:
            return coerce(hint, value, path, findings)
        except Mismatch:
            continue
    raise Mismatch


def _sequence(hint: Any, value: Any, path: str, findings: Findings) -> Any:
    inner = get_args(hint)
    _expect(isinstance(value, (list, tuple)), value)
    if get_origin(hint) is list:
        return [coerce(inner[0], item, f'{path}[{i}]', findings) for i, item in enumerate(value)]
    if len(inner) == 2 and inner[1] is Ellipsis:
        inner = (inner[0],) * len(value)
    _expect(len(inner) == len(value), value)
    return tuple(
        coerce(h, item, f'{path}[{i}]', findings) for i, (h, item) in enumerate(zip(inner, value))
    )


def _scalar(hint: Any, value: Any) -> Any:
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 2**63
    if hint is int:
        return int(_expect(number and value == int(value), value))
    if hint is float:
        return float(_expect(number or (isinstance(value, float) and math.isfinite(value)), value))
    if hint is type(None):
        return _expect(value is None, value)
    return _expect(isinstance(value, hint), value)


def _expect(fits: bool, value: Any) -> Any:
    if not fits:
        raise Mismatch
    return value


def describe(hint: Any) -> str:
    """Return the description of a type in terms of JSON.

    Args:
        hint: The type.
    """
    origin, inner = get_origin(hint), get_args(hint)
    words = {
        int: 'an integer',
        float: 'a number',
        str: 'a string',
        bool: 'true or false',
        type(None): 'null',
        Any: 'anything',
    }
    if hint in words:
        return words[hint]
    if origin in (Union, types.UnionType):
        return ' or '.join(describe(h) for h in inner)
    if origin is Literal:
        return ' or '.join(repr(v) for v in inner)
    if origin is list:
        return f'a list, each item {describe(inner[0])}'
    if origin is tuple:
        count = '' if inner[-1] is Ellipsis else f' of {len(inner)}'
        return f'a list{count}, each item {describe(inner[0])}'
    return 'an object'


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + '...'
