"""Settings of tasks: dataclasses whose fields describe flags, and functions that take them."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from .registry import nearest

R = TypeVar('R')
V = TypeVar('V')


def setting(
    default: Any = dataclasses.MISSING,
    help: str = '',
    *,
    flags: Sequence[str] = (),
    choices: Sequence[str] | None = None,
    metavar: str | tuple[str, ...] | None = None,
    parse: Callable[[str], Any] | None = None,
    many: str | int | None = None,
    factory: Callable[[], Any] | None = None,
) -> Any:
    """Declare a field of a settings dataclass.

    Args:
        default: Its default; a field without one is required.
        help: Its meaning, without the default, which help pages add.
        flags: Its names on the command line, in place of those made from its name. A name without
            dashes makes it positional. `()` and no help: it is not a flag.
        choices: The allowed values.
        metavar: The text in place of the value in help pages.
        parse: Converts the text of a flag; by default the type of the field.
        many: For flags with several values: 'append', the flag is repeated; '*', '+' or a number,
            they follow it. '?': a positional argument that may be omitted.
        factory: Makes the default.
    """
    metadata = {
        'help': help,
        'flags': tuple(flags),
        'choices': choices,
        'metavar': metavar,
        'parse': parse,
        'many': many,
    }
    if factory is not None:
        return dataclasses.field(default_factory=factory, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def same_setting(kind: type, name: str) -> Any:
    """Declare a field as another settings dataclass declares it.

    Args:
        kind: The other dataclass.
        name: Name of the field.
    """
    settings = {field.name: field for field in dataclasses.fields(kind)}
    return dataclasses.field(default=settings[name].default, metadata=settings[name].metadata)


def comma_list(
    kind: Callable[[str], V], rule: str, length: int | None = None
) -> Callable[[str], tuple[V, ...]]:
    """Return a function that reads the text of a flag as comma-separated values.

    Args:
        kind: Converts the text of a value; raises a ValueError if it cannot.
        rule: A description of the text, for messages: 'integers such as 3,5'.
        length: Number of values; None for one or more.
    """

    def parse(text: str) -> tuple[V, ...]:
        try:
            values = tuple(kind(word.strip()) for word in text.split(','))
        except ValueError:
            values = ()
        if not values or len(values) != (length or len(values)):
            raise ValueError(f'it must be {rule}; got {text!r}')
        return values

    return parse


class SettingsError(ValueError):
    """One or several settings are wrong; each problem begins with the name of its field.

    Args:
        problems: The messages.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__('. '.join(problems))
        self.problems = list(problems)


def check_settings(*problems: str | None) -> None:
    """Raise a SettingsError with all problems that are not None.

    Args:
        *problems: Messages or None.
    """
    messages = [problem for problem in problems if problem is not None]
    if messages:
        raise SettingsError(messages)


def at_least(settings: Any, least: float, *names: str) -> str | None:
    """Return the message for fields below a bound, or None; None values are allowed.

    Args:
        settings: The settings.
        least: The bound.
        *names: The fields.
    """
    odd = [
        f'{name} must be at least {least:g}; got {value!r}'
        for name in names
        if (value := getattr(settings, name)) is not None
        and not (_is_number(value) and value >= least)
    ]
    return '. '.join(odd) or None


def find_truths(settings: Any) -> str | None:
    """Return the message for fields that take a number and hold True or False, or None.

    Args:
        settings: The settings.
    """
    odd = [
        f'{field.name} must be a number; got {value}: give {int(value)}'
        for field in dataclasses.fields(settings)
        if isinstance(value := getattr(settings, field.name), bool)
        and {'int', 'float'} & set(words := re.findall(r'\w+', str(field.type)))
        and 'bool' not in words
    ]
    return '. '.join(odd) or None


def are_lists(settings: Any, *names: str) -> str | None:
    """Return the message for fields that are not lists, or None; None values are allowed.

    Args:
        settings: The settings.
        *names: The fields.
    """
    odd = [
        f'{name} must be a list; got {value!r}'
        for name in names
        if (value := getattr(settings, name)) is not None
        and (isinstance(value, str) or not hasattr(value, '__iter__'))
    ]
    return '. '.join(odd) or None


def one_of(settings: Any, choices: Iterable[str], name: str) -> str | None:
    """Return the message for a field that is not one of some names, or None; None is allowed.

    Args:
        settings: The settings.
        choices: The names.
        name: The field.
    """
    value, choices = getattr(settings, name), list(choices)
    if value is None or value in choices:
        return None
    near = nearest(str(value), choices)
    return f'{name} must be one of {", ".join(choices)}; got {value!r}' + (
        f', did you mean {near!r}?' if near else ''
    )


def _is_number(value: Any) -> bool:
    return (
        isinstance(value, (int, float))
        or hasattr(value, '__index__')
        or hasattr(value, '__float__')
    )


def takes_settings(kind: type) -> Callable[[Callable[[Any], R]], Callable[..., R]]:
    """Let a function of a settings object also accept the fields as arguments.

    Args:
        kind: The settings dataclass.

    Example:
        @takes_settings(ConvertSettings)
        def convert(settings): ...

        convert(ConvertSettings('a.pth')) and convert('a.pth', dtype='fp16') are calls of it.
    """
    names = [field.name for field in dataclasses.fields(kind)]

    def make(function: Callable[[Any], R]) -> Callable[..., R]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> R:
            if len(args) == 1 and not kwargs and isinstance(args[0], kind):
                check_settings(find_truths(args[0]))
                return function(args[0])
            odd = [name for name in kwargs if name not in names]
            if odd:
                near = nearest(odd[0], names)
                raise TypeError(
                    f'{function.__name__} has no argument {odd[0]!r}'
                    + (
                        f', did you mean {near!r}?'
                        if near
                        else f'; its arguments are {", ".join(names)}'
                    )
                )
            settings = kind(*args, **kwargs)
            check_settings(find_truths(settings))
            return function(settings)

        vars(call).update(settings=kind, __signature__=inspect.signature(kind))
        return call

    return make
