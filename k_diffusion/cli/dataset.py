"""k-diffusion dataset: looks through a folder or archive of pictures before training."""
from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from ..tasks.dataset import describe_inspection, inspect_dataset
from .flags import run_command

_EXAMPLE = '''example:
  k-diffusion dataset data/icons --size 32 -o icons.png

Every picture is decoded once, by the rules of training. sigma_data is the value for the config.
The contact sheet shows 64 pictures as the model sees them.'''


def _as_json(result: Any) -> dict[str, Any]:
    names = ('source', 'files', 'readable', 'formats', 'modes', 'broken', 'passed', 'range',
             'duplicates', 'channels', 'mean', 'sigma_data')
    return {**{name: getattr(result, name) for name in names}, 'folders': result.classes,
            'sizes': {f'{w}x{h}': n for (w, h), n in result.sizes.items()}}


def _show_progress(done: int, total: int) -> None:
    if sys.stderr.isatty() and (done % 64 == 0 or done == total):
        end = '\n' if done == total else ''
        print(f'\r{done:,} of {total:,}', end=end, file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None, prog: str = 'k-diffusion dataset') -> int:
    """Run the command."""
    return run_command(prog, inspect_dataset, describe_inspection, about=__doc__, example=_EXAMPLE,
                       as_json=_as_json, argv=argv, progress=_show_progress)
