"""Count the samples of shards without an index: their headers are read once, the counts cached."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

from ...core.files import MALFORMED, read_json_file, write_json
from ...core.remote import file_system, is_url, state_of
from ..threads import map_in_threads
from .listing import Listing, Shard
from .samples import Parts, read_table
from .store import ShardStore

#: The cached facts of a shard: its size and modification time, the number of samples, and the fault
#: that ended reading it.
ShardFacts = tuple[str, int, str | None]


def count_samples(
    listing: Listing, store: ShardStore, parts: Parts, folder: Path | None
) -> tuple[Listing, list[tuple[str, str]]]:
    """Return a listing with counts for all shards, and the damaged shards with reasons.

    Args:
        listing: The shards.
        store: Opens them.
        parts: The members that are read of each sample.
        folder: The folder of the cache; None caches nothing.

    Raises:
        OSError: If a shard cannot be read.
    """
    missing = [shard.url for shard in listing.shards if shard.samples is None]
    if not missing:
        return listing, []
    digest = hashlib.blake2b(
        '\0'.join(missing).encode('utf-8', 'surrogatepass'), digest_size=12
    ).hexdigest()
    path = None if folder is None else folder / f'counts-{digest}.json'
    before = {} if path is None else _read(path)

    def count(number: int) -> ShardFacts:
        url = missing[number]
        state = _state(url)
        if url in before and before[url][0] == state:
            return before[url]
        with store.open(url) as file:
            table = read_table(file, parts)
        return state, len(table.samples), table.fault

    counts = dict(zip(missing, map_in_threads(count, len(missing), 1)))
    if path is not None and counts != before:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {url: list(values) for url, values in counts.items()})
    shards = [
        shard if shard.samples is not None else Shard(shard.url, counts[shard.url][1])
        for shard in listing.shards
    ]
    return listing._replace(shards=shards), [
        (url, fault) for url, (_, _, fault) in counts.items() if fault is not None
    ]


def _read(path: Path) -> dict[str, ShardFacts]:
    with contextlib.suppress(*MALFORMED):
        return {
            url: (str(state), int(n), None if fault is None else str(fault))
            for url, (state, n, fault) in read_json_file(path).items()
        }
    return {}


def _state(url: str) -> str:
    """Return a text that changes when a shard changes.

    It is '' where that is unknown; a missing shard is reported when it is opened.
    """
    with contextlib.suppress(Exception):  # each file system of fsspec has its own errors
        if not is_url(url):
            facts = Path(url).stat()
            return f'{facts.st_size} {facts.st_mtime_ns}'
        return state_of(*file_system(url, 'dataset.location'))
    return ''
