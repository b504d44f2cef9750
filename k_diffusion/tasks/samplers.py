"""List the samplers and schedules as tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from inspect import Parameter
from typing import Any

from ..core.settings import setting, takes_settings
from ..sampling import Sampler, catalogue
from ..schedules.entries import Schedule
from ..schedules.entries import catalogue as schedule_catalogue


@dataclass(frozen=True)
class SamplersSettings:
    """Settings of `list_samplers`."""

    schedules: bool = setting(False, 'list the noise schedules instead')
    markdown: bool = setting(False, 'print the table of docs/samplers.md')


@dataclass(frozen=True)
class Table:
    """A table of samplers or schedules.

    Attributes:
        rows: Plain values by column, with options and aliases.
        text: The table as text.
    """

    rows: list[dict[str, Any]]
    text: str


@takes_settings(SamplersSettings)
def list_samplers(settings: SamplersSettings) -> Table:
    """Return the table of the samplers, or of the schedules.

    Args:
        settings: The settings, or the fields of SamplersSettings as arguments.

    Returns:
        The table; with `markdown` its text is the table of docs/samplers.md.
    """
    if settings.schedules:
        rows = [describe_schedule(entry) for entry in schedule_catalogue()]
        return Table(rows, _align(rows, ('name', 'takes', 'reference')))
    rows = [describe_sampler(entry) for entry in catalogue()]
    return Table(
        rows,
        sampler_table()
        if settings.markdown
        else _align(rows, ('name', 'family', 'order', 'calls', 'noise', 'reference')),
    )


def _align(rows: list[dict[str, Any]], keys: Sequence[str]) -> str:
    widths = [max(len(key), *(len(str(row[key])) for row in rows)) for key in keys]
    return '\n'.join(
        '  '.join(str(row[key]).ljust(width) for key, width in zip(keys, widths)).rstrip()
        for row in [dict(zip(keys, keys)), *rows]
    )


def describe_sampler(entry: Sampler) -> dict[str, Any]:
    """Return the row of the sampler `entry` as plain values."""
    return {
        'name': entry.name,
        'family': entry.family,
        'order': entry.order,
        'calls': entry.nfe,
        'noise': noise_of(entry),
        'needs_pair': entry.needs_pair,
        'options': _options(entry.options),
        'aliases': list(entry.aliases),
        'of': entry.of,
        'fixed': dict(entry.fixed),
        'reference': entry.reference,
        'summary': entry.summary,
    }


def describe_schedule(entry: Schedule) -> dict[str, Any]:
    """Return the row of the schedule `entry` as plain values."""
    return {
        'name': entry.name,
        'takes': entry.takes,
        'options': _options(entry.options),
        'reference': entry.reference,
        'summary': entry.summary,
    }


def noise_of(entry: Sampler) -> str:
    """Return when the sampler `entry` draws noise: 'yes', 'with <option>', or nothing."""
    if entry.stochastic or entry.noise is None:
        return 'yes' if entry.stochastic else ''
    return 'with ' + next(name for name in ('s_churn', 'eta', 'gamma') if name in entry.options)


def _options(options: dict[str, Parameter]) -> dict[str, Any]:
    return {
        name: p.default
        if isinstance(p.default, (int, float, str, bool, type(None)))
        else str(p.default)
        for name, p in options.items()
        if name != 'noise_sampler'
    }


def sampler_table() -> str:
    """Return the table of docs/samplers.md."""
    rows = [
        '| name | family | order | calls | noise | | published |',
        '|---|---|---|---|---|---|---|',
    ]
    rows += [
        f'| `{entry.name}` | {entry.family} | {entry.order or "-"} | {entry.nfe} | '
        f'{noise_of(entry)} | {entry.summary} '
        f'| {entry.reference or "ours"} |'
        for entry in catalogue()
    ]
    return '\n'.join(rows)
