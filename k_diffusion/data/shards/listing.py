"""List the shards of a data set: paths, URLs, brace patterns, globs, folders and indices.

An index is the file `index.json` in the format of the wids package: {"shardlist": [{"url": name,
"nsamples": count}, ...]}, with names relative to it. With the counts no shard is read before it is
needed.
"""

from __future__ import annotations

import glob
import itertools
import posixpath
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from ...core.files import read_json
from ...core.names import escape_name
from ...core.remote import file_system, is_url

INDEX = 'index.json'
#: Size limit of an index in bytes, and the limit for the shards of a data set.
INDEX_LIMIT, SHARD_LIMIT = 2**28, 2**20
_RANGE = re.compile(r'(\d+)\.\.(\d+)')


class Shard(NamedTuple):
    """A shard: its path or URL, and its number of samples if an index states it."""

    url: str
    samples: int | None = None


class Listing(NamedTuple):
    """The shards of a data set, and the names of their classes if an index has them."""

    shards: list[Shard]
    class_names: list[str]


def list_shards(location: str | list[str]) -> Listing:
    """Return the shards of a location in its order, those of a folder or glob sorted by name.

    Args:
        location: Paths, URLs, patterns, a folder or an index; or a list of them.

    Raises:
        FileNotFoundError: If there are none.
        ValueError: If an index cannot be read, or there are too many.
    """
    locations = [location] if isinstance(location, str) else location
    shards: list[Shard] = []
    names: list[str] = []
    for place in itertools.chain.from_iterable(map(expand_braces, locations)):
        place_shards, found_names = _list_place(
            place if is_url(place) else str(Path(place).expanduser())
        )
        shards += place_shards
        names = names or found_names
        if len(shards) > SHARD_LIMIT:
            raise ValueError(f'dataset.location must name at most {SHARD_LIMIT:,} shards; got more')
    if not shards:
        raise FileNotFoundError(
            f'dataset.location names no shards (.tar): {escape_name(str(location))}'
        )
    return Listing(_count_missing(shards), names)


def expand_braces(pattern: str) -> list[str]:
    """Return the texts of a brace pattern.

    a{0..2} is a0, a1, a2; a{00..10} keeps the zeros; a{x,y} is ax, ay.

    Args:
        pattern: The pattern.

    Raises:
        ValueError: If there are too many.
    """
    match = re.search(r'\{([^{}]*)\}', pattern)
    if match is None:
        return [pattern]
    middle, numbers = match[1], _RANGE.fullmatch(match[1])
    if numbers:
        low, high = int(numbers[1]), int(numbers[2])
        if not 0 <= high - low < SHARD_LIMIT:
            raise ValueError(
                f'dataset.location must have ranges {{low..high}} of at most {SHARD_LIMIT:,}; got '
                f'{{{middle}}}'
            )
        width = len(numbers[1]) if numbers[1].startswith('0') else 0
        options: Iterable[str] = [f'{number:0{width}}' for number in range(low, high + 1)]
    elif ',' in middle:
        options = middle.split(',')
    else:
        return [pattern]
    tails = expand_braces(pattern[match.end() :])
    options = list(options)
    if len(options) * len(tails) > SHARD_LIMIT:
        raise ValueError(f'dataset.location must name at most {SHARD_LIMIT:,} shards; got more')
    heads = [pattern[: match.start()] + option for option in options]
    return [text for head in heads for tail in tails for text in expand_braces(head + tail)]


def _list_place(place: str) -> tuple[list[Shard], list[str]]:
    """Return the shards and the class names of one path or URL."""
    if place.endswith('.json'):
        return _read_index(place)
    if place.endswith('/') or (not is_url(place) and Path(place).is_dir()):
        folder = place.rstrip('/')
        if _exists(f'{folder}/{INDEX}'):
            return _read_index(f'{folder}/{INDEX}')
        place = f'{folder if is_url(folder) else glob.escape(folder)}/*.tar'
    if not re.search(r'[*?\[]', place):
        return [Shard(place)], []
    if not is_url(place):
        return [Shard(path) for path in sorted(glob.glob(place))], []
    system, path = file_system(place, 'dataset.location')
    return [Shard(system.unstrip_protocol(name)) for name in sorted(system.glob(path))], []


def _count_missing(shards: list[Shard]) -> list[Shard]:
    """Return the shards with the counts of the indices in their folders, if any."""
    missing = {posixpath.dirname(shard.url) for shard in shards if shard.samples is None}
    counts: dict[str, int | None] = {}
    for folder in sorted(missing):
        index = posixpath.join(folder, INDEX)
        if _exists(index):
            counts.update({shard.url: shard.samples for shard in _read_index(index)[0]})
    return [
        shard if shard.samples is not None else Shard(shard.url, counts.get(shard.url))
        for shard in shards
    ]


def _exists(place: str) -> bool:
    if not is_url(place):
        return Path(place).is_file()
    system, path = file_system(place, 'dataset.location')
    return bool(system.isfile(path))


def _read_index(place: str) -> tuple[list[Shard], list[str]]:
    name = escape_name(place)
    if not _exists(place):
        raise FileNotFoundError(f'dataset.location names the index {name}, which does not exist')
    content = read_json(_contents(place), name)
    try:
        entries = [(entry['url'], entry['nsamples']) for entry in content['shardlist']]
        names = list(content.get('class_names') or [])
        whole = all(
            isinstance(url, str) and type(n) is int and 0 <= n < 2**40 for url, n in entries
        )
    except (TypeError, KeyError, AttributeError):
        whole, entries, names = False, [], []
    if not whole or not all(isinstance(text, str) for text in names) or len(entries) > SHARD_LIMIT:
        raise ValueError(
            f'{name} must be {{"shardlist": [{{"url": NAME, "nsamples": COUNT}}, ...]}} with at '
            'most '
            f'{SHARD_LIMIT:,} shards; write it again with k-diffusion dataset pack'
        )
    for url, _ in entries:
        if (
            is_url(url)
            or '::' in url
            or url.startswith(('/', '~'))
            or '..' in re.split(r'[/\\]', url)
            or ':' in url[:3]
        ):
            raise ValueError(
                f'{name} must name shards below its own folder; got {escape_name(url)}'
            )
    return [Shard(posixpath.join(posixpath.dirname(place), url), n) for url, n in entries], names


def _contents(place: str) -> str:
    if is_url(place):
        system, path = file_system(place, 'dataset.location')
        with system.open(path, 'rb') as file:
            data = file.read(INDEX_LIMIT + 1)
    else:
        with open(place, 'rb') as file:
            data = file.read(INDEX_LIMIT + 1)
    if len(data) > INDEX_LIMIT:
        raise ValueError(
            f'{escape_name(place)} has more than {INDEX_LIMIT:,} bytes, the limit for an index'
        )
    try:
        return str(data, 'utf-8')
    except UnicodeDecodeError:
        raise ValueError(f'{escape_name(place)} is not UTF-8 text') from None
