"""The rules that select the images of a folder or an archive, in training and inspection.

- Hidden and system files and folders (names that begin with a dot, and those in SYSTEM_NAMES) are
ignored.
- Files with a suffix in EXTENSIONS count; others are ignored.
- Files that count but cannot be used (a broken link, an unreadable folder, a name that leads out of
an archive) are skipped.
- Images are in the order of their names as text, folder by folder: 1.png, 10.png, 2.png.

Ignored files are counted by kind; skipped files are listed with the reason.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence, Set
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Generic, TypeVar

import torch
from torch import Tensor

from ..core.names import escape_name
from .datasets import Dataset
from .pictures import EXTENSIONS, UnreadablePicture, load_picture, load_pixels

F = TypeVar('F')
#: Names of files and folders that systems and programs leave beside images, in lower case.
SYSTEM_NAMES = frozenset(
    (
        '__macosx',
        '@eadir',
        '@recycle',
        '@recently-snapshot',
        '@tmp',
        '#recycle',
        '#snapshot',
        '~snapshot',
        '$recycle.bin',
        'recycler',
        'recycled',
        'found.000',
        'system volume information',
        'lost+found',
        'network trash folder',
        'temporary items',
        '__pycache__',
        'thumbs.db',
        'ehthumbs.db',
        'desktop.ini',
        'icon\r',
    )
)
#: Number of kinds of ignored files in messages.
_NAMED = 8


@dataclass
class Selection(Generic[F]):
    """The images of a place by their names below it, with skipped and ignored files.

    Attributes:
        pictures: The images by name.
        skipped: (name, reason).
        passed: Counts of ignored files by kind.
        endings: The suffixes that count.
    """

    pictures: dict[str, F] = field(default_factory=dict)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    passed: Counter[str] = field(default_factory=Counter)
    endings: Set[str] = EXTENSIONS
    _hidden: set[tuple[str, ...]] = field(default_factory=set)

    def add(self, parts: Sequence[str], file: F, path_name: str, odd: str | None = None) -> None:
        """Sort in a file.

        Args:
            parts: The folders below the place, and its name.
            file: The value to keep for an image.
            path_name: Its name in messages.
            odd: The reason why it cannot be used, if there is one.
        """
        if odd is not None:
            self.skipped.append((escape_name(path_name), odd))
        elif not self.pass_hidden(parts):
            ending = ending_of(parts[-1])
            if ending not in self.endings:
                self.passed[escape_name(f'*{ending}') if ending else 'no ending'] += 1
                return
            name = '/'.join(parts)
            if name in self.pictures:
                self.skipped.append((escape_name(path_name), 'a later file has the same name'))
            self.pictures[name] = file

    def pass_hidden(self, parts: Sequence[str]) -> bool:
        """Return True for a hidden entry or one in a hidden folder; count each once.

        Args:
            parts: The folders below the place, and its name.
        """
        for i, part in enumerate(parts):
            if part.startswith('.') or part.lower() in SYSTEM_NAMES:
                entry = tuple(parts[: i + 1])
                if entry not in self._hidden:
                    self._hidden.add(entry)
                    self.passed['._*' if part.startswith('._') else escape_name(part)] += 1
                return True
        return False

    def in_order(self) -> dict[str, F]:
        """Return the images sorted by name, folder by folder."""
        return dict(sorted(self.pictures.items(), key=lambda item: item[0].replace('/', '\0')))


def ending_of(name: str) -> str:
    """Return the suffix of a file's name in lower case, as pathlib finds it.

    Args:
        name: The name, without folders.
    """
    stem, dot, ending = name.rpartition('.')
    return f'.{ending}'.lower() if stem and dot and ending else ''


def drop_wrapper(pictures: dict[str, F]) -> dict[str, F]:
    """Remove the folder that holds all images from their names, while it has subfolders.

    Args:
        pictures: The images by name.
    """
    while len({name.partition('/')[0] for name in pictures}) == 1 and any(
        name.count('/') > 1 for name in pictures
    ):
        pictures = {name.partition('/')[2]: file for name, file in pictures.items()}
    return pictures


class PictureSet(Dataset, Generic[F]):
    """The images of a folder or an archive, decoded on request.

    Args:
        place: The folder or archive.
        source: Its name in messages.
        selection: Its files.
        pictures: Its images by name.
        size: Height and width of the items.
        channels: Number of channels of the items.
        by_folder: Use first-level folders as classes.
        grey_range: Black and white of grey images; None for those of the file format.
    """

    def __init__(
        self,
        place: Path,
        source: str,
        selection: Selection[F],
        pictures: dict[str, F],
        size: tuple[int, int],
        channels: int,
        by_folder: bool = False,
        grey_range: tuple[float, float] | None = None,
    ) -> None:
        self.place, self.source, self.passed, self.grey_range = (
            place,
            source,
            selection.passed,
            grey_range,
        )
        outside = [name for name in pictures if by_folder and '/' not in name]
        self.names = [name for name in pictures if not (by_folder and '/' not in name)]
        self.files = [pictures[name] for name in self.names]
        if not self.names:
            raise ValueError(
                f'{source} holds no pictures{" in folders (each a class)" if by_folder else ""}'
                + (f' (passed over: {count_kinds(self.passed)})' if self.passed else '')
                + (
                    f' ({len(selection.skipped):,} skipped, the first, {selection.skipped[0][0]}, '
                    'since '
                    f'{selection.skipped[0][1]})'
                    if selection.skipped
                    else ''
                )
                + (
                    '; in it must lie files whose endings say that they are pictures (.png, .jpg, '
                    '...)'
                )
            )
        folders = [name.partition('/')[0] for name in self.names] if by_folder else []
        classes = {folder: i for i, folder in enumerate(sorted(set(folders)))}
        super().__init__((channels, *size), list(classes))
        self.labels = [classes[folder] for folder in folders]
        self.skipped += selection.skipped + [
            (self.display_name(name), 'it lies in no class folder') for name in outside
        ]
        if self.passed:
            self.notes.append(
                f'passed over in {source}, since they are hidden, of the system or not pictures '
                'by their endings: '
                f'{count_kinds(self.passed)}'
            )

    @abstractmethod
    def open(self, index: int) -> AbstractContextManager[str | IO[bytes]]:
        """Open an image for reading.

        Args:
            index: Its index.
        """

    @abstractmethod
    def display_name(self, name: str) -> str:
        """Return the name of an image in messages.

        Args:
            name: Its name below the place.
        """

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        channels, *size = self.image_shape
        with self.open(index) as source:
            item: dict[str, Any] = {
                'image': load_picture(
                    source, (size[0], size[1]), channels, grey_range=self.grey_range
                )
            }
        return item | {'class_cond': self.labels[index]} if self.labels else item

    def read_several(self, indices: Sequence[int]) -> list[dict[str, Any] | str]:
        """Return items as `Dataset.read_several` does, converted to tensors all at once.

        Args:
            indices: Their indices.
        """
        channels, height, width = self.image_shape
        pixels: list[bytes | str] = []
        for index in indices:
            try:
                with self.open(index) as source:
                    pixels.append(load_pixels(source, (height, width), channels, self.grey_range))
            except UnreadablePicture as error:
                pixels.append(str(error))
        images = iter(
            stack_pixels([v for v in pixels if isinstance(v, bytes)], self.image_shape).unbind()
        )
        items: list[dict[str, Any] | str] = []
        for index, values in zip(indices, pixels):
            if isinstance(values, str):
                items.append(values)
            elif self.labels:
                items.append({'image': next(images), 'class_cond': self.labels[index]})
            else:
                items.append({'image': next(images)})
        return items

    def name(self, index: int) -> str:
        """Return the name of an image in messages.

        Args:
            index: Its index.
        """
        return self.display_name(self.names[index])

    def item_names(self) -> list[str]:
        """Return the names of the images below their place."""
        return self.names

    def rules(self) -> str:
        """Return the settings that decide which files are images and how they are read."""
        return f'{os.path.abspath(self.place)}\0{self.num_classes}\0{self.grey_range}'


def stack_pixels(pixels: Sequence[bytes], shape: Sequence[int]) -> Tensor:
    """Return images uint8 [N, C, H, W] of their bytes.

    Args:
        pixels: The bytes of each image, [H, W, C].
        shape: C, H and W.
    """
    channels, height, width = shape
    if not pixels:
        return torch.empty(0, channels, height, width, dtype=torch.uint8)
    images = torch.frombuffer(bytearray().join(pixels), dtype=torch.uint8)
    return images.view(-1, height, width, channels).permute(0, 3, 1, 2).contiguous()


def count_kinds(counts: Counter[str]) -> str:
    """Return a text with the kinds of ignored files and their counts.

    Args:
        counts: The counts.
    """
    more = f' and {len(counts) - _NAMED} more kinds' if len(counts) > _NAMED else ''
    return ', '.join(f'{kind} {n:,}' for kind, n in counts.most_common(_NAMED)) + more
