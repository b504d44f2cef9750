"""Folders of pictures."""

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
from .selection import PictureSet, Selection


@DATASETS.register('imagefolder')
@dataclass(kw_only=True)
class ImageFolderConfig(PictureConfig):
    """All pictures below a folder or in a .zip or .tar; with labels "folders", its first-level
    subfolders, sorted, are the classes.
    """

    type: Literal['imagefolder'] = 'imagefolder'
    labels: Literal['folders'] | None = None

    def open(self, request: Request) -> Dataset:
        return _pictures(self.place(), request, self.labels == 'folders', self.grey_range)


@DATASETS.register('imagefolder-class')
@dataclass(kw_only=True)
class ImageFolderClassConfig(PictureConfig):
    """An "imagefolder" whose labels are its first-level subfolders, under the original's name."""

    type: Literal['imagefolder-class'] = 'imagefolder-class'

    def open(self, request: Request) -> Dataset:
        return _pictures(self.place(), request, True, self.grey_range)


def _pictures(
    place: Path, request: Request, by_folder: bool, grey_range: tuple[float, float] | None
) -> Dataset:
    kind = PictureArchive if place.is_file() else PictureFiles
    return kind(place, request.size, request.channels, by_folder, grey_range)


class PictureFiles(PictureSet[Path]):
    """The pictures below a folder."""

    def __init__(
        self,
        root: Path,
        size: tuple[int, int],
        channels: int,
        by_folder: bool = False,
        grey_range: tuple[float, float] | None = None,
    ) -> None:
        found = select_files(root)
        super().__init__(
            root,
            f'the folder {escape_name(root)}',
            found,
            found.in_order(),
            size,
            channels,
            by_folder,
            grey_range,
        )

    def open(self, index: int) -> AbstractContextManager[Path]:
        return nullcontext(self.files[index])

    def shown(self, name: str) -> str:
        return escape_name(self.place / name)

    def fingerprint(self) -> str:
        """Of the files' names, sizes and times of change; a file that is gone meanwhile counts
        as gone.
        """
        state = hashlib.blake2b(os.fsencode(self.rules()), digest_size=16)
        for name, path in zip(self.names, self.files):
            try:
                facts = path.stat()
                text = f'{facts.st_size}\0{facts.st_mtime_ns}'
            except OSError:
                text = 'gone'
            state.update(os.fsencode(f'{name}\0{text}\0'))
        return state.hexdigest()


def find_pictures(root: str | os.PathLike[str]) -> list[Path]:
    """The pictures below a folder by the rules of `selection`, sorted; links to folders are
    followed, but in no circle.
    """
    return list(select_files(root).in_order().values())


def select_files(root: str | os.PathLike[str], endings: Set[str] = EXTENSIONS) -> Selection[Path]:
    """Look through a folder and all folders in it; what cannot be looked into is skipped.

    Args:
        root: The folder.
        endings: The endings, in lower case, of the files that count.

    Raises:
        FileNotFoundError: There is no such folder.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(
            f'there is no folder {root}; set dataset.location to the folder that holds the pictures'
        )
    found: Selection[Path] = Selection(endings=endings)
    waiting: list[tuple[tuple[str, ...], frozenset[tuple[int, int]]]] = [((), frozenset())]
    while waiting:
        parts, above = waiting.pop()
        folder = root.joinpath(*parts)
        try:
            facts = os.stat(folder)
            here = (facts.st_dev, facts.st_ino)
            if here in above:
                found.add(parts, folder, str(folder), 'it is a link to a folder that holds it')
                continue
            with os.scandir(folder) as entries:
                for entry in entries:
                    if _select_entry(found, (*parts, entry.name), entry):
                        waiting.append(((*parts, entry.name), above | {here}))
        except OSError as error:
            found.add(parts, folder, str(folder), error.strerror or str(error))
    return found


def _select_entry(found: Selection[Path], parts: tuple[str, ...], entry: os.DirEntry[str]) -> bool:
    """Put an entry of a folder where it belongs; True for a folder that is to be looked through."""
    path, odd = Path(entry.path), None
    try:
        if entry.is_dir():
            return not found.pass_hidden(parts)
        if not entry.is_file() and path.suffix.lower() in found.endings:
            odd = 'it is no regular file' if path.exists() else 'it is a link to nothing'
    except OSError as error:  # (a link to itself)
        odd = error.strerror or str(error)
    found.add(parts, path, str(path), odd)
    return False


class FolderOfImages(torch.utils.data.Dataset[tuple[Any]]):
    """The pictures below a folder as RGB: items are tuples of one, the picture or what
    `transform` makes of it.
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
