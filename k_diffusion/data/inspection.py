"""Inspection of a folder or archive of images: contents, unreadable files, duplicates."""

from __future__ import annotations

import hashlib
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.names import escape_name
from .archives import PictureArchive
from .folders import PictureFiles
from .pictures import UnreadablePicture, is_turned, picture_bytes, read_picture
from .ranges import Ranges, range_of
from .threads import map_in_threads

#: Modes of images without colour.
GREY = frozenset(('1', 'L', 'LA', 'La', 'I', 'I;16', 'I;16B', 'I;16L', 'F'))


@dataclass
class Inspection:
    """The properties of a set of images.

    Attributes:
        source: Its name.
        files: Number of files.
        readable: Number of readable images.
        channels: Number of channels of the items.
        size: Height and width of the items.
        formats: Counts by format.
        modes: Counts by mode of PIL.
        sizes: Counts by (width, height).
        classes: Counts by first-level folder.
        turned: Number of images that an EXIF tag rotates.
        broken: (name, reason) of unreadable images.
        passed: Counts of ignored files by kind.
        duplicates: Groups of names of equal images.
        ranges: Least and largest value of each image, 0 to 255.
        mean: Mean of all pixels in [-1, 1].
        sigma_data: Their standard deviation.
        sample: Images evenly spaced in the set, uint8 [N, C, H, W].
    """

    source: str
    files: int = 0
    readable: int = 0
    channels: int = 3
    size: tuple[int, int] = (64, 64)
    formats: Counter[str] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    classes: Counter[str] = field(default_factory=Counter)
    turned: int = 0
    broken: list[tuple[str, str]] = field(default_factory=list)
    passed: Counter[str] = field(default_factory=Counter)
    duplicates: list[list[str]] = field(default_factory=list)
    ranges: Ranges = field(default_factory=Counter)
    mean: float = 0.0
    sigma_data: float = 0.0
    sample: Tensor | None = None

    @property
    def range(self) -> tuple[int, int]:
        """Return the least and the largest value, 0 to 255; (255, 0) without images."""
        return min((low for low, _ in self.ranges), default=255), max(
            (high for _, high in self.ranges), default=0
        )


def inspect_pictures(
    place: str | os.PathLike[str],
    size: tuple[int, int] = (64, 64),
    channels: int | None = None,
    sheet: int = 64,
    progress: Callable[[int, int], None] | None = None,
    grey_range: tuple[float, float] | None = None,
) -> Inspection:
    """Decode every image once, by the rules of training, and return the properties of the set.

    Duplicates have the same pixels at the given size. sigma_data is the standard deviation of all
    pixels in [-1, 1] at that size, the value for the config.

    Args:
        place: The folder or archive.
        size: Height and width of the items.
        channels: Number of channels; None for 1 if all images are grey, else 3.
        sheet: Number of images in `sample`.
        progress: Called with the number of images read and the total.
        grey_range: Black and white of grey images.

    Raises:
        ValueError: If no image can be read.
    """
    files = open_pictures(Path(place), size, grey_range)
    found = Inspection(
        files.source,
        len(files) + len(files.skipped),
        size=size,
        broken=list(files.skipped),
        passed=files.passed,
    )
    chosen = {round(i * (len(files) - 1) / max(1, sheet - 1)) for i in range(sheet)}
    same: dict[bytes, list[str]] = {}
    kept, moments = [], torch.zeros(3, dtype=torch.float64)
    for index, looked in enumerate(_in_threads(files, size)):
        if isinstance(looked, str):
            found.broken.append((files.name(index), looked))
        else:
            facts, image = looked
            _count(found, facts, files, index)
            found.ranges[range_of(image)] += 1
            same.setdefault(
                hashlib.blake2b(image.numpy().tobytes(), digest_size=16).digest(), []
            ).append(files.name(index))
            values = image.double().div_(127.5).sub_(1)
            moments += torch.stack(
                [values.sum(), values.square().sum(), torch.tensor(float(values.numel()))]
            )
            kept += [image] if index in chosen else []
        if progress is not None:
            progress(index + 1, len(files))
    if not found.readable:
        raise ValueError(
            f'none of the {found.files} images of {found.source} can be read (the last, '
            f'{found.broken[-1][0]}: '
            f'{found.broken[-1][1]}); check that they are images'
        )
    total, squares, count = moments.tolist()
    found.mean, found.sigma_data = (
        total / count,
        max(0.0, squares / count - (total / count) ** 2) ** 0.5,
    )
    found.channels = channels or (1 if all(mode in GREY for mode in found.modes) else 3)
    found.sample = torch.stack(kept) if kept else None
    found.duplicates = [names for names in same.values() if len(names) > 1]
    return found


def open_pictures(
    place: Path, size: tuple[int, int], grey_range: tuple[float, float] | None = None
) -> PictureFiles | PictureArchive:
    """Open the images of a folder or an archive as training does.

    Args:
        place: The folder or archive.
        size: Height and width of the items.
        grey_range: Black and white of grey images.
    """
    return (PictureArchive if place.is_file() else PictureFiles)(
        place, size, 3, grey_range=grey_range
    )


def _count(
    found: Inspection, facts: dict[str, Any], files: PictureFiles | PictureArchive, index: int
) -> None:
    found.readable += 1
    found.formats[facts['format']] += 1
    found.modes[facts['mode']] += 1
    found.sizes[facts['size']] += 1
    found.turned += facts['turned']
    folder, slash, _ = files.names[index].partition('/')
    if slash:
        found.classes[escape_name(folder)] += 1


def _in_threads(
    files: PictureFiles | PictureArchive, size: tuple[int, int]
) -> Iterator[tuple[dict[str, Any], Tensor] | str]:
    """Yield facts and pixels of each image in order, or the reason why it cannot be read."""

    def look(index: int) -> tuple[dict[str, Any], Tensor] | str:
        try:
            with files.open(index) as source:
                return read_picture(
                    source, lambda picture: _looked_at(picture, size, files.grey_range)
                )
        except UnreadablePicture as error:
            return str(error)

    return map_in_threads(look, len(files), 3 * math.prod(size))


def _looked_at(
    picture: Any, size: tuple[int, int], grey_range: tuple[float, float] | None
) -> tuple[dict[str, Any], Tensor]:
    facts = {
        'format': picture.format or '?',
        'mode': picture.mode,
        'size': (picture.width, picture.height),
    }
    # Pillow rotates a TIFF while decoding, and the tag of a PNG may follow its pixels.
    turned = is_turned(picture)
    image = picture_bytes(picture, size, 3, grey_range=grey_range)
    return {**facts, 'turned': turned or is_turned(picture)}, image
