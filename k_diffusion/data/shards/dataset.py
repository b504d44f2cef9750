"""Data sets of tar shards: `"type": "shards"` of a config."""

from __future__ import annotations

import hashlib
import io
import os
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import IO, Any, Literal

from torch import Tensor

from ...core.files import read_json
from ...core.names import escape_name
from ...core.remote import is_url
from ..archives import MEMBER_LIMIT, Member, read_exactly
from ..datasets import Dataset
from ..opening import DATASETS, PictureConfig, Request
from ..pictures import UnreadablePicture, load_picture
from .arrays import MAGIC, read_array
from .counting import count_samples
from .listing import Listing, list_shards
from .order import ShardOrder
from .samples import Parts, Sample, Table, read_table
from .store import COPIES_LIMIT, ShardStore

#: Size limit of a class, a text or a .json in bytes.
TEXT_LIMIT = 2**20
#: Limits of the open tables, in samples (one is kept in any case), and of open shards.
TABLES_LIMIT, OPEN_LIMIT = 2**16, 64


@DATASETS.register('shards')
@dataclass(kw_only=True)
class ShardsConfig(PictureConfig):
    """Tar shards in the WebDataset layout, read on demand.

    Attributes:
        location: A folder, an index.json, paths or URLs, with globs and brace patterns, or a list
            of these.
        text_key: The extension of a sample's text.
        window: The number of consecutive samples of the shuffled shards that are mixed.
        copies: The disk limit for copies of shards at URLs, in GiB.
    """

    type: Literal['shards'] = 'shards'
    location: str | list[str] = ''  # type: ignore[assignment]
    image_key: str | None = None  # type: ignore[assignment]
    class_key: str = 'cls'
    text_key: str = 'txt'
    window: int = 8192
    copies: float = COPIES_LIMIT / 2**30

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window < 1:
            raise ValueError(
                f'window must be at least 1 (1: samples are not mixed); got {self.window}'
            )
        if not self.copies > 0:
            raise ValueError(f'copies must be above 0, in GiB; got {self.copies}')

    def check_shape(self, size: tuple[int, ...], channels: int) -> None:
        """Accept any shape: arrays keep theirs, and images are checked when they are read.

        Args:
            size: The size of the items.
            channels: The number of channels.
        """

    def open(self, request: Request) -> Dataset:
        """Open the shards, and count the samples of shards without an index.

        Args:
            request: Size, channels and folders.

        Raises:
            ValueError: If the location is missing.
        """
        if not self.location:
            raise ValueError(
                "dataset.location is missing; the dataset type 'shards' needs it to find its shards"
            )
        listing = list_shards(self.location)
        folder = None if request.cache_dir is None else request.cache_dir / 'shards'
        store = ShardStore(folder, int(self.copies * 2**30))
        parts = Parts(self.image_key, self.class_key, self.text_key)
        listing, damaged = count_samples(listing, store, parts, folder)
        dataset = ShardedSamples(listing, parts, store, self, request)
        dataset.skipped += [
            (escape_name(url), f'it is damaged: {escape_name(fault)}') for url, fault in damaged
        ]
        return dataset


