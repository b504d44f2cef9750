"""k-diffusion samplers: the samplers and schedules there are, as a table."""
from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ..sampling import catalogue
from ..schedules.entries import catalogue as schedule_catalogue
from ..tasks.samplers import describe_sampler, describe_schedule, sampler_table
from .entry import Parser, guarded

_EXAMPLE = 'example:\n  k-diffusion samplers\n  k-diffusion samplers --schedules --json'


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
