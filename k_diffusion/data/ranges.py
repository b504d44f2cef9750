"""How much of black to white a data set uses: one that uses a sliver was probably scaled by the
wrong rule.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from torch import Tensor

from .datasets import Dataset, Images
from .pictures import UnreadablePicture
from .selection import PictureSet

#: Pictures of a data set that are looked at.
_LOOKED_AT = 64
#: A set whose values span less of 0 to 255 is warned about.
SLIVER = 64
#: So is one of which such a share of the pictures are within a sliver at black or white, as files
#: of another depth are.
SHARE = 0.25

#: The least and the largest value of pictures, 0 to 255, and how many pictures have them.
Ranges = Counter[tuple[int, int]]


def range_of(image: Tensor) -> tuple[int, int]:
    """The least and the largest value of a picture uint8 [C, H, W]."""
    return int(image.min()), int(image.max())


def range_note(source: str, ranges: Ranges) -> str | None:
    """A sentence where pictures, or many of them, use a sliver of the range, None where they use
    more of it.
    """
    narrow = (
        ranges
        if _span(ranges) < SLIVER
        else Counter(
            {
                (low, high): n
                for (low, high), n in ranges.items()
                if high < SLIVER or low > 255 - SLIVER
            }
        )
    )
    if not ranges or narrow.total() < SHARE * ranges.total():
        return None
    which = (
        'the pictures'
        if narrow.total() == ranges.total()
        else f'{narrow.total():,} of the {ranges.total():,} pictures looked at'
    )
    return (
        f'{which} of {source} use only the values {min(low for low, _ in narrow)} to '
        f'{max(high for _, high in narrow)} of 0 (black) '
        'to 255 (white); if their files are scaled otherwise (12 bits in a 16-bit file), set '
        'dataset.grey_range to the values that '
        'are black and white there, [0, 4095], and model.sigma_data to what `k-diffusion dataset` '
        'then measures; files of several '
        'channels, and those of another depth than the rest, must be scaled anew'
    )


def range_notes(dataset: Dataset) -> list[str]:
    """Return the note on the range of some pictures of a data set, evenly spaced in it."""
    if not isinstance(dataset, (Images, PictureSet)):
        return []
    n = min(len(dataset), _LOOKED_AT)
    chosen = _images(dataset, [i * (len(dataset) - 1) // max(1, n - 1) for i in range(n)])
    note = range_note(dataset.source, Counter(range_of(image) for image in chosen))
    return [note] if note else []


def _span(ranges: Ranges) -> int:
    return max((high for _, high in ranges), default=0) - min((low for low, _ in ranges), default=0)


def _images(dataset: Dataset, indices: list[int]) -> Iterable[Tensor]:
    for index in indices:
        try:
            yield dataset[index]['image']
        except UnreadablePicture:
            continue
