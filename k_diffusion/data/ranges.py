"""Checks of the range of grey values: a data set with a narrow range was probably misread."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from torch import Tensor

from .datasets import Dataset, Images
from .pictures import UnreadablePicture
from .selection import PictureSet

#: Number of images that are examined.
_LOOKED_AT = 64
#: Values that span less of 0 to 255 than this are narrow.
SLIVER = 64
#: Share of images with a narrow range at black or white from which a set is reported. Files of
#: another depth look like that.
SHARE = 0.25

#: Number of images by their least and largest value, 0 to 255.
Ranges = Counter[tuple[int, int]]


def ranges_of(images: Tensor) -> list[tuple[int, int]]:
    """Return the least and the largest value of each image.

    Args:
        images: uint8 [N, C, H, W].
    """
    flat = images.flatten(1)
    return list(zip(flat.amin(1).tolist(), flat.amax(1).tolist()))


def range_note(source: str, ranges: Ranges) -> str | None:
    """Return a message if many images have a narrow range, else None.

    Args:
        source: The name of the data set.
        ranges: The ranges of its images.
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
    """Return the message about the range of some images of a data set, evenly spaced in it.

    Args:
        dataset: The data set.
    """
    if not isinstance(dataset, (Images, PictureSet)):
        return []
    n = min(len(dataset), _LOOKED_AT)
    images = _images(dataset, [i * (len(dataset) - 1) // max(1, n - 1) for i in range(n)])
    note = range_note(
        dataset.source, Counter(pair for image in images for pair in ranges_of(image[None]))
    )
    return [note] if note else []


def _span(ranges: Ranges) -> int:
    return max((high for _, high in ranges), default=0) - min((low for low, _ in ranges), default=0)


def _images(dataset: Dataset, indices: list[int]) -> Iterable[Tensor]:
    for index in indices:
        try:
            yield dataset[index]['image']
        except UnreadablePicture:
            continue
