"""Inspect a folder or archive of pictures before training."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from ..core.files import whole_file
from ..core.images import from_bytes, make_grid, save_image
from ..core.names import escape_name
from ..core.settings import at_least, check_settings, setting, takes_settings
from ..data.inspection import Inspection, inspect_pictures
from ..data.ranges import range_note
from ..data.selection import count_kinds


@dataclass(frozen=True)
class DatasetSettings:
    """Settings of `inspect_dataset`."""

    place: str | os.PathLike[str] = setting(
        help='a folder, a .zip or a .tar of pictures', flags=('place',)
    )
    size: int = setting(64, 'height and width of the pictures for the model')
    sheet: str | os.PathLike[str] | None = setting(
        None, 'write a contact sheet of 64 pictures here', flags=('-o', '--out'), metavar='OUT'
    )
    progress: Callable[[int, int], None] | None = setting(None)
    grey_range: tuple[float, float] | None = setting(
        None, 'dataset.grey_range of the config', metavar=('BLACK', 'WHITE'), parse=float, many=2
    )
    broken: str | os.PathLike[str] | None = setting(
        None, 'write the list of all broken pictures here', metavar='FILE'
    )

    def __post_init__(self) -> None:
        pair = self.grey_range is None or len(self.grey_range) == 2
        check_settings(
            at_least(self, 1, 'size'),
            None if pair else f'grey_range must be two values; got {self.grey_range}',
        )


@takes_settings(DatasetSettings)
def inspect_dataset(settings: DatasetSettings) -> Inspection:
    """Decode every picture of a folder or archive once, by the rules of training, and count.

    Args:
        settings: The settings, or the fields of DatasetSettings as arguments; `progress` is called
            with the number of finished pictures and the total.

    Returns:
        The counts, the broken and equal pictures, and sigma_data for the config.

    Raises:
        FileNotFoundError: The folder or archive does not exist.
        ValueError: None of its pictures can be read.
    """
    black_white = (
        None if settings.grey_range is None else (settings.grey_range[0], settings.grey_range[1])
    )
    result = inspect_pictures(
        settings.place,
        (settings.size, settings.size),
        progress=settings.progress,
        grey_range=black_white,
    )
    if settings.sheet is not None and result.sample is not None:
        save_image(settings.sheet, make_grid(from_bytes(result.sample), padding=2, fill=1.0))
    if settings.broken is not None:
        with whole_file(settings.broken) as temporary:
            temporary.write_text(
                ''.join(
                    f'{escape_name(name)}: {escape_name(why)}\n' for name, why in result.broken
                ),
                'utf-8',
            )
    return result


def describe_inspection(result: Inspection) -> str:
    """Return the `result` of an inspection as text."""
    height, width = result.size
    sizes = result.sizes
    low, high = min(sizes, key=_area), max(sizes, key=_area)
    often = _counts(Counter({f'{w}x{h}': n for (w, h), n in sizes.items()}), 3)
    lines = [
        f'{escape_name(result.source)}: {result.files:,} files, '
        f'{result.readable:,} pictures that can be read',
        f'formats    {_counts(result.formats)}',
        f'modes      {_counts(result.modes)}',
        f'sizes      {low[0]}x{low[1]} to {high[0]}x{high[1]}; most often {often}',
    ]
    if result.classes:
        lines.append(f'folders    {len(result.classes)}: {_counts(result.classes)}')
    if result.turns:
        lines.append(f'turned     {result.turns:,} by their EXIF tag, as training does')
    small = sum(n for (w, h), n in sizes.items() if w < width or h < height)
    if small:
        lines.append(f'small      {small:,} are smaller than {width}x{height} and are enlarged')
    if result.passed:
        lines.append(
            f'passed     {sum(result.passed.values()):,}: {count_kinds(result.passed)} '
            '(hidden, of the system, or not pictures)'
        )
    lines.append(f'broken     {len(result.broken):,}')
    lines += [f'  {escape_name(name)}: {escape_name(why)}' for name, why in result.broken[:10]]
    lines.append(f'duplicates {sum(len(names) - 1 for names in result.duplicates):,}')
    lines += [f'  {escape_name(a)} = {escape_name(b)}' for a, b, *_ in result.duplicates[:5]]
    note = range_note(result.source, result.ranges)
    lines += [f'note: {note}'] if note else []
    return '\n'.join(
        [
            *lines,
            f'for the config: "input_channels": {result.channels}, '
            f'"sigma_data": {result.sigma_data:.3f}  '
            f'(mean {result.mean:+.3f}, at {width}x{height})',
        ]
    )


def _area(size: tuple[int, int]) -> int:
    return size[0] * size[1]


def _counts(counter: Counter[str], most: int = 8) -> str:
    return ', '.join(f'{name} {n:,}' for name, n in counter.most_common(most)) + (
        ', ...' if len(counter) > most else ''
    )
