"""Pictures inside an archive (.zip or .tar), read from it one by one: nothing of it is ever written to the disk or run."""
from __future__ import annotations

import hashlib
import io
import os
import stat
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

from ..core.names import escape_name
from .datasets import Dataset
from .pictures import EXTENSIONS, UnreadablePicture, load_picture

#: The most bytes that one picture's file may have, unpacked: 64 MiB.
MEMBER_LIMIT = 2**26
_CHUNK = 2**20


class Member(NamedTuple):
    """A file in an archive: its name, its size by the archive's word, where its bytes begin (of a .tar)."""

    name: str
    size: int
    offset: int


class PictureArchive(Dataset):
    """The pictures in an archive, sorted by name; with `by_folder` their first folders are the classes.

    Links, devices, encrypted members and names that lead out of the archive are passed over and listed in `skipped`.
    """

    def __init__(self, path: Path, size: tuple[int, int], channels: int, by_folder: bool = False) -> None:
        self.path, self.source = path, f'the archive {escape_name(path)}'
        self._handle: Any = None
        self._lock = threading.Lock()
        members, refused = _listed(path)
        self.members = sorted(m for m in members if not by_folder or '/' in m.name)
        if not self.members:
            raise ValueError(f'{self.source} holds no pictures{" in folders (each a class)" if by_folder else ""}; '
                             f'in it must lie files that end in {", ".join(sorted(EXTENSIONS))}')
        folders = [PurePosixPath(m.name).parts[0] for m in self.members] if by_folder else []
        super().__init__((channels, *size), sorted(set(folders)))
        self.skipped += refused
        number = {name: i for i, name in enumerate(sorted(set(folders)))}
        self.labels = [number[folder] for folder in folders]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, '_handle': None, '_lock': None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, index: int) -> dict[str, Any]:
        channels, *size = self.image_shape
        item = {'image': load_picture(io.BytesIO(self.contents(index)), (size[0], size[1]), channels)}
        return item | {'class_cond': self.labels[index]} if self.labels else item

    def contents(self, index: int) -> bytearray:
        """The bytes of a member, at most MEMBER_LIMIT of them, whatever its head says."""
        member = self.members[index]
        if member.size > MEMBER_LIMIT:
            raise UnreadablePicture(f'it has {member.size:,} bytes, more than {MEMBER_LIMIT:,}')
        try:
            with self._lock:
                return self._read(member)
        except (OSError, EOFError, zlib.error, zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError) as error:
            reason = str(error)
        raise UnreadablePicture(f'the archive is damaged there ({reason})')     # (a chained error would keep what was read)

    def _read(self, member: Member) -> bytearray:
        if self._handle is None:
            self._handle = zipfile.ZipFile(self.path) if member.offset < 0 else open(self.path, 'rb')  # noqa: SIM115 - kept open
        if member.offset < 0:
            with self._handle.open(member.name) as file:
                return _exactly(file, member.size)
        self._handle.seek(member.offset)
        return _exactly(self._handle, member.size, more=True)

    def name(self, index: int) -> str:
        return escape_name(f'{self.path}: {self.members[index].name}')

    def fingerprint(self) -> str:
        """Of the archive's place, size and time of change."""
        facts = self.path.stat()
        text = f'{self.path.absolute()}\0{self.num_classes}\0{facts.st_size}\0{facts.st_mtime_ns}'
        return hashlib.blake2b(os.fsencode(text), digest_size=16).hexdigest()


def _exactly(file: IO[bytes], size: int, more: bool = False) -> bytearray:
    """So many bytes of a file; with fewer, or with further ones unless `more` are expected, it is damaged.

    (In pieces, and to the end: a zip's checksum is looked at there, and reading at once would hold everything twice.)
    """
    data = bytearray(size)
    done = 0
    while done < size:
        chunk = file.read(min(_CHUNK, size - done))
        if not chunk:
            raise ValueError(f'it has {done:,} bytes where the archive tells of {size:,}')
        data[done:done + len(chunk)] = chunk
        done += len(chunk)
    if not more and file.read(1):
        raise ValueError(f'it has more than the {size:,} bytes that the archive tells of')
    return data


def _listed(path: Path) -> tuple[list[Member], list[tuple[str, str]]]:
    """The picture files of an archive, and what is refused: (name, why)."""
    try:
        found = list(_zip(path) if zipfile.is_zipfile(path) else _tar(path))
    except (tarfile.TarError, zipfile.BadZipFile, OSError, EOFError, ValueError) as error:
        raise ValueError(f'{path} cannot be read as an archive ({error}); pictures are read from a folder, a .zip or an '
                         'uncompressed .tar: unpack or fetch it again') from None
    members = [member for member, why in found if why is None]
    return members, [(escape_name(f'{path}: {member.name}'), why) for member, why in found if why is not None]


def _zip(path: Path) -> Iterator[tuple[Member, str | None]]:
    with zipfile.ZipFile(path) as file:
        for info in file.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            odd = 'it is a link or device' if kind not in (0, stat.S_IFREG, stat.S_IFDIR) else \
                'it is encrypted' if info.flag_bits & 1 else None
            if not info.is_dir():
                yield from _judged(Member(info.filename, info.file_size, -1), odd)


def _tar(path: Path) -> Iterator[tuple[Member, str | None]]:
    with tarfile.open(path, 'r:') as file:
        for info in file:
            odd = 'it is a link or device' if not info.isreg() else 'it is stored with holes' if info.issparse() else None
            if not info.isdir():
                yield from _judged(Member(info.name, info.size, info.offset_data), odd)
        _check_end(path, file.offset)


def _check_end(path: Path, offset: int) -> None:
    """Refuse a .tar without the block of zeros that ends one: tarfile takes what is cut or damaged there for the end."""
    with open(path, 'rb') as file:
        file.seek(offset)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise ValueError(f'it is cut or damaged at byte {offset:,}, where its next file or its end should be')


def _judged(member: Member, odd: str | None) -> Iterator[tuple[Member, str | None]]:
    parts = PurePosixPath(member.name.replace('\\', '/'))
    if parts.is_absolute() or '..' in parts.parts:
        odd = 'its name leads out of the archive'
    if odd or parts.suffix.lower() in EXTENSIONS:
        yield member, odd
