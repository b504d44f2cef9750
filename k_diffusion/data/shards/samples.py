"""The samples of a shard: members of a .tar with the same name up to the first dot.

This is the WebDataset layout: `cats/07.png`, `cats/07.cls`, `cats/07.txt`, one after the other. A
table states where each required part begins and its size; contents are read on request.
"""

from __future__ import annotations

import posixpath
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, NamedTuple

from ..archives import Member, list_tar
from ..pictures import EXTENSIONS

#: The suffixes of arrays.
ARRAYS = frozenset(('.npy',))


class Parts(NamedTuple):
    """The members of a sample that are its image, class and text.

    Each is a suffix, or `json.KEY` for an entry of its .json.

    Attributes:
        image: None for the first member with the suffix of an image or an array.
        label: The class.
        text: The text.
    """

    image: str | None
    label: str
    text: str

    def kinds(self, ending: str) -> Iterator[str]:
        """Yield the uses of a member with a suffix.

        Args:
            ending: The suffix.
        """
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
    """A sample.

    Attributes:
        key: Its name.
        parts: The members by use: 'image', 'label', 'text' and 'json'.
    """

    key: str
    parts: Mapping[str, Member]


class Table(NamedTuple):
    """The samples of a shard, and the reason if it could not be read to its end."""

    samples: Sequence[Sample]
    fault: str | None


def split_name(name: str) -> tuple[str, str]:
    """Return the key and the suffix (in lower case) of a member.

    'a.b/c.seg.PNG' gives 'a.b/c' and 'seg.png'.

    Args:
        name: The name of the member.
    """
    folder, base = posixpath.split(name)
    stem, _, ending = base.partition('.')
    return posixpath.join(folder, stem), ending.lower()


def read_table(file: IO[bytes], parts: Parts) -> Table:
    """Read the headers of a shard; anything after damage is left out.

    Args:
        file: The shard.
        parts: The required parts.
    """
    samples: list[Sample] = []
    key: str | None = None
    members: dict[str, Member] = {}
    try:
        for member, odd in list_tar(file):
            stem, ending = split_name(member.name)
            if odd is not None or not ending or stem.rpartition('/')[2] == '':
                continue
            if stem != key:
                key, members = stem, {}
                samples.append(Sample(stem, members))
            for kind in parts.kinds(ending):
                members.setdefault(kind, Member('', member.size, member.offset))
    except (tarfile.TarError, OSError, EOFError, ValueError, RecursionError) as error:
        return Table(samples[:-1], str(error))  # (of the last one parts may be missing)
    return Table(samples, None)
