"""Folders of images."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence, Set
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch.utils.data

from ..core.extras import require
from ..core.names import escape_name
from .archives import PictureArchive
from .datasets import Dataset
from .opening import DATASETS, PictureConfig, Request
from .pictures import EXTENSIONS, readable_formats
from .selection import PictureSet, Selection, ending_of


@DATASETS.register('imagefolder')
@dataclass(kw_only=True)
class ImageFolderConfig(PictureConfig):
    """All images below a folder or in a .zip or .tar.

    With labels "folders" its sorted first-level subfolders are the classes.
    """

    type: Literal['imagefolder'] = 'imagefolder'
    labels: Literal['folders'] | None = None

    def open(self, request: Request) -> Dataset:
        """Open the images.

        Args:
            request: The size and channels of the items.
        """
        return _pictures(self.place(), request, self.labels == 'folders', self.grey_range)


@DATASETS.register('imagefolder-class')
@dataclass(kw_only=True)
class ImageFolderClassConfig(PictureConfig):
    """An "imagefolder" with its first-level subfolders as classes, by the original's name."""

    type: Literal['imagefolder-class'] = 'imagefolder-class'

    def open(self, request: Request) -> Dataset:
        """Open the images.

        Args:
            request: The size and channels of the items.
        """
        return _pictures(self.place(), request, True, self.grey_range)


def _pictures(
    place: Path, request: Request, by_folder: bool, grey_range: tuple[float, float] | None
) -> Dataset:
    kind = PictureArchive if place.is_file() else PictureFiles
    return kind(place, request.size, request.channels, by_folder, grey_range)


class PictureFiles(PictureSet[str]):
    """The images below a folder.

    Args:
        root: The folder.
        size: Height and width of the items.
        channels: Number of channels of the items.
        by_folder: Use first-level folders as classes.
        grey_range: Black and white of grey images; None for those of the file format.
    """

    def __init__(
        self,
        root: Path,
        size: tuple[int, int],
        channels: int,
        by_folder: bool = False,
        grey_range: tuple[float, float] | None = None,
    ) -> None:
        selection = select_files(root)
        super().__init__(
            root,
            f'the folder {escape_name(root)}',
            selection,
            selection.in_order(),
            size,
            channels,
            by_folder,
            grey_range,
        )

    def open(self, index: int) -> AbstractContextManager[str]:
        """Return the path of an image as a context.

        Args:
            index: The index of the image.
        """
        return nullcontext(self.files[index])

    def display_name(self, name: str) -> str:
        """Return the name of an image in messages.

        Args:
            name: Its name below the folder.
        """
        return escape_name(os.path.join(self.place, name))

    def fingerprint(self) -> str:
        """Return a digest of names, sizes and modification times of the files."""
        state = hashlib.blake2b(os.fsencode(self.rules()), digest_size=16)
        for name, path in zip(self.names, self.files):
            try:
                facts = os.stat(path)
                text = f'{facts.st_size}\0{facts.st_mtime_ns}'
            except OSError:
                text = 'gone'
            state.update(os.fsencode(f'{name}\0{text}\0'))
        return state.hexdigest()


def find_pictures(root: str | os.PathLike[str]) -> list[Path]:
    """Return the images below a folder by the rules of `selection`, sorted.

    Links to folders are followed, but not in circles.

    Args:
        root: The folder.
    """
    return [Path(path) for path in select_files(root).in_order().values()]


def select_files(root: str | os.PathLike[str], endings: Set[str] = EXTENSIONS) -> Selection[str]:
    """Search a folder and all folders in it; unreadable ones are skipped.

    Args:
        root: The folder.
        endings: The suffixes that count, in lower case.

    Raises:
        FileNotFoundError: If there is no such folder.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(
            f'dataset.location must be a folder of images; there is no folder {root}'
        )
    selection: Selection[str] = Selection(endings=endings)
    waiting: list[tuple[tuple[str, ...], frozenset[tuple[int, int]]]] = [((), frozenset())]
    while waiting:
        parts, above = waiting.pop()
        folder = root.joinpath(*parts)
        try:
            facts = os.stat(folder)
            here = (facts.st_dev, facts.st_ino)
            if here in above:
                selection.add(
                    parts, str(folder), str(folder), 'it is a link to a folder that holds it'
                )
                continue
            with os.scandir(folder) as entries:
                for entry in entries:
                    if _select_entry(selection, (*parts, entry.name), entry):
                        waiting.append(((*parts, entry.name), above | {here}))
        except OSError as error:
            selection.add(parts, str(folder), str(folder), error.strerror or str(error))
    return selection


def _select_entry(
    selection: Selection[str], parts: tuple[str, ...], entry: os.DirEntry[str]
) -> bool:
    """Sort in an entry of a folder; return True for a folder to be searched."""
    path, odd = entry.path, None
    try:
        if entry.is_dir():
            return not selection.pass_hidden(parts)
        if not entry.is_file() and ending_of(entry.name) in selection.endings:
            odd = 'it is not a regular file' if os.path.exists(path) else 'it is a broken link'
    except OSError as error:  # such as a link to itself
        odd = error.strerror or str(error)
    selection.add(parts, path, path, odd)
    return False


class FolderOfImages(torch.utils.data.Dataset[tuple[Any]]):
    """The images below a folder as RGB; items are tuples of one.

    Args:
        root: The folder.
        transform: Converts the image of an item.
    """

    def __init__(
        self, root: str | os.PathLike[str], transform: Callable[[Any], Any] | None = None
    ) -> None:
        self.root = Path(root)
        self.transform = transform
        self.paths: Sequence[Path] = find_pictures(root)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Any]:
        with require('PIL.Image', 'train', 'reading pictures').open(
            self.paths[index], formats=readable_formats()
        ) as file:
            picture = file.convert('RGB')
        return (picture if self.transform is None else self.transform(picture),)
