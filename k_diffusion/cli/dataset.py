"""k-diffusion dataset: looks through a folder or archive of pictures before training."""
from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

from ..core.names import escape_name
from ..data.inspection import Inspection
from ..data.ranges import range_note
from ..data.selection import count_kinds
from ..tasks.dataset import inspect_dataset
from .flags import run_command

_EXAMPLE = '''example:
  k-diffusion dataset data/icons --size 32 -o icons.png

Every picture is decoded once, by the rules of training. sigma_data is what to write into the config; the contact sheet shows 64
pictures as the model will see them.'''


def _show(found: Inspection) -> str:
    low, high = min(found.sizes, key=_area), max(found.sizes, key=_area)
    lines = [f'{escape_name(found.source)}: {found.files:,} files, {found.readable:,} pictures that can be read',
             f'formats    {_counts(found.formats)}', f'modes      {_counts(found.modes)}',
             f'sizes      {low[0]}x{low[1]} to {high[0]}x{high[1]}; most often '
             + _counts(Counter({f'{w}x{h}': n for (w, h), n in found.sizes.items()}), 3)]
    if found.classes:
        lines.append(f'folders    {len(found.classes)}: {_counts(found.classes)}')
    if found.turned:
        lines.append(f'turned     {found.turned:,} are turned by their EXIF tag, as training does')
    small = sum(n for (w, h), n in found.sizes.items() if w < found.size[1] or h < found.size[0])
    if small:
        lines.append(f'small      {small:,} are smaller than {found.size[1]}x{found.size[0]} and are enlarged')
    if found.passed:
        lines.append(f'passed     {sum(found.passed.values()):,}: {count_kinds(found.passed)} (hidden, of the system, or not pictures)')
    lines += [f'broken     {len(found.broken):,}', *(f'  {escape_name(name)}: {escape_name(why)}' for name, why in found.broken[:10])]
    twice = sum(len(names) - 1 for names in found.duplicates)
    lines += [f'duplicates {twice:,}', *(f'  {escape_name(names[0])} = {escape_name(names[1])}' for names in found.duplicates[:5])]
    note = range_note(found.source, *found.range)
    lines += [f'note: {note}'] if note else []
    return '\n'.join([*lines, f'for the config: "input_channels": {found.channels}, "sigma_data": {found.sigma_data:.3f}  '
                              f'(mean {found.mean:+.3f}, at {found.size[1]}x{found.size[0]})'])


def _area(size: tuple[int, int]) -> int:
    return size[0] * size[1]


def _counts(counter: Counter[str], most: int = 8) -> str:
    return ', '.join(f'{name} {n:,}' for name, n in counter.most_common(most)) + (', ...' if len(counter) > most else '')


def _as_json(found: Inspection) -> dict[str, Any]:
    return {'source': found.source, 'files': found.files, 'readable': found.readable, 'formats': found.formats, 'modes': found.modes,
            'sizes': {f'{w}x{h}': n for (w, h), n in found.sizes.items()}, 'folders': found.classes, 'broken': found.broken,
            'passed': found.passed, 'range': found.range,
            'duplicates': found.duplicates, 'channels': found.channels, 'mean': found.mean, 'sigma_data': found.sigma_data}


def _show_progress(done: int, total: int) -> None:
    if sys.stderr.isatty() and (done % 64 == 0 or done == total):
        print(f'\r{done:,} of {total:,}', end='\n' if done == total else '', file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None, prog: str = 'k-diffusion dataset') -> int:
    """Run the command."""
    return run_command(prog, inspect_dataset, _show, about=__doc__, example=_EXAMPLE, as_json=_as_json, argv=argv,
                       progress=_show_progress)
