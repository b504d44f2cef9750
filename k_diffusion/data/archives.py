"""Images in an archive (.zip or .tar), read one by one: nothing is unpacked to disk or run."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import re
import stat
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from ..core.names import escape_name
from ..core.zip_members import find_directory
from .pictures import UnreadablePicture
from .selection import PictureSet, Selection, drop_wrapper

#: Largest unpacked size of an image file: 64 MiB.
MEMBER_LIMIT = 2**26
#: Largest size of a long name or of other attributes of a file in a .tar, in bytes.
HEAD_LIMIT = 2**20
#: Largest number of digits in a row in a .tar header, and of attributes stated for all files.
DIGITS, GLOBAL_ATTRIBUTES = 255, 100
#: Largest ratio of unpacked and packed size of a member of a .zip (DEFLATE reaches 1,032).
RATIO = 2000
_CHUNK = 2**20
#: Members larger than this are read and decoded one at a time.
_LARGE = 2**22


class Member(NamedTuple):
    """A file in an archive.

    Attributes:
        name: Its name.
        size: Its size as stated by the archive.
        offset: The position of its bytes; in a zip -1 - its number.
    """

    name: str
    size: int
    offset: int


class PictureArchive(PictureSet[Member]):
    """The images in an archive.

    A folder that holds all of them and has subfolders is a wrapper and not a class. Links, devices,
    encrypted members and names that lead out of the archive are skipped.

    Args:
        path: The archive.
        size: Height and width of the items.
        channels: Number of channels of the items.
        by_folder: Use first-level folders as classes.
        grey_range: Black and white of grey images; None for those of the file format.
    """

    def __init__(
        self,
        path: Path,
        size: tuple[int, int],
        channels: int,
        by_folder: bool = False,
        grey_range: tuple[float, float] | None = None,
    ) -> None:
        self._handle: Any = None
        self._lock, self._large = threading.Lock(), threading.Lock()
        members = _list_members(path)
        pictures = drop_wrapper(members.in_order())
        super().__init__(
            path,
            f'the archive {escape_name(path)}',
            members,
            pictures,
            size,
            channels,
            by_folder,
            grey_range,
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, '_handle': None, '_lock': None, '_large': None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.reopen()

    def reopen(self) -> None:
        """Forget the open file, for use in another process."""
        self._handle, self._lock, self._large = None, threading.Lock(), threading.Lock()

    @contextmanager
    def open(self, index: int) -> Iterator[IO[bytes]]:
        """Open the contents of a member; large ones one at a time.

        Args:
            index: The index of the image.
        """
        with self._large if self.files[index].size > _LARGE else nullcontext():
            yield io.BytesIO(self.contents(index))

    def contents(self, index: int) -> bytearray:
        """Return the bytes of a member, at most MEMBER_LIMIT of them for any stated size.

        Args:
            index: The index of the image.

        Raises:
            UnreadablePicture: If it is too large or the archive is damaged there.
        """
        member = self.files[index]
        if member.size > MEMBER_LIMIT:
            raise UnreadablePicture(f'it has {member.size:,} bytes, more than {MEMBER_LIMIT:,}')
        try:
            with self._lock:
                return self._read(member)
        except (
            OSError,
            EOFError,
            zlib.error,
            zipfile.BadZipFile,
            NotImplementedError,
            RuntimeError,
            ValueError,
        ) as error:
            reason = str(error)
        raise UnreadablePicture(
            f'the archive is damaged there ({reason})'
        )  # (a chained error would keep what was read)

    def _read(self, member: Member) -> bytearray:
        if self._handle is None:
            if member.offset < 0:
                self._handle = zipfile.ZipFile(self.place)
            else:
                self._handle = open(self.place, 'rb')  # noqa: SIM115  (stays open)
        if member.offset < 0:
            with self._handle.open(self._handle.infolist()[-1 - member.offset]) as file:
                return read_exactly(file, member.size)
        self._handle.seek(member.offset)
        return read_exactly(self._handle, member.size, more=True)

    def name(self, index: int) -> str:
        """Return the name of an image in messages.

        Args:
            index: Its index.
        """
        return self.display_name(self.files[index].name)

    def display_name(self, name: str) -> str:
        """Return the name of a member in messages.

        Args:
            name: Its name in the archive.
        """
        return escape_name(f'{self.place}: {name}')

    def fingerprint(self) -> str:
        """Return a digest of the path, size and modification time of the archive."""
        try:
            facts = self.place.stat()
            text = f'{self.rules()}\0{facts.st_size}\0{facts.st_mtime_ns}'
        except OSError:
            text = f'{self.rules()}\0gone'
        return hashlib.blake2b(os.fsencode(text), digest_size=16).hexdigest()


def read_exactly(file: IO[bytes], size: int, more: bool = False) -> bytearray:
    """Return so many bytes of a file; raise a ValueError if there are fewer or more.

    The file is read in pieces and to its end: the checksum of a zip is verified there, and reading
    at once would hold everything twice.

    Args:
        file: The file.
        size: Number of bytes.
        more: Further bytes are expected.
    """
    data = bytearray(size)
    count = 0
    while count < size:
        chunk = file.read(min(_CHUNK, size - count))
        if not chunk:
            raise ValueError(f'it has {count:,} bytes where the archive tells of {size:,}')
        data[count : count + len(chunk)] = chunk
        count += len(chunk)
    if not more and file.read(1):
        raise ValueError(f'it has more than the {size:,} bytes that the archive tells of')
    return data


def _list_members(path: Path) -> Selection[Member]:
    """Return the files of an archive."""
    members: Selection[Member] = Selection()
    try:
        for member, odd in _zip(path) if zipfile.is_zipfile(path) else _tar(path):
            parts = [part for part in member.name.split('/') if part not in ('', '.')]
            if (
                member.name.startswith('/')
                or '..' in member.name.replace('\\', '/').split('/')
                or not parts
            ):
                odd = 'its name leads out of the archive'
            members.add(parts, member, f'{path}: {member.name}', odd)
    except (
        tarfile.TarError,
        zipfile.BadZipFile,
        OSError,
        EOFError,
        ValueError,
        NotImplementedError,
        RecursionError,
    ) as error:
        raise ValueError(
            f'{path} cannot be read as an archive ({error}); path must be a folder, a .zip or an '
            'uncompressed .tar. Unpack it or fetch it again'
        ) from None
    return members


def _zip(path: Path) -> Iterator[tuple[Member, str | None]]:
    r"""Yield the files of a zip, with / in place of the \ that some programs write."""
    with zipfile.ZipFile(path) as file:
        _check_directory(path, file.infolist())
        for number, info in enumerate(file.infolist()):
            name = info.filename.replace('\\', '/')
            kind = stat.S_IFMT(info.external_attr >> 16)
            odd = (
                'it is a link or device'
                if kind not in (0, stat.S_IFREG, stat.S_IFDIR)
                else 'it is encrypted'
                if info.flag_bits & 1
                else f'it unpacks to more than {RATIO:,} times its size'
                if info.file_size > max(_CHUNK, RATIO * info.compress_size)
                else None
            )
            if not name.endswith('/'):
                yield Member(name, info.file_size, -1 - number), odd


def _check_directory(path: Path, members: list[zipfile.ZipInfo]) -> None:
    """Refuse a zip whose directory is shorter than stated, or whose members share bytes.

    The stated number has 16 bits in files of some programs.
    """
    size = path.stat().st_size
    with open(path, 'rb') as file:
        _, _, count = find_directory(file, size)
    if (count - len(members)) % 2**16:
        raise ValueError(
            f'its directory names {len(members):,} files where its end states {count:,}'
        )
    if sum(info.compress_size for info in members) > size:
        raise ValueError('its files have more bytes, packed, than the archive')


def _tar(path: Path) -> Iterator[tuple[Member, str | None]]:
    with open(path, 'rb') as file:
        yield from list_tar(file)


def list_tar(file: IO[bytes]) -> Iterator[tuple[Member, str | None]]:
    """Yield the files of an uncompressed .tar in order, each with a reason if it cannot be used.

    Args:
        file: The file.

    Raises:
        OSError, ValueError, tarfile.TarError: If it cannot be read to its end.
    """
    file.seek(0)
    end = 0
    for info, following in read_heads(file):
        odd = (
            'it is a link or device'
            if not info.isreg()
            else 'it is stored with holes'
            if info.issparse()
            else None
        )
        if not info.isdir():
            yield Member(info.name, info.size, info.offset_data), odd
        end = following
    _check_end(file, end)


def _check_end(file: IO[bytes], offset: int) -> None:
    """Refuse a .tar without the zeros at its end.

    tarfile takes a damaged header or a cut for the end.
    """
    file.seek(offset)
    chunk = file.read(tarfile.BLOCKSIZE)
    whole = len(chunk) == tarfile.BLOCKSIZE
    while whole and chunk:
        whole, chunk = not any(chunk), file.read(_CHUNK)
    if not whole:
        raise ValueError(
            f'it is cut or damaged at byte {offset:,}, where its next file or its end should be'
        )


def read_heads(file: IO[bytes] | gzip.GzipFile) -> Iterator[tuple[tarfile.TarInfo, int]]:
    """Yield the members of a .tar and the position of the next header, reading headers only.

    Args:
        file: The file.

    Raises:
        tarfile.TarError: If it is damaged, or its headers need too much memory or time.
    """
    with tarfile.open(fileobj=cast(Any, _Heads(file)), mode='r:') as tar:
        for info in tar:
            vars(tar)['members'] = []  # (it would keep them all)
            if len(tar.pax_headers) > GLOBAL_ATTRIBUTES:  # (tarfile copies them for each file)
                raise tarfile.ReadError(
                    f'it states more than {GLOBAL_ATTRIBUTES} attributes for all of its files'
                )
            yield info, tar.offset


class _Heads:
    """A .tar as tarfile reads it, without headers that need much memory or time."""

    def __init__(self, file: IO[bytes] | gzip.GzipFile) -> None:
        self.seek, self.tell, self._read = file.seek, file.tell, file.read

    def read(self, size: int) -> bytes:
        """Read a header or a part of one.

        Args:
            size: Number of bytes.
        """
        if size > HEAD_LIMIT:
            raise tarfile.ReadError(
                f'the name or attributes of a file in it have more than {HEAD_LIMIT:,} bytes'
            )
        data = self._read(size)
        if re.search(rb'[0-9]{%d}' % (DIGITS + 1), data):  # (CVE-2024-6232)
            raise tarfile.ReadError(
                f'the name or attributes of a file in it have more than {DIGITS} digits in a row'
            )
        return data
