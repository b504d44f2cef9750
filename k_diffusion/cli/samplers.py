"""k-diffusion samplers: the samplers and schedules there are, as a table."""
from __future__ import annotations

import json
from collections.abc import Sequence
from inspect import Parameter
from typing import Any

from ..sampling import Sampler, catalogue
from ..schedules.entries import Schedule
from ..schedules.entries import catalogue as schedule_catalogue
from .entry import Parser, guarded

_EXAMPLE = 'example:\n  k-diffusion samplers\n  k-diffusion samplers --schedules --json'


def describe_sampler(entry: Sampler) -> dict[str, Any]:
    """Return what a table shows of a sampler, as plain values."""
    return {'name': entry.name, 'family': entry.family, 'order': entry.order, 'calls': entry.nfe, 'noise': noise_of(entry),
            'needs_pair': entry.needs_pair, 'options': _options(entry.options), 'aliases': list(entry.aliases),
            'reference': entry.reference, 'summary': entry.summary}


def describe_schedule(entry: Schedule) -> dict[str, Any]:
    """Return what a table shows of a schedule, as plain values."""
    return {'name': entry.name, 'takes': entry.takes, 'options': _options(entry.options), 'reference': entry.reference,
            'summary': entry.summary}


def noise_of(entry: Sampler) -> str:
    """Return when a sampler draws noise: 'yes', 'with <option>', or nothing."""
    if entry.stochastic or entry.noise is None:
        return 'yes' if entry.stochastic else ''
    return 'with ' + next(name for name in ('s_churn', 'eta') if name in entry.options)


def _options(options: dict[str, Parameter]) -> dict[str, Any]:
    return {name: p.default if isinstance(p.default, (int, float, str, bool, type(None))) else str(p.default)
            for name, p in options.items() if name != 'noise_sampler'}


def sampler_table() -> str:
    """Return the table of docs/samplers.md."""
    rows = ['| name | family | order | calls | noise | | published |', '|---|---|---|---|---|---|---|']
    rows += [f'| `{entry.name}` | {entry.family} | {entry.order or "-"} | {entry.nfe} | {noise_of(entry)} | {entry.summary} '
             f'| {entry.reference or "ours"} |' for entry in catalogue()]
    return '\n'.join(rows)


def _lines(rows: list[dict[str, Any]], keys: Sequence[str]) -> str:
    widths = [max(len(key), *(len(str(row[key])) for row in rows)) for key in keys]
    return '\n'.join('  '.join(str(row[key]).ljust(width) for key, width in zip(keys, widths)).rstrip()
                     for row in [dict(zip(keys, keys)), *rows])


def main(argv: Sequence[str] | None = None, prog: str = 'k-diffusion samplers') -> int:
    parser = Parser(prog=prog, description=__doc__, epilog=_EXAMPLE)
    parser.add_argument('--schedules', action='store_true', help='list the noise schedules instead')
    parser.add_argument('--json', action='store_true', help='print JSON, with the options and aliases of each')
    parser.add_argument('--markdown', action='store_true', help='print the table of docs/samplers.md')
    args = parser.parse_args(argv)

    def work() -> None:
        if args.markdown:
            print(sampler_table())
            return
        rows = ([describe_schedule(entry) for entry in schedule_catalogue()] if args.schedules
                else [describe_sampler(entry) for entry in catalogue()])
        keys = ('name', 'takes', 'reference') if args.schedules else ('name', 'family', 'order', 'calls', 'noise', 'reference')
        print(json.dumps(rows) if args.json else _lines(rows, keys))
    return guarded(prog, work)
