"""Flags from the fields of a settings dataclass, and commands made from them."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..core.names import escape_name
from .entry import Parser, run_guarded


def add_flags(
    parser: argparse.ArgumentParser, kind: type, defaults: Mapping[str, Any] | None = None
) -> None:
    """Add a flag for each field of a settings dataclass that has a help text.

    Args:
        parser: The parser.
        kind: The dataclass.
        defaults: Replace the defaults of the fields.
    """
    hints = typing.get_type_hints(kind)
    for field in sorted(dataclasses.fields(kind), key=lambda field: bool(field.kw_only)):
        if field.metadata.get('help'):
            _add_flag(parser, field, hints[field.name], defaults or {})


def _add_flag(
    parser: argparse.ArgumentParser, field: Any, hint: Any, defaults: Mapping[str, Any]
) -> None:
    metadata, names = dict(field.metadata), flags_of(field)
    default = (
        field.default_factory()
        if field.default_factory is not dataclasses.MISSING
        else field.default
    )
    if field.name in defaults:
        default, metadata['help'] = (
            defaults[field.name],
            re.sub(r' \(default: [^)]*\)', '', metadata['help']),
        )
    options: dict[str, Any] = {'help': _help_of(metadata['help'], default)}
    if default is not dataclasses.MISSING:
        options['default'] = default
    if names[0].startswith('-'):
        options |= {'dest': field.name, 'required': default is dataclasses.MISSING}
    if isinstance(default, bool):
        parser.add_argument(*names, action='store_false' if default else 'store_true', **options)
        return
    if metadata['choices'] is not None:
        options['choices'] = tuple(metadata['choices'])
    if metadata['metavar'] is not None:
        options['metavar'] = metadata['metavar']
    if metadata['many'] == 'append':
        options |= {'action': 'append', 'default': list(default)}
    elif metadata['many']:
        options['nargs'] = metadata['many']
    parser.add_argument(
        *names,
        type=_read_with(metadata['parse']) if metadata['parse'] else _type_of(hint),
        **options,
    )


def _read_with(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return a parser of texts whose ValueErrors are messages of the command."""

    def read(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read


def flags_of(field: Any) -> tuple[str, ...]:
    """Return the names of a field on the command line.

    Args:
        field: The field of the dataclass.
    """
    dashed = field.name.replace('_', '-')
    return tuple(field.metadata.get('flags') or ()) or (
        f'--no-{dashed}' if field.default is True else f'--{dashed}',
    )


def _help_of(text: str, default: Any) -> str:
    text = text.replace('%', '%%')
    suffix = (
        default is not dataclasses.MISSING
        and not isinstance(default, bool)
        and default not in (None, [], ())
        and 'default' not in text
    )
    return (
        f'{text} (default: '
        f'{", ".join(map(str, default)) if isinstance(default, (list, tuple)) else default})'
        if suffix
        else text
    )


def _type_of(hint: Any) -> Callable[[str], Any]:
    """Return the number type among those of a field, else str."""
    kinds = (
        typing.get_args(hint)
        if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
        else (hint,)
    )
    return next((kind for kind in (int, float) if kind in kinds), str)


def run_command(
    prog: str,
    task: Callable[..., Any],
    show: Callable[[Any], str],
    *,
    about: str,
    example: str,
    as_json: Callable[[Any], Any] | None = None,
    argv: Sequence[str] | None = None,
    **defaults: Any,
) -> int:
    """Parse flags into the settings of a task, run it and print its result.

    Args:
        prog: The name of the program in messages.
        task: A function made by `takes_settings`.
        show: Converts the result to text for standard output; '' prints nothing.
        about: A description, for the help page.
        example: An example, for the help page.
        as_json: Converts the result to plain values; a command with it has --json.
        argv: The arguments; sys.argv by default.
        **defaults: Replace the defaults of the settings.

    Returns:
        The exit status: that of the result if it has one, else 0; 1 after an error.
    """
    kind = task.settings  # type: ignore[attr-defined]
    parser = Parser(prog=prog, description=about, epilog=example)
    add_flags(parser, kind, defaults)
    if as_json is not None:
        parser.add_argument(
            '--json', action='store_true', help='print one machine-readable line on stdout'
        )
    values = vars(parser.parse_args(argv))
    use_json = values.pop('json', False)

    def work() -> int:
        try:
            result = task(kind(**values))
        except TypeError as error:  # an unknown argument; other TypeErrors are bugs
            if not re.match(r'\w+ must ', str(error)):
                raise
            raise ValueError(str(error)) from error
        if int(os.environ.get('RANK', 0)) == 0:
            text = json.dumps(as_json(result)) if use_json and as_json is not None else show(result)
            if text:
                print(escape_name(text, keep='\n'))
        return int(getattr(result, 'exit_status', 0))

    return run_guarded(prog, work, lambda text: name_flags(text, kind))


def name_flags(text: str, kind: type) -> str:
    """Replace arguments in a message by flags: 'batch_size must' and 'verify=False'.

    Args:
        text: The message.
        kind: The settings dataclass.
    """
    fields = {field.name: field for field in dataclasses.fields(kind) if field.metadata.get('help')}

    def flag(match: re.Match[str], gap: str = '') -> str:
        field, rest = fields.get(match['name']), match['rest']
        return match[0] if field is None else flags_of(field)[-1] + (gap + rest if rest else '')

    text = re.sub(
        r'(?:^|(?<=[.;] ))(?P<name>\w+)(?P<rest> (?:must|needs|and \w+ must)\b)', flag, text
    )
    values = r"(?:True|False|\.\.\.|(?P<rest>\d+(?:\.\d+)?|'[^']*'))"
    return re.sub(rf'\b(?P<name>\w+)={values}', lambda m: flag(m, ' '), text)
