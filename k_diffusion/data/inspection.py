"""Inspection of a folder or archive of images: contents, unreadable files, duplicates."""

from __future__ import annotations

import hashlib
import math
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.names import escape_name
from .archives import PictureArchive
from .caching import MEMORY_LIMIT, DecodedPictures
from .folders import PictureFiles
from .pictures import PIXEL_LIMIT, UnreadablePicture, convert_picture, is_turned, read_picture
from .ranges import Ranges, ranges_of
from .selection import stack_pixels
from .threads import map_ranges_in_threads

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
        turns: Number of images that an EXIF tag rotates.
        broken: (name, reason) of unreadable images.
        passed: Counts of ignored files by kind.
        duplicates: Groups of names of equal images.
        ranges: Least and largest value of each image, 0 to 255.
        mean: Mean of all pixels in [-1, 1].
        sigma_data: Their standard deviation.
        sample: Images evenly spaced in the set, uint8 [N, C, H, W].
        decoded: All images, if they are kept.
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
    turns: int = 0
    broken: list[tuple[str, str]] = field(default_factory=list)
    passed: Counter[str] = field(default_factory=Counter)
    duplicates: list[list[str]] = field(default_factory=list)
    ranges: Ranges = field(default_factory=Counter)
    mean: float = 0.0
    sigma_data: float = 0.0
    sample: Tensor | None = None
    decoded: DecodedPictures | None = None

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
    keep: bool = False,
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
        keep: Keep the decoded images, if they fit into memory.

    Raises:
        ValueError: If no image can be read.
    """
    files = open_pictures(Path(place), size, grey_range)
    result = Inspection(
        files.source,
        len(files) + len(files.skipped),
        size=size,
        broken=list(files.skipped),
        passed=files.passed,
    )
    pictures = _inspect_all(result, files, sheet, progress, keep)
    if not result.readable:
        raise ValueError(
            f'none of the {result.files} images of {result.source} can be read (the last, '
            f'{result.broken[-1][0]}: '
            f'{result.broken[-1][1]}); check that they are images'
        )
    result.channels = channels or (1 if all(mode in GREY for mode in result.modes) else 3)
    result.decoded = pictures
    return result


def _inspect_all(
    result: Inspection,
    files: PictureFiles | PictureArchive,
    sheet: int,
    progress: Callable[[int, int], None] | None,
    keep: bool,
) -> DecodedPictures | None:
    """Decode all images, count their properties, and return them if they are to be kept."""
    each = math.prod(files.image_shape)
    keep = keep and len(files) * each <= MEMORY_LIMIT
    images = torch.empty(len(files) if keep else 0, *files.image_shape, dtype=torch.uint8)
    decoded, unreadable, same = list[int](), dict[int, str](), dict[bytes, list[int]]()
    shown_indices = {round(i * (len(files) - 1) / max(1, sheet - 1)) for i in range(sheet)}
    sample, moments = list[Tensor](), torch.zeros(3, dtype=torch.float64)
    for start, looked, pixels in map_ranges_in_threads(
        lambda numbers: [_look_at_several(files, numbers)], len(files), each
    ):
        moments += _moments(pixels)
        result.ranges.update(ranges_of(pixels))
        if keep:
            images[len(decoded) : len(decoded) + len(pixels)] = pixels
        rows = iter(pixels)
        for index, facts in enumerate(looked, start):
            if isinstance(facts, str):
                unreadable[index] = facts
            else:
                _count(result, facts, files, index)
                same.setdefault(facts['digest'], []).append(index)
                decoded.append(index)
                image = next(rows)
                sample += [image] if index in shown_indices else []
            if progress is not None:
                progress(index + 1, len(files))
    result.broken += [(files.name(index), why) for index, why in unreadable.items()]
    total, squares, count = moments.tolist()
    if count:
        result.mean = total / count
        result.sigma_data = max(0.0, squares / count - result.mean**2) ** 0.5
    result.sample = torch.stack(sample) if sample else None
    result.duplicates = [
        [files.name(index) for index in group] for group in same.values() if len(group) > 1
    ]
    return DecodedPictures(files, images[: len(decoded)], decoded, unreadable) if keep else None


def _moments(images: Tensor) -> Tensor:
    """Return the sums of the values in [-1, 1], of their squares, and their number."""
    values = images.double().div_(127.5).sub_(1)
    return torch.stack(
        [values.sum(), values.square().sum(), torch.tensor(float(values.numel())).double()]
    )


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
    result: Inspection, facts: dict[str, Any], files: PictureFiles | PictureArchive, index: int
) -> None:
    result.readable += 1
    result.formats[facts['format']] += 1
    result.modes[facts['mode']] += 1
    result.sizes[facts['size']] += 1
    result.turns += facts['turns']
    folder, slash, _ = files.names[index].partition('/')
    if slash:
        result.classes[escape_name(folder)] += 1


def _look_at_several(
    files: PictureFiles | PictureArchive, indices: range
) -> tuple[int, list[dict[str, Any] | str], Tensor]:
    """Return the first index, facts of each image or why it is unreadable, and the readable ones.

    The images are uint8 [N, 3, H, W].
    """
    looked: list[dict[str, Any] | str] = []
    pixels: list[bytes] = []
    for index in indices:
        try:
            with files.open(index) as source:
                facts, data = read_picture(source, lambda picture: _look_at(picture, files))
        except UnreadablePicture as error:
            looked.append(str(error))
        else:
            looked.append({**facts, 'digest': hashlib.blake2b(data, digest_size=16).digest()})
            pixels.append(data)
    return indices.start, looked, stack_pixels(pixels, files.image_shape)


def _look_at(picture: Any, files: PictureFiles | PictureArchive) -> tuple[dict[str, Any], bytes]:
    facts = {'format': picture.format or '?', 'mode': picture.mode, 'size': picture.size}
    # Pillow rotates a TIFF while decoding, and the tag of a PNG may follow its pixels.
    has_turn = is_turned(picture)
    _, height, width = files.image_shape
    data: bytes = convert_picture(
        picture, lambda x: x.tobytes(), (height, width), 3, PIXEL_LIMIT, files.grey_range
    )
    return {**facts, 'turns': has_turn or is_turned(picture)}, data
