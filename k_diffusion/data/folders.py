"""Folders of pictures."""
from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch.utils.data

from ..core.extras import require
from ..core.names import escape_name
from .archives import PictureArchive
from .datasets import Dataset
from .opening import DATASETS, LocatedConfig, Request
from .pictures import EXTENSIONS, load_picture


@DATASETS.register('imagefolder')
@dataclass(kw_only=True)
class ImageFolderConfig(LocatedConfig):
    """All pictures below a folder or in a .zip or .tar; with labels "folders", its first-level subfolders, sorted, are the classes."""

    type: Literal['imagefolder'] = 'imagefolder'
    labels: Literal['folders'] | None = None

    def open(self, request: Request) -> Dataset:
        return _pictures(self.place(), request, by_folder=self.labels == 'folders')


@DATASETS.register('imagefolder-class')
@dataclass(kw_only=True)
class ImageFolderClassConfig(LocatedConfig):
    """An "imagefolder" whose labels are its first-level subfolders, under the original's name."""

    type: Literal['imagefolder-class'] = 'imagefolder-class'

    def open(self, request: Request) -> Dataset:
        return _pictures(self.place(), request, by_folder=True)


def _pictures(place: Path, request: Request, by_folder: bool) -> Dataset:
    kind = PictureArchive if place.is_file() else PictureFiles
    return kind(place, request.size, request.channels, by_folder)


class PictureFiles(Dataset):
    """The pictures below a folder, decoded when they are asked for."""

    def __init__(self, root: Path, size: tuple[int, int], channels: int, by_folder: bool = False) -> None:
        self.paths = find_pictures(root)
        outside = [path for path in self.paths if path.parent == root] if by_folder else []
        self.paths = [path for path in self.paths if path.parent != root] if by_folder else self.paths
        if not self.paths:
            where = 'subfolders (each a class)' if by_folder else 'it'
            raise ValueError(f'the folder {root} holds no pictures; in {where} must lie files that end in {", ".join(sorted(EXTENSIONS))}')
        folders = [path.relative_to(root).parts[0] for path in self.paths] if by_folder else []
        super().__init__((channels, *size), sorted(set(folders)))
        self.skipped += [(escape_name(path), 'it lies in no class folder') for path in outside]
        self.root, self.source = root, f'the folder {escape_name(root)}'
        number = {name: i for i, name in enumerate(sorted(set(folders)))}
        self.labels = [number[folder] for folder in folders]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        channels, *size = self.image_shape
        item: dict[str, Any] = {'image': load_picture(self.paths[index], (size[0], size[1]), channels)}
        return item | {'class_cond': self.labels[index]} if self.labels else item

    def name(self, index: int) -> str:
        return escape_name(self.paths[index])

    def fingerprint(self) -> str:
        """Of the files' names, sizes and times of change."""
        state = hashlib.blake2b(os.fsencode(f'{self.root.absolute()}\0{self.num_classes}'), digest_size=16)
        for path in self.paths:
            facts = path.stat()
            state.update(os.fsencode(path.relative_to(self.root)) + f'\0{facts.st_size}\0{facts.st_mtime_ns}\0'.encode())
        return state.hexdigest()


def find_pictures(root: str | os.PathLike[str]) -> list[Path]:
    """The picture files below a folder, told by their endings, sorted; links to folders are followed, but in no circle."""
    if not Path(root).is_dir():
        raise FileNotFoundError(f'there is no folder {root}; set dataset.location to the folder that holds the pictures')
    return sorted(path for path in _files(os.fspath(root), frozenset()) if path.suffix.lower() in EXTENSIONS)


def _files(folder: str, above: frozenset[tuple[int, int]]) -> Iterator[Path]:
    facts = os.stat(folder)
    if (facts.st_dev, facts.st_ino) in above:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                yield from _files(entry.path, above | {(facts.st_dev, facts.st_ino)})
            elif entry.is_file():
                yield Path(entry.path)


class FolderOfImages(torch.utils.data.Dataset[tuple[Any]]):
    """The pictures below a folder as RGB: items are tuples of one, the picture or what `transform` makes of it."""

    def __init__(self, root: str | os.PathLike[str], transform: Callable[[Any], Any] | None = None) -> None:
        self.root = Path(root)
        self.transform = transform
        self.paths: Sequence[Path] = find_pictures(root)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Any]:
        with require('PIL.Image', 'train', 'reading pictures').open(self.paths[index]) as file:
            picture = file.convert('RGB')
        return (picture if self.transform is None else self.transform(picture),)
