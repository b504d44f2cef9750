"""What lies in a shard: the members of an uncompressed .tar that share a name up to the first dot
are one sample.

So it is in the WebDataset layout: `cats/07.png`, `cats/07.cls`, `cats/07.txt`, one after the other.
A table says where each wanted part begins and how many bytes it has; contents are read when they
are asked for.
"""

from __future__ import annotations

import posixpath
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, NamedTuple

from ..archives import Member, list_tar
from ..pictures import EXTENSIONS

#: The endings of arrays.
ARRAYS = frozenset(('.npy',))


class Parts(NamedTuple):
    """Which member of a sample is its picture, its class and its text: by ending, or `json.KEY` for
    an entry of its .json.

    image None: the first member that has the ending of a picture or an array.
    """

    image: str | None
    label: str
    text: str

    def kinds(self, ending: str) -> Iterator[str]:
        """Yield what a member of this ending is of a sample."""
        last = '.' + ending.rpartition('.')[2]
        if ending == self.image or (self.image is None and (last in EXTENSIONS or last in ARRAYS)):
            yield 'image'
        if ending == self.label:
            yield 'label'
        if ending == self.text:
            yield 'text'
        if ending == 'json' and any(part.startswith('json.') for part in (self.label, self.text)):
            yield 'json'


class Sample(NamedTuple):
    """A sample: its key, and where its parts lie (the member, by 'image', 'label', 'text' and
    'json').
    """

    key: str
    parts: Mapping[str, Member]


class Table(NamedTuple):
    """The samples of a shard, and why it could not be read to its end where that is so."""

    samples: Sequence[Sample]
    fault: str | None


def split_name(name: str) -> tuple[str, str]:
    """Return the key and the ending (in lower case) of a member: 'a.b/c.seg.PNG' is 'a.b/c' and
    'seg.png'.
    """
    folder, base = posixpath.split(name)
    stem, _, ending = base.partition('.')
    return posixpath.join(folder, stem), ending.lower()


def read_table(file: IO[bytes], parts: Parts) -> Table:
    """Look through the heads of a shard; what follows damage is left out."""
    samples: list[Sample] = []
    key: str | None = None
    found: dict[str, Member] = {}
    try:
        for member, odd in list_tar(file):
            stem, ending = split_name(member.name)
            if odd is not None or not ending or stem.rpartition('/')[2] == '':
                continue
            if stem != key:
                key, found = stem, {}
                samples.append(Sample(stem, found))
            for kind in parts.kinds(ending):
                found.setdefault(kind, Member('', member.size, member.offset))
    except (tarfile.TarError, OSError, EOFError, ValueError, RecursionError) as error:
        return Table(samples[:-1], str(error))  # (of the last one parts may be missing)
    return Table(samples, None)
