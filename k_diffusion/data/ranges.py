"""How much of black to white a data set uses: one that uses a sliver was probably scaled by the wrong rule."""
from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from .datasets import Dataset, Images
from .pictures import UnreadablePicture
from .selection import PictureSet

#: Pictures of a data set that are looked at.
_LOOKED_AT = 64
#: A set whose values span less of 0 to 255 is warned about.
SLIVER = 64


def range_of(images: Iterable[Tensor]) -> tuple[int, int]:
    """The least and the largest value of pictures uint8 [C, H, W]; (255, 0) where there are none."""
    least, most = 255, 0
    for image in images:
        least, most = min(least, int(image.min())), max(most, int(image.max()))
    return least, most


def range_note(source: str, least: int, most: int) -> str | None:
    """A sentence where pictures use a sliver of the range, None where they use more of it."""
    if not 0 <= most - least < SLIVER:
        return None
    return (f'the pictures of {source} use only the values {least} to {most} of 0 (black) to 255 (white); if their files are scaled '
            'otherwise (12 bits in a 16-bit file), set dataset.grey_range to the values that are black and white there, [0, 4095]')


def range_notes(dataset: Dataset) -> list[str]:
    """Return the note on the range of some pictures of a data set, evenly spaced in it."""
    if not isinstance(dataset, (Images, PictureSet)):
        return []
    n = min(len(dataset), _LOOKED_AT)
    note = range_note(dataset.source, *range_of(_images(dataset, [i * (len(dataset) - 1) // max(1, n - 1) for i in range(n)])))
    return [note] if note else []


def _images(dataset: Dataset, indices: list[int]) -> Iterable[Tensor]:
    for index in indices:
        try:
            yield dataset[index]['image']
        except UnreadablePicture:
            continue
