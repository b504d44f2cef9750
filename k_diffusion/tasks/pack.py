"""Write a folder of pictures or arrays as tar shards, for training from a stream."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from ..core.names import escape_name
from ..core.settings import at_least, check_settings, one_of, setting, takes_settings
from ..data.shards import PackResult, pack_shards


@dataclass(frozen=True)
class PackSettings:
    """Settings of `pack_dataset`."""

    place: str | os.PathLike[str] = setting(
        help='a folder of pictures or .npy arrays', flags=('place',)
    )
    out: str | os.PathLike[str] = setting(
        help='the folder for the shards', flags=('-o', '--out'), metavar='OUT'
    )
    classes: str = setting(
        'none', 'folders: the first-level folders are the classes', choices=('none', 'folders')
    )
    order: str = setting(
        'shuffled', 'the order of the files in the shards', choices=('shuffled', 'names')
    )
    seed: int = setting(0, 'the seed of the order')
    samples: int = setting(10_000, 'maximum number of samples of a shard')
    megabytes: int = setting(256, 'approximate maximum size of a shard in MiB')
    progress: Callable[[int, int], None] | None = setting(None)

    def __post_init__(self) -> None:
        check_settings(
            at_least(self, 1, 'samples', 'megabytes'),
            one_of(self, ('none', 'folders'), 'classes'),
            one_of(self, ('shuffled', 'names'), 'order'),
        )


@takes_settings(PackSettings)
def pack_dataset(settings: PackSettings) -> PackResult:
    """Write a folder as tar shards in the WebDataset layout, with an index of their counts.

    Files are stored unchanged; a .txt, .json or .cls file with the name of a picture is stored with
    it. The same files and settings give the same bytes.

    Args:
        settings: The settings, or the fields of PackSettings as arguments.

    Returns:
        The number of samples and shards, and the skipped files.

    Raises:
        FileNotFoundError: The folder does not exist.
        FileExistsError: `out` already contains shards.
        ValueError: The folder contains no pictures or arrays.
    """
    return pack_shards(
        settings.place,
        settings.out,
        by_folder=settings.classes == 'folders',
        shuffle=settings.order == 'shuffled',
        seed=settings.seed,
        samples=settings.samples,
        size=settings.megabytes * 2**20,
        progress=settings.progress,
    )


def describe_packing(result: PackResult) -> str:
    """Return the `result` of packing as text."""
    lines = [
        f'{escape_name(result.folder)}: {result.samples:,} samples in {result.shards:,} shards, '
        f'{result.bytes / 1e6:,.1f} MB'
    ]
    if result.class_names:
        lines.append(f'classes    {len(result.class_names)}')
    if result.skipped:
        lines.append(f'left out   {len(result.skipped):,}')
        lines += [f'  {name}: {escape_name(why)}' for name, why in result.skipped[:10]]
    entry = f', "num_classes": {len(result.class_names)}' if result.class_names else ''
    return '\n'.join(
        [
            *lines,
            f'for the config: "type": "shards", "location": "{escape_name(result.folder)}"{entry}',
        ]
    )
