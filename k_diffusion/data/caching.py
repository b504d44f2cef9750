"""Decoding a data set once: into memory where it is small, into a file mapped into memory where there is room for one."""
from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.files import read_json, whole_file, write_json
from ..core.images import raw_bytes
from .datasets import Dataset, Images
from .pictures import UnreadablePicture
from .threads import map_in_threads

#: The most bytes of pictures that are held in memory.
MEMORY_LIMIT = 2 * 2**30
#: The most bytes, and the largest share of what is free on the disk, that a cache file takes; larger sets are read as they are.
DISK_LIMIT, DISK_SHARE = 32 * 2**30, 0.25

Progress = Callable[[int, int], None]


def decode_once(dataset: Dataset, memory_limit: int = MEMORY_LIMIT, cache_dir: str | os.PathLike[str] | None = None,
                progress: Progress | None = None) -> Dataset:
    """The data set with its pictures decoded, or as it is where that is not wanted.

    That is where it fits neither into memory nor on the disk of its cache folder, and where its pictures may differ from one
    reading to the next.
    Pictures that cannot be read are left out and listed in `.skipped`.
    """
    fingerprint = dataset.fingerprint()
    if isinstance(dataset, Images) or fingerprint is None:
        return dataset
    size = len(dataset) * _bytes_each(dataset)
    if size <= memory_limit:
        return _in_memory(dataset, progress)
    if cache_dir is not None and size <= min(DISK_LIMIT, DISK_SHARE * _free(Path(cache_dir))):
        return _on_disk(dataset, fingerprint, Path(cache_dir), progress)
    return dataset


def _free(folder: Path) -> int:
    """The free bytes of the disk on which a folder is, or is to be."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _bytes_each(dataset: Dataset) -> int:
    channels, height, width = dataset.image_shape
    return channels * height * width


def _in_memory(dataset: Dataset, progress: Progress | None) -> Images:
    images = torch.empty(len(dataset), *dataset.image_shape, dtype=torch.uint8)
    labels: list[int] = []
    count = 0
    for item in _readable(dataset, progress):
        images[count] = item['image']
        labels.append(item.get('class_cond', 0))
        count += 1
    return _decoded(dataset, images[:count], labels)


def _on_disk(dataset: Dataset, fingerprint: str, folder: Path, progress: Progress | None) -> Images:
    """The pictures in one file and what else is known in a second, written last: where it is, the first is whole."""
    key = hashlib.blake2b(repr((fingerprint, dataset.image_shape)).encode(), digest_size=12).hexdigest()
    pictures, facts = folder / f'{key}.uint8', folder / f'{key}.json'
    if not (facts.exists() and pictures.exists()):
        folder.mkdir(parents=True, exist_ok=True)
        labels = []
        with whole_file(pictures) as temporary, open(temporary, 'wb') as file:
            for item in _readable(dataset, progress):
                file.write(raw_bytes(item['image']))
                labels.append(item.get('class_cond', 0))
        write_json(facts, {'labels': labels, 'skipped': dataset.skipped})
    known = read_json(facts.read_text(), str(facts))
    dataset.skipped = [(name, reason) for name, reason in known['skipped']]
    count = len(known['labels'])
    if pictures.stat().st_size != count * _bytes_each(dataset):
        raise ValueError(f'{pictures} is not of the size that {facts.name} beside it tells; delete both, and they are made anew')
    images = torch.from_file(str(pictures), size=count * _bytes_each(dataset), dtype=torch.uint8)
    return _decoded(dataset, images.view(count, *dataset.image_shape), known['labels'])


def _decoded(dataset: Dataset, images: Tensor, labels: list[int]) -> Images:
    result = Images(images, torch.tensor(labels) if dataset.num_classes else None, dataset.class_names, dataset.source)
    result.skipped = dataset.skipped
    return result


def _readable(dataset: Dataset, progress: Progress | None) -> Iterator[dict[str, Any]]:
    """The items that can be read, in order; the others are put on the data set's list."""
    found = 0
    for index, item in enumerate(_in_threads(dataset)):
        if isinstance(item, str):
            dataset.skipped.append((dataset.name(index), item))
        else:
            found += 1
            yield item
        if progress is not None:
            progress(index + 1, len(dataset))
    if not found:
        name, reason = dataset.skipped[-1]
        raise ValueError(f'none of the {len(dataset)} pictures of {dataset.source} can be read (the last, {name}: {reason}); '
                         'are they pictures?')


def _in_threads(dataset: Dataset) -> Iterator[dict[str, Any] | str]:
    """Each item in order, or the reason why it cannot be read (as text: an exception would keep what was decoded so far)."""
    def read(index: int) -> dict[str, Any] | str:
        try:
            return dataset[index]
        except UnreadablePicture as error:
            return str(error)

    return map_in_threads(read, len(dataset), _bytes_each(dataset))
