"""Samples on disk."""
from __future__ import annotations

from collections.abc import Callable, Sequence

from ..core.names import escape_name
from ..tasks.output import Samples
from .entry import Parser, guarded


def drawn_by(parser: Parser, draw: Callable[..., Samples], argv: Sequence[str] | None) -> int:
    """A command that draws: its flags are the function's arguments; --out sets --prefix aside, --json tells it in one line."""
    args = vars(parser.parse_args(argv))
    if args['out'] is not None:
        args['prefix'] = None
    as_json = args.pop('json')
    return guarded(parser.prog, lambda: print(escape_name(draw(**args).told(args['seed'], as_json), keep='\n')))
