"""Put pictures side by side into one picture."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..core.extras import require
from ..core.images import from_pil_image, make_grid, save_image
from ..core.settings import at_least, check_settings, setting, takes_settings
from ..data.pictures import readable_formats


@dataclass(frozen=True)
class GridSettings:
    """Settings of `grid`."""

    images: Sequence[str | os.PathLike[str]] = setting(
        help='the pictures, in order', flags=('images',), many='+'
    )
    out: str | os.PathLike[str] = setting(
        'out.png', 'the file to write', flags=('-o', '--output', '--out')
    )
    nrow: int | None = setting(None, 'pictures per row (default: as square as possible)')

    def __post_init__(self) -> None:
        exists = Path(self.out).absolute().parent.is_dir()
        check_settings(
            'images must be a list of paths; got ' + repr(self.images)
            if isinstance(self.images, (str, os.PathLike))
            else None
            if len(self.images)
            else 'images must name at least one picture; got none',
            None if exists else f'out must be in a folder that exists; got {self.out}',
            at_least(self, 1, 'nrow'),
        )


@takes_settings(GridSettings)
def grid(settings: GridSettings) -> Path:
    """Write pictures of one mode and size side by side as one picture.

    Args:
        settings: The settings, or the fields of GridSettings as arguments.

    Returns:
        The path of the picture.

    Raises:
        FileNotFoundError: A picture does not exist.
        ValueError: The pictures differ in mode or size.
    """
    images = settings.images
    pictures = [_load(path) for path in images]
    for path, (kind, _) in zip(images, pictures):
        if kind != pictures[0][0]:
            raise ValueError(
                f'images must be of one mode and size; got {path} of {kind} '
                f'and {images[0]} of {pictures[0][0]}'
            )
    save_image(settings.out, make_grid([picture for _, picture in pictures], settings.nrow))
    return Path(settings.out)


def _load(path: str | os.PathLike[str]) -> tuple[str, Tensor]:
    """Return the mode and size of a picture in words, and its pixels."""
    with require('PIL.Image', 'train', 'reading pictures').open(
        path, formats=readable_formats()
    ) as picture:
        kind = f'{picture.mode} {picture.width}x{picture.height}'
        if picture.mode not in ('L', 'LA', 'RGB', 'RGBA'):
            picture = picture.convert('RGBA' if 'transparency' in picture.info else 'RGB')
        return kind, from_pil_image(picture)