class ShardedSamples(Dataset):
    """The samples of tar shards, numbered shard by shard and read on demand.

    The order of an epoch is that of `ShardOrder`. Tables of the shards in use are kept, up to
    TABLES_LIMIT samples; contents are not.

    Args:
        listing: The shards with their counts.
        parts: The members that are read of each sample.
        store: Opens the shards.
        section: The dataset section.
        request: Size, channels and folders.
    """

    streams = True

    def __init__(
        self,
        listing: Listing,
        parts: Parts,
        store: ShardStore,
        section: ShardsConfig,
        request: Request,
    ) -> None:
        names = listing.class_names or [str(i) for i in range(section.num_classes)]
        super().__init__((request.channels, *request.sides), names)
        self.shards, self.parts, self.store, self.section = listing.shards, parts, store, section
        counts = [shard.samples or 0 for shard in self.shards]
        more = f' and {len(self.shards) - 1:,} more shards' if len(self.shards) > 1 else ''
        self.source = f'{escape_name(self.shards[0].url)}{more}'
        self.places = ShardOrder(counts, section.window)
        if not len(self):
            raise ValueError(
                f'{self.source} hold no samples; they must be uncompressed .tar files with '
                'pictures in them'
            )
        self.reopen()

    def reopen(self) -> None:
        """Start without open files and tables."""
        self._tables: OrderedDict[int, Table] = OrderedDict()
        self._files: OrderedDict[int, IO[bytes]] = OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {
            key: value
            for key, value in vars(self).items()
            if key not in ('_tables', '_files', '_lock')
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.reopen()

    def __len__(self) -> int:
        return self.places.total

    def __getitem__(self, index: int) -> dict[str, Any]:
        shard, number = self.places.locate(index)
        sample = self._sample(shard, number)
        if 'image' not in sample.parts:
            raise UnreadablePicture('the sample holds no picture or array')
        item: dict[str, Any] = {
            'image': self._image(self._read(shard, sample.parts['image'], MEMBER_LIMIT))
        }
        if self.num_classes:
            item['class_cond'] = self._label(shard, sample, index)
        return item | {'text': self._text(shard, sample) or ''}

    def order(self, seed: int, epoch: int, first: int, count: int) -> Tensor:
        """Return the samples at positions of an epoch, and fetch the next shards of URLs meanwhile.

        Args:
            seed: Seed of the order.
            epoch: The epoch.
            first: The first position.
            count: The number of positions.
        """
        if any(is_url(shard.url) for shard in self.shards):
            self.store.expect(
                [self.shards[i].url for i in self.places.shards_ahead(seed, epoch, first)]
            )
        return self.places.indices(seed, epoch, first, count)

    def next_index(self, index: int) -> int:
        """Return the sample to read instead of an unreadable one.

        It is the next sample of the shard; after its last readable one its first; for a shard
        without any,
        the first of the next shard.

        Args:
            index: The number of the unreadable sample.
        """
        shard, number = self.places.locate(index)
        start, there = int(self.places.starts[shard]), len(self._table(shard).samples)
        count = min(there, self.shards[shard].samples or 0)
        return (
            start + (number + 1) % count
            if count
            else int(self.places.starts[shard + 1]) % len(self)
        )

    @property
    def has_texts(self) -> bool:  # type: ignore[override]
        """True if the first sample has a text."""
        shard, number = self.places.locate(0)
        return self._text(shard, self._sample(shard, number)) is not None

    def name(self, index: int) -> str:
        """Return the shard and the key of a sample.

        Args:
            index: Its number.
        """
        shard, number = self.places.locate(index)
        samples = self._table(shard).samples
        key = samples[number].key if number < len(samples) else f'sample {number}'
        return escape_name(f'{self.shards[shard].url}: {key}')

    def fingerprint(self) -> str:
        """Return a digest of the shards' names and counts and of the settings for members."""
        text = repr(
            (
                [tuple(shard) for shard in self.shards],
                tuple(self.parts),
                self.image_shape,
                self.section.grey_range,
            )
        )
        return hashlib.blake2b(os.fsencode(text), digest_size=16).hexdigest()

    def _sample(self, shard: int, number: int) -> Sample:
        table = self._table(shard)
        if number >= len(table.samples):
            raise UnreadablePicture(
                f'the shard has {len(table.samples):,} of {self.shards[shard].samples:,} samples'
                + (f' ({escape_name(table.fault)})' if table.fault else '')
            )
        return table.samples[number]

    def _table(self, shard: int) -> Table:
        with self._lock:
            if shard not in self._tables:
                file = self._file(shard)
                self._tables[shard] = read_table(file, self.parts)
                while (
                    len(self._tables) > 1
                    and sum(len(t.samples) for t in self._tables.values()) > TABLES_LIMIT
                ):
                    self._tables.popitem(last=False)
            self._tables.move_to_end(shard)
            return self._tables[shard]

    def _file(self, shard: int) -> IO[bytes]:
        """Return the open file of a shard; the caller must hold the lock."""
        if shard not in self._files:
            self._files[shard] = self.store.open(self.shards[shard].url)
            if len(self._files) > OPEN_LIMIT:
                self._files.popitem(last=False)[1].close()
        self._files.move_to_end(shard)
        return self._files[shard]

    def _read(self, shard: int, member: Member, limit: int) -> bytearray:
        if member.size > limit:
            raise UnreadablePicture(f'it has {member.size:,} bytes, more than {limit:,}')
        with self._lock:
            file = self._file(shard)
            try:
                file.seek(member.offset)
                return read_exactly(file, member.size, more=True)
            except (OSError, ValueError) as error:
                reason = str(error)
        raise UnreadablePicture(
            f'the shard is damaged there ({reason})'
        )  # a chained error would keep the read data alive

    def _image(self, data: bytearray) -> Tensor:
        if data[: len(MAGIC)] == MAGIC:
            return read_array(data, self.image_shape)
        channels, *size = self.image_shape
        return load_picture(
            io.BytesIO(data), (size[0], size[1]), channels, grey_range=self.section.grey_range
        )

    def _label(self, shard: int, sample: Sample, index: int) -> int:
        label = self._part(shard, sample, 'label', self.parts.label)
        if isinstance(label, str) and label.strip() in self.class_names:
            return self.class_names.index(label.strip())
        return self.checked_class(label, index)

    def _text(self, shard: int, sample: Sample) -> str | None:
        text = self._part(shard, sample, 'text', self.parts.text)
        return None if text is None else str(text).strip()

    def _part(self, shard: int, sample: Sample, kind: str, key: str) -> Any:
        """Return the text of a member, or the .json entry of a key json.NAME; None if missing."""
        entry = key.partition('.')[2] if key.startswith('json.') else None
        member = sample.parts.get(kind if entry is None else 'json')
        if member is None:
            return None
        data = self._read(shard, member, TEXT_LIMIT)
        try:
            text = str(data, 'utf-8')
            value = text if entry is None else read_json(text, 'its .json')
        except ValueError as error:
            reason = str(error)
        else:
            return value if entry is None else value.get(entry) if isinstance(value, dict) else None
        raise UnreadablePicture(f'its {kind} cannot be read ({reason})')
