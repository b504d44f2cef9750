"""Writing shards: images or arrays as tar files in the WebDataset layout, with an index."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...core.files import whole_file, write_json
from ...core.names import escape_name
from ..archives import MEMBER_LIMIT
from ..datasets import permutation
from ..folders import select_files
from ..pictures import EXTENSIONS
from .dataset import TEXT_LIMIT
from .listing import INDEX
from .samples import ARRAYS

#: Suffixes of files that belong to the image of the same name.
BESIDE = ('.cls', '.txt', '.json')


@dataclass
class PackResult:
    """The result of packing.

    Attributes:
        folder: The folder of the shards.
        shards: Number of shards.
        samples: Number of samples.
        bytes: Size in bytes.
        class_names: The classes.
        skipped: (name, reason) of files left out.
    """

    folder: Path
    shards: int = 0
    samples: int = 0
    bytes: int = 0
    class_names: list[str] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)


def pack_shards(
    place: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    by_folder: bool = False,
    shuffle: bool = True,
    seed: int = 0,
    samples: int = 10_000,
    size: int = 2**28,
    progress: Callable[[int, int], None] | None = None,
) -> PackResult:
    """Write the images and arrays of a folder as shards.

    The same files and settings give the same bytes. Files are packed unchanged. Files beside an
    image with its name and the suffix .txt, .json or .cls are packed with it.

    Args:
        place: The folder.
        out: The folder for the shards, 000000.tar and so on, and their index.
        by_folder: Use first-level folders as classes; files outside of them are left out.
        shuffle: Take the files in an order drawn from the seed, so that each shard is a mixture;
            otherwise in the order of their names.
        seed: Seed of the order.
        samples: Largest number of samples of a shard.
        size: Approximate largest size of a shard in bytes.
        progress: Called with the number of finished files and the total.

    Raises:
        FileNotFoundError: If there is no such folder.
        FileExistsError: If there are shards in `out` already.
        ValueError: If the folder holds no images or arrays.
    """
    place, out = Path(place), Path(out)
    if (out / INDEX).exists():
        raise FileExistsError(
            f'out must be a folder without shards; got {out}, which has an {INDEX}. '
            'Choose another one, or delete it'
        )
    selection = select_files(place, EXTENSIONS | ARRAYS)
    files = {name: Path(path) for name, path in selection.in_order().items()}
    names = [name for name in files if not by_folder or '/' in name]
    if not names:
        raise ValueError(
            f'place must be a folder with images or arrays{" in folders" if by_folder else ""}; '
            f'got {place}'
        )
    result = PackResult(out, skipped=list(selection.skipped))
    result.skipped += [
        (escape_name(place / name), 'it lies in no class folder')
        for name in files
        if by_folder and '/' not in name
    ]
    if by_folder:
        result.class_names = sorted({name.partition('/')[0] for name in names})
    order = permutation(seed, 0, len(names)).tolist() if shuffle else range(len(names))
    classes = {name: i for i, name in enumerate(result.class_names)}
    out.mkdir(parents=True, exist_ok=True)
    counts = _write_shards(
        _read_samples(files, (names[i] for i in order), classes, result, progress, len(names)),
        result,
        samples,
        size,
    )
    index: dict[str, Any] = {
        '__kind__': 'wids-shard-index-v1',
        'wids_version': 1,
        'name': '',
        'shardlist': counts,
    }
    write_json(out / INDEX, {**index, 'class_names': result.class_names} if by_folder else index)
    return result


def _read_samples(
    files: dict[str, Path],
    names: Iterable[str],
    classes: dict[str, int],
    result: PackResult,
    progress: Callable[[int, int], None] | None,
    total: int,
) -> Iterator[list[tuple[str, bytes]]]:
    """Yield the members of each sample, their names and contents."""
    keys: set[str] = set()
    for count, name in enumerate(names, 1):
        path = files[name]
        key = _unused_key(name.removesuffix(path.suffix), keys)
        try:
            members = [(key + path.suffix.lower(), _contents(path, MEMBER_LIMIT))]
            for ending in BESIDE:
                other = path.with_suffix(ending)
                if other.is_file() and not (classes and ending == '.cls'):
                    members.append((key + ending, _contents(other, TEXT_LIMIT)))
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            result.skipped.append((escape_name(path), reason))
        else:
            if classes:
                members.append((f'{key}.cls', str(classes[name.partition('/')[0]]).encode()))
            yield members
        if progress is not None:
            progress(count, total)


def _unused_key(stem: str, keys: set[str]) -> str:
    """Return an unused key for a name without its suffix, with further dots replaced."""
    folder, slash, base = stem.rpartition('/')
    key = first = folder + slash + (base.replace('.', '_') or '_')
    number = 2
    while key in keys:
        key, number = f'{first}_{number}', number + 1
    keys.add(key)
    return key


def _contents(path: Path, limit: int) -> bytes:
    with open(path, 'rb') as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f'it has more than {limit:,} bytes')
    return data


def _write_shards(
    samples: Iterator[list[tuple[str, bytes]]], result: PackResult, most: int, size: int
) -> list[dict[str, Any]]:
    """Write shards until there are no more samples; return their entries of the index."""
    entries: list[dict[str, Any]] = []
    waiting = next(samples, None)
    while waiting is not None:
        path, count = result.folder / f'{len(entries):06}.tar', 0
        with (
            whole_file(path) as temporary,
            tarfile.open(temporary, 'w', format=tarfile.GNU_FORMAT, encoding='utf-8') as archive,
        ):
            while waiting is not None and count < most and (not count or archive.offset < size):
                for name, data in waiting:
                    archive.addfile(_head(name, len(data)), io.BytesIO(data))
                vars(archive)['members'] = []  # (it would keep them all)
                count, waiting = count + 1, next(samples, None)
        entries.append({'url': path.name, 'nsamples': count, 'filesize': path.stat().st_size})
        result.shards, result.samples = len(entries), result.samples + count
        result.bytes += entries[-1]['filesize']
    return entries


def _head(name: str, size: int) -> tarfile.TarInfo:
    """Return the header of a member, without author and time."""
    head = tarfile.TarInfo(name)
    head.size, head.mtime, head.mode = size, 0, 0o644
    return head
