"""A look through a folder or archive of pictures before training."""
from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from ..core.files import whole_file
from ..core.images import from_bytes, make_grid, save_image
from ..core.names import escape_name
from ..core.settings import at_least, check_settings, setting, takes_settings
from ..data.inspection import Inspection, inspect_pictures


@dataclass(frozen=True)
class DatasetSettings:
    """Settings of `inspect_dataset`."""

    place: str | os.PathLike[str] = setting(help='a folder, a .zip or a .tar of pictures', flags=('place',))
    size: int = setting(64, 'height and width of the pictures for the model')
    sheet: str | os.PathLike[str] | None = setting(None, 'write a contact sheet of 64 pictures here', flags=('-o', '--out'), metavar='OUT')
    progress: Callable[[int, int], None] | None = setting(None)
    grey_range: tuple[float, float] | None = setting(
        None, 'dataset.grey_range of the config', metavar=('BLACK', 'WHITE'), parse=float, many=2)
    broken: str | os.PathLike[str] | None = setting(None, 'write the list of all broken pictures here', metavar='FILE')

    def __post_init__(self) -> None:
        pair = self.grey_range is None or len(self.grey_range) == 2
        check_settings(at_least(self, 1, 'size'), None if pair else f'grey_range must be two values; got {self.grey_range}')


@takes_settings(DatasetSettings)
def inspect_dataset(settings: DatasetSettings) -> Inspection:
    """Decode every picture of a folder or archive once, by the rules of training, and count.

    `progress` is called with the number of pictures that are done and that of all.

    Returns:
        The counts, the broken and equal pictures, and sigma_data for the config.

    Raises:
        FileNotFoundError: There is no such place.
        ValueError: None of its pictures can be read.
    """
    black_white = None if settings.grey_range is None else (settings.grey_range[0], settings.grey_range[1])
    result = inspect_pictures(settings.place, (settings.size, settings.size), progress=settings.progress, grey_range=black_white)
    if settings.sheet is not None and result.sample is not None:
        save_image(settings.sheet, make_grid(from_bytes(result.sample), padding=2, fill=1.))
    if settings.broken is not None:
        with whole_file(settings.broken) as temporary:
            temporary.write_text(''.join(f'{escape_name(name)}: {escape_name(why)}\n' for name, why in result.broken), 'utf-8')
    return result
