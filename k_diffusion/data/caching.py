"""Decoding a data set once: into memory, or into a memory-mapped file."""

from __future__ import annotations

import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.images import raw_bytes
from ..core.names import escape_name
from .cache_files import CacheFiles, Facts
from .datasets import Dataset, Images
from .pictures import UnreadablePicture
from .selection import PictureSet
from .threads import map_ranges_in_threads

#: Largest size in bytes of images held in memory.
MEMORY_LIMIT = 2 * 2**30
#: Largest size in bytes of a cache file, and largest share of the free disk space; larger sets are
#: read from their source.
DISK_LIMIT, DISK_SHARE = 32 * 2**30, 0.25

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class DecodedPictures:
    """The images of a folder or archive that were decoded before.

    Attributes:
        files: The folder or archive.
        images: Its readable images, uint8 [N, C, H, W].
        indices: Their indices in the folder or archive.
        unreadable: The reasons for the others by index.
    """

    files: PictureSet[Any]
    images: Tensor
    indices: list[int]
    unreadable: dict[int, str]

    def fits(self, dataset: Dataset) -> bool:
        """Return True if a data set has the same images.

        Args:
            dataset: The data set.
        """
        return isinstance(dataset, PictureSet) and all(
            getattr(dataset, name) == getattr(self.files, name)
            for name in ('place', 'names', 'image_shape', 'grey_range')
        )

    def open(self, dataset: PictureSet[Any]) -> Images:
        """Return the images with the classes of a data set that they fit.

        Args:
            dataset: The data set.
        """
        dataset.skipped += [(dataset.name(i), why) for i, why in self.unreadable.items()]
        labels = [dataset.labels[i] for i in self.indices] if dataset.labels else []
        return _make_images(dataset, self.images, labels, self.indices)


def decode_once(
    dataset: Dataset,
    memory_limit: int = MEMORY_LIMIT,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    decoded: DecodedPictures | None = None,
) -> Dataset:
    """Return the data set with decoded images, or unchanged where that is impossible.

    It is unchanged if it fits neither into memory nor on the disk of the cache, if its images may
    differ between readings, or if it is a stream. Images that cannot be read are left out and
    listed in `.skipped`.

    Args:
        dataset: The data set.
        memory_limit: Largest size in bytes held in memory.
        cache_dir: The folder of the cache file.
        progress: Called with the number of decoded images and the total.
        decoded: Images that were decoded before, which are used if they are those of the data set.
    """
    if decoded is not None and isinstance(dataset, PictureSet) and decoded.fits(dataset):
        return decoded.open(dataset)
    fingerprint = dataset.fingerprint()
    if isinstance(dataset, Images) or fingerprint is None or dataset.streams:
        return dataset
    size = len(dataset) * _bytes_each(dataset)
    if size <= memory_limit:
        return _in_memory(dataset, progress)
    if cache_dir is None:
        return dataset
    cache = CacheFiles(Path(cache_dir), fingerprint, dataset.source, dataset.image_shape)
    if cache.facts(len(dataset)) is not None or size <= min(
        DISK_LIMIT, DISK_SHARE * _free(Path(cache_dir))
    ):
        return _on_disk(dataset, cache, progress)
    return dataset


def _free(folder: Path) -> int:
    """Return the free bytes on the disk of a folder, which need not exist."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _bytes_each(dataset: Dataset) -> int:
    channels, height, width = dataset.image_shape
    return channels * height * width


def _in_memory(dataset: Dataset, progress: Progress | None) -> Images:
    images = torch.empty(len(dataset), *dataset.image_shape, dtype=torch.uint8)
    indices: list[int] = []
    labels: list[int] = []
    for index, item in _readable(dataset, progress):
        images[len(indices)] = item['image']
        indices.append(index)
        labels.append(item.get('class_cond', 0))
    return _make_images(dataset, images[: len(indices)], labels, indices)


def _on_disk(dataset: Dataset, cache: CacheFiles, progress: Progress | None) -> Images:
    facts = cache.facts(len(dataset))
    if facts is None:
        if cache.path.exists():
            dataset.notes.append(
                f'{escape_name(cache.path)} or its images were damaged; all images are '
                'decoded again'
            )
        facts = _write(dataset, cache, progress)
    else:
        dataset.skipped = list(facts.skipped)
        damaged = cache.damaged_blocks(facts)
        if damaged and _mend(dataset, cache, facts, damaged):
            dataset.notes.append(
                f'{len(damaged)} of {len(facts.checksums)} blocks of '
                f'{escape_name(cache.pictures)} were damaged; '
                'their images were decoded again'
            )
        elif damaged:
            dataset.notes.append(
                f'{escape_name(cache.pictures)} was damaged; all images are decoded again'
            )
            dataset.skipped = list(facts.found_before)
            facts = _write(dataset, cache, progress)
    cache.remove_older()
    count = len(facts.kept)
    images = torch.from_file(
        str(cache.pictures), size=count * cache.picture_bytes, dtype=torch.uint8
    )
    return _make_images(dataset, images.view(count, *dataset.image_shape), facts.labels, facts.kept)


def _write(dataset: Dataset, cache: CacheFiles, progress: Progress | None) -> Facts:
    before = list(dataset.skipped)
    indices: list[int] = []
    labels: list[int] = []
    checksums: list[int] = []
    with cache.new_pictures() as file:
        for index, item in _readable(dataset, progress):
            data = raw_bytes(item['image'])
            file.write(data)
            if len(indices) % cache.block == 0:
                checksums.append(0)
            checksums[-1] = zlib.crc32(data, checksums[-1])
            indices.append(index)
            labels.append(item.get('class_cond', 0))
    facts = Facts(cache.owner, labels, indices, dataset.skipped, before, cache.block, checksums)
    cache.write_facts(facts)
    return facts


def _mend(dataset: Dataset, cache: CacheFiles, facts: Facts, damaged: list[int]) -> bool:
    """Decode the images of damaged blocks again; return False if they have changed."""
    for number in damaged:
        data = bytearray()
        for index in facts.kept[number * facts.block : (number + 1) * facts.block]:
            try:
                data += raw_bytes(dataset[index]['image'])
            except UnreadablePicture:
                return False
        if zlib.crc32(data) != facts.checksums[number]:
            return False
        cache.replace_block(number, data)
    return True


def _make_images(dataset: Dataset, images: Tensor, labels: list[int], indices: list[int]) -> Images:
    result = Images(
        images,
        torch.tensor(labels) if dataset.num_classes else None,
        dataset.class_names,
        dataset.source,
    )
    result.skipped, result.notes = dataset.skipped, dataset.notes
    names = dataset.item_names()
    result.names = None if names is None else [names[index] for index in indices]
    return result


def _readable(dataset: Dataset, progress: Progress | None) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the readable items in order with their indices; list the others in the data set."""
    count = 0
    items = map_ranges_in_threads(dataset.read_several, len(dataset), _bytes_each(dataset))
    for index, item in enumerate(items):
        if isinstance(item, str):
            dataset.skipped.append((dataset.name(index), item))
        else:
            count += 1
            yield index, item
        if progress is not None:
            progress(index + 1, len(dataset))
    if not count:
        name, reason = dataset.skipped[-1]
        raise ValueError(
            f'none of the {len(dataset)} images of {dataset.source} can be read (the last, '
            f'{name}: {reason}); check that they are images'
        )
