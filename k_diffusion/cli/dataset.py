"""k-diffusion dataset: looks through a folder or archive of pictures before training."""
from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..core.files import whole_file
from ..core.names import escape_name
from ..data.inspection import Inspection
from ..data.ranges import range_note
from ..data.selection import count_kinds
from ..tasks.dataset import dataset
from .entry import Parser, guarded

_EXAMPLE = '''example:
  k-diffusion dataset data/icons --size 32 -o icons.png

Every picture is decoded once, by the rules of training. sigma_data is what to write into the config; the contact sheet shows 64
pictures as the model will see them.'''


def report(found: Inspection) -> str:
    """An inspection in words."""
    low, high = min(found.sizes, key=_area), max(found.sizes, key=_area)
    lines = [f'{found.source}: {found.files:,} files, {found.readable:,} pictures that can be read',
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
    lines += [f'broken     {len(found.broken):,}', *(f'  {name}: {why}' for name, why in found.broken[:10])]
    twice = sum(len(names) - 1 for names in found.duplicates)
    lines += [f'duplicates {twice:,}', *(f'  {names[0]} = {names[1]}' for names in found.duplicates[:5])]
    note = range_note(found.source, *found.range)
    lines += [f'note: {note}'] if note else []
    return '\n'.join([*lines, f'for the config: "input_channels": {found.channels}, "sigma_data": {found.sigma_data:.3f}  '
                              f'(mean {found.mean:+.3f}, at {found.size[1]}x{found.size[0]})'])


def _area(size: tuple[int, int]) -> int:
    return size[0] * size[1]


def _counts(counter: Counter[str], most: int = 8) -> str:
    return ', '.join(f'{name} {n:,}' for name, n in counter.most_common(most)) + (', ...' if len(counter) > most else '')


def as_json(found: Inspection) -> dict[str, Any]:
    """An inspection as plain JSON values."""
    return {'source': found.source, 'files': found.files, 'readable': found.readable, 'formats': found.formats, 'modes': found.modes,
            'sizes': {f'{w}x{h}': n for (w, h), n in found.sizes.items()}, 'folders': found.classes, 'broken': found.broken,
            'passed': found.passed, 'range': found.range,
            'duplicates': found.duplicates, 'channels': found.channels, 'mean': found.mean, 'sigma_data': found.sigma_data}


def main(argv: Sequence[str] | None = None, prog: str = 'k-diffusion dataset') -> int:
    parser = Parser(prog=prog, description=__doc__, epilog=_EXAMPLE)
    parser.add_argument('place', help='a folder, a .zip or a .tar of pictures')
    parser.add_argument('--size', type=int, default=64, help='the size that the model is to see (default: 64)')
    parser.add_argument('-o', '--out', help='write a contact sheet of 64 pictures here')
    parser.add_argument('--grey-range', type=float, nargs=2, metavar=('BLACK', 'WHITE'), help='dataset.grey_range of the config')
    parser.add_argument('--broken', metavar='FILE', help='write the list of all broken pictures here')
    parser.add_argument('--json', action='store_true', help='one machine-readable line on stdout')
    args = parser.parse_args(argv)

    def work() -> None:
        found = dataset(args.place, args.size, args.out, _progress, args.grey_range)
        if args.broken:
            with whole_file(args.broken) as temporary:
                temporary.write_text(''.join(f'{escape_name(name)}: {escape_name(why)}\n' for name, why in found.broken), 'utf-8')
        print(json.dumps(as_json(found)) if args.json else escape_name(report(found), keep='\n'))
        if args.out and not args.json:
            print(f'contact sheet: {escape_name(Path(args.out))}')
    return guarded(prog, work)


def _progress(done: int, total: int) -> None:
    if sys.stderr.isatty() and (done % 64 == 0 or done == total):
        print(f'\r{done:,} of {total:,}', end='\n' if done == total else '', file=sys.stderr, flush=True)
