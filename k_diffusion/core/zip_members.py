"""Reading the members of a zip file with bounds: stored or deflated, of stated sizes."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from .pickle_state import Budget, Unreadable

#: Largest number of members of a file.
MEMBERS = 1 << 18
_CHUNK = 1 << 20
_END, _END64, _LOCATOR64, _ENTRY, _LOCAL = b'PK\5\6', b'PK\6\6', b'PK\6\7', b'PK\1\2', b'PK\3\4'
_WIDE = 0xFFFFFFFF


class Member(NamedTuple):
    """A member: the position of its local header, its method, its packed and unpacked size."""

    header: int
    method: int
    packed: int
    size: int


def read_members(file: BinaryIO, size: int) -> dict[str, Member]:
    """Return the members of a zip file by name.

    Args:
        file: The file.
        size: Its size in bytes.

    Raises:
        Unreadable: If its directory is damaged.
    """
    start, length, count = find_directory(file, size)
    if start + length > size:
        raise Unreadable('its directory is damaged')
    file.seek(start)
    data, at = file.read(length), 0
    members: dict[str, Member] = {}
    while at < len(data):
        if data[at : at + 4] != _ENTRY or at + 46 > len(data):
            raise Unreadable('its directory is damaged')
        flags, method, packed, unpacked, name_length, extra_length, comment_length, header = (
            struct.unpack_from('<8xHH8xLLHHH8xL', data, at)
        )
        extra_at = at + 46 + name_length
        name = data[at + 46 : extra_at].decode('utf-8', 'surrogateescape')
        unpacked, packed, header = _read_wide(
            data[extra_at : extra_at + extra_length], [unpacked, packed, header]
        )
        if flags & 1 or name in members or len(members) >= MEMBERS:
            raise Unreadable(
                f'its member {ascii(name)[:80]} is encrypted or duplicated, or it has too many '
                'members'
            )
        members[name] = Member(header, method, packed, unpacked)
        at = extra_at + extra_length + comment_length
    if len(members) != count:
        raise Unreadable('its directory is damaged')
    return members


def read_chunks(file: BinaryIO, size: int, member: Member, budget: Budget) -> Iterator[bytes]:
    """Yield the unpacked contents of a member in pieces, charged to the budget.

    Args:
        file: The file.
        size: Its size in bytes.
        member: The member.
        budget: The limits.

    Raises:
        Unreadable: If the member is damaged or has another size than stated.
    """
    budget.allocate(member.size)
    if member.header > size:  # a 64-bit offset may exceed the range of seek
        raise Unreadable('it is cut short')
    file.seek(member.header)
    local = file.read(30)
    if len(local) < 30 or local[:4] != _LOCAL:
        raise Unreadable('a member of it is damaged')
    start = member.header + 30 + sum(struct.unpack_from('<HH', local, 26))
    if start + member.packed > size:
        raise Unreadable('it is cut short')
    file.seek(start)
    chunks = _read_packed(file, member.packed)
    if member.method == 8:
        chunks = _inflate(chunks)
    elif member.method or member.packed != member.size:
        raise Unreadable('a member of it has an unknown packing method')
    count = 0
    for chunk in chunks:
        count += len(chunk)
        if count > member.size:
            break
        yield chunk
    if count != member.size:
        raise Unreadable('a member of it has another size than its directory states')


def _read_packed(file: BinaryIO, remaining: int) -> Iterator[bytes]:
    while remaining:
        chunk = file.read(min(remaining, _CHUNK))
        if not chunk:
            raise Unreadable('it is cut short')
        remaining -= len(chunk)
        yield chunk


def _inflate(chunks: Iterator[bytes]) -> Iterator[bytes]:
    inflater = zlib.decompressobj(-15)
    try:
        for chunk in chunks:
            while chunk and not inflater.eof:
                yield inflater.decompress(chunk, _CHUNK)
                chunk = inflater.unconsumed_tail
        yield inflater.flush()
    except zlib.error:
        raise Unreadable('a packed member of it is damaged') from None


def find_directory(file: BinaryIO, size: int) -> tuple[int, int, int]:
    """Return where the directory of a zip file starts, its length, and its number of members.

    Args:
        file: The file.
        size: Its size in bytes.

    Raises:
        Unreadable: If it is not found.
    """
    file.seek(max(0, size - (1 << 16) - 22))
    tail = file.read((1 << 16) + 22)
    at = tail.rfind(_END)
    if at < 0 or at + 22 > len(tail):
        raise Unreadable('it is cut short: its directory is not at its end')
    count, length, start = struct.unpack_from('<HLL', tail, at + 10)
    if at >= 20 and tail[at - 20 : at - 16] == _LOCATOR64:
        position = struct.unpack_from('<Q', tail, at - 12)[0]
        if position + 56 > size:
            raise Unreadable('its directory is damaged')
        file.seek(position)
        end = file.read(56)
        if end[:4] != _END64:
            raise Unreadable('its directory is damaged')
        count, length, start = struct.unpack_from('<QQQ', end, 32)
    return start, length, count


def _read_wide(extra: bytes, values: list[int]) -> list[int]:
    """Return sizes and offset of an entry, with 64-bit values from its extra field."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from('<HH', extra, at)
        if kind == 1:
            count = min(length, len(extra) - at - 4) // 8
            numbers = iter(struct.unpack_from(f'<{count}Q', extra, at + 4))
            return [next(numbers, value) if value == _WIDE else value for value in values]
        at += 4 + length
    return values
