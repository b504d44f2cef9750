"""Files that are whole or not there: written under a temporary name, synced, renamed; downloads checked."""
from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple


@contextmanager
def whole_file(path: str | os.PathLike[str], sync: bool = True) -> Iterator[Path]:
    """Yields a temporary name beside `path`; what is written there takes the name at the end, or vanishes.

    It is synced to the disk first, unless `sync` is False (for files that are cheap to make again).

    with whole_file('a.png') as temporary: image.save(temporary)
    """
    path = Path(path)
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp{path.suffix}')
    try:
        yield temporary
        if sync:
            with open(temporary, 'rb+') as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if sync:
        sync_folder(path.parent)


class Written(NamedTuple):
    """What a file is: its size and the SHA-256 of its contents."""

    bytes: int
    sha256: str


class HashingFile:
    """A file to be written in order, which keeps count and digest of what it was given (not of what the disk made of it)."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self._bytes, self._state = 0, hashlib.sha256()

    def write(self, data: Any) -> int:
        self._bytes += memoryview(data).nbytes
        self._state.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()

    def written(self) -> Written:
        return Written(self._bytes, self._state.hexdigest())


def sync_folder(folder: Path) -> None:
    """Makes a rename inside a folder durable, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes a value as indented JSON, whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=4, allow_nan=False) + '\n')


def read_json(text: str, name: str) -> Any:
    """Parses JSON; NaN, infinity and a key given twice are refused with the name of where they stand.

    (`Infinity` is refused too: it is not JSON. Write a large number or leave the key out.)
    """
    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        twice = sorted(key for key, count in Counter(key for key, _ in items).items() if count > 1)
        if twice:
            raise ValueError(f'{name}: the key {twice[0]!r} is given twice in one object; keep one of them')
        return dict(items)

    def constant(value: str) -> float:
        raise ValueError(f'{name}: {value} is not a JSON number; write a finite number or leave the key out')

    try:
        return json.loads(text, object_pairs_hook=pairs, parse_constant=constant)
    except json.JSONDecodeError as error:
        raise ValueError(f'{name} is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}') from None
    except RecursionError:
        raise ValueError(f'{name} is nested too deeply to be read; a config has a handful of levels') from None


def digest_of(path: str | os.PathLike[str], algorithm: str = 'sha256') -> str:
    """The hex digest of a file's contents."""
    state = hashlib.new(algorithm)
    with open(path, 'rb') as file:
        while chunk := file.read(1 << 20):
            state.update(chunk)
    return state.hexdigest()


def download_file(path: str | os.PathLike[str], url: str, digest: str | None = None,
                  progress: Callable[[int, int | None], None] | None = None) -> Path:
    """Downloads a file once, checks its SHA-256 (or MD5, told by the length) and returns its path.

    A file already there is checked too. Nothing half-downloaded or of another content is ever left under the name.
    `progress(bytes so far, bytes in all or None)` is called as it goes on.
    """
    path = Path(path)
    algorithm = 'md5' if digest is not None and len(digest) == 32 else 'sha256'
    if path.exists():
        _check(path, digest, algorithm, str(path))
        return path
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(path) as temporary:
                with open(temporary, 'wb') as file:
                    _copy(response, file, progress)
                _check(temporary, digest, algorithm, url)
    except WrongContent:
        raise
    except OSError as error:
        reason = getattr(error, 'reason', error)
        raise OSError(f'could not download {url} ({reason}); fetch it by other means and place it at {path}') from None
    return path


class WrongContent(OSError):
    """A file is not the one whose digest is known."""


def _copy(response: Any, file: BinaryIO, progress: Callable[[int, int | None], None] | None) -> None:
    if progress is None:
        shutil.copyfileobj(response, file)
        return
    total = int(response.headers.get('Content-Length') or 0) or None
    done = 0
    while chunk := response.read(1 << 18):
        file.write(chunk)
        done += len(chunk)
        progress(done, total)


def _check(path: Path, digest: str | None, algorithm: str, source: str) -> None:
    if digest is None:
        return
    found = digest_of(path, algorithm)
    if found != digest.lower():
        raise WrongContent(f'{source} has the {algorithm.upper()} {found}, not the published {digest}; '
                           'the file is damaged or another one: delete it and fetch it again')
