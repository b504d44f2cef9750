"""Write files completely or not at all, read JSON strictly, and download with a digest.

A file is written under a temporary name, synced, then renamed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import shutil
import socket
import time
import urllib.request
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

_IMPORTED_AT = time.time()
#: The errors that reading a malformed file can raise.
MALFORMED = (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, OSError)
_notes: set[str] = set()


def say_malformed(error: Exception) -> str:
    """Return a description of a file's fault.

    Args:
        error: One of the errors MALFORMED.
    """
    return (
        str(error)
        if isinstance(error, (ValueError, OSError))
        else 'it does not have the form of such a file'
    )


@contextmanager
def whole_file(path: str | os.PathLike[str], sync: bool = True) -> Iterator[Path]:
    """Yield a temporary path, which is renamed to `path` at the end, or removed on an error.

    Args:
        path: The final path.
        sync: Sync the file to the disk before the rename; False for files that are cheap to
            rebuild.

    Example:
        with whole_file('a.png') as temporary: image.save(temporary)
    """
    path = Path(path)
    temporary = temporary_path(path)
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


def cache_folder() -> Path:
    """Return the folder of downloads and of what is computed from them.

    It is $XDG_CACHE_HOME/k-diffusion, or ~/.cache/k-diffusion.
    """
    return Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'k-diffusion'


def temporary_path(path: Path) -> Path:
    """Return this process's temporary path beside `path`, with host and process in its name."""
    return path.with_name(f'.{path.name}.{_host()}.{os.getpid()}.tmp{path.suffix}')


def remove_stale(folder: Path, name: str) -> list[Path]:
    """Remove temporary files whose processes have ended on this host.

    Args:
        folder: The folder; files in its subfolder `cache` are removed too.
        name: The run. Files without a host in their names are removed for this run only.

    Returns:
        The removed paths. Files of other hosts and of live processes stay.
    """
    inside = [
        path
        for place in (folder, folder / 'cache')
        if place.is_dir()
        for path in (place.rglob('.*') if place != folder else place.glob('.*'))
    ]
    stale = [path for path in inside if _is_stale(path, name)]
    for path in stale:
        with contextlib.suppress(OSError):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    return [path for path in stale if not path.exists()]


def _is_stale(path: Path, run: str) -> bool:
    match = re.fullmatch(r'\.(.+?)(?:\.(host-[0-9a-f]{8}))?\.(\d+)\.tmp(?:\.[^.]+)?', path.name)
    if match is None or match[2] not in (None, _host()):
        return False
    if match[2] is None and not match[1].startswith(f'{run}_'):
        return False
    if int(match[3]) != os.getpid():
        return not is_alive(int(match[3]))
    # A former process can have had this process's number: in a container each has the number 1.
    with contextlib.suppress(OSError):
        return path.lstat().st_mtime < _IMPORTED_AT
    return False


def is_alive(pid: int) -> bool:
    """Return whether a process of this host is alive; True where that is unknown.

    Args:
        pid: The process number.
    """
    if os.name == 'nt':  # os.kill would end the process there
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


def _host() -> str:
    """Return the hash of the host name for temporary file names."""
    return 'host-' + hashlib.blake2b(socket.gethostname().encode(), digest_size=4).hexdigest()


class FileDigest(NamedTuple):
    """Size and SHA-256 of a file's contents."""

    bytes: int
    sha256: str


class HashingFile:
    """A file for sequential writing that keeps size and SHA-256 of the data passed to it.

    The digest is that of the data in memory, so a disk error later is detected by comparing.

    Args:
        file: The file to write to.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self._bytes, self._state = 0, hashlib.sha256()

    def write(self, data: Any) -> int:
        """Write data and add it to the digest.

        Args:
            data: Bytes or a buffer.
        """
        self._bytes += memoryview(data).nbytes
        self._state.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        """Flush the underlying file."""
        self.file.flush()

    def digest(self) -> FileDigest:
        """Return size and SHA-256 of everything written so far."""
        return FileDigest(self._bytes, self._state.hexdigest())


def sync_folder(folder: Path) -> None:
    """Make a rename inside a folder durable, if the system supports it.

    Args:
        folder: The folder.
    """
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write a value as indented JSON, completely or not at all.

    Args:
        path: The file.
        value: The value.
    """
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=4, allow_nan=False) + '\n')


def read_json(text: str, name: str) -> Any:
    """Parse JSON, and reject NaN, infinity and repeated keys.

    `Infinity` is not valid JSON: write a large number, or leave the key out.

    Args:
        text: The JSON text.
        name: The name of its source for messages.

    Raises:
        ValueError: If the text is not valid.
    """

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        twice = sorted(key for key, count in Counter(key for key, _ in items).items() if count > 1)
        if twice:
            raise ValueError(
                f'{name}: the key {twice[0]!r} is given twice in one object; keep one of them'
            )
        return dict(items)

    def constant(value: str) -> float:
        raise ValueError(
            f'{name}: {value} is not a JSON number; write a finite number or leave the key out'
        )

    def number(value: str) -> float:
        return float(value) if math.isfinite(float(value)) else constant(value)

    def integer(value: str) -> int | float:
        return int(value) if len(value) < 300 else constant(f'{value[:20]}...')

    try:
        return json.loads(
            text,
            object_pairs_hook=pairs,
            parse_constant=constant,
            parse_float=number,
            parse_int=integer,
        )
    except json.JSONDecodeError as error:
        raise ValueError(
            f'{name} is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}'
        ) from None
    except RecursionError:
        raise ValueError(f'{name} must be nested less deeply; a config has a few levels') from None


def read_json_file(path: Path, name: str | None = None) -> Any:
    """Parse a JSON file in UTF-8 with `read_json`.

    Args:
        path: The file.
        name: Its name in messages; by default the path.

    Raises:
        ValueError: If it is not valid JSON in UTF-8.
    """
    name = name or str(path)
    try:
        return read_json(path.read_text('utf-8'), name)
    except UnicodeDecodeError as error:
        where = f'{error.reason} at byte {error.start}'
        raise ValueError(f'{name} is not UTF-8 text ({where})') from None


def note_once(text: str) -> None:
    """Issue a warning once per process and text.

    Args:
        text: The warning.
    """
    if text not in _notes:
        _notes.add(text)
        warnings.warn(text, stacklevel=3)


def digest_of(path: str | os.PathLike[str], algorithm: str = 'sha256') -> str:
    """Return the hex digest of a file's contents.

    Args:
        path: The file.
        algorithm: A name that hashlib knows.
    """
    state = hashlib.new(algorithm)
    with open(path, 'rb') as file:
        while chunk := file.read(1 << 20):
            state.update(chunk)
    return state.hexdigest()


def download_file(
    path: str | os.PathLike[str],
    url: str,
    digest: str | None = None,
    progress: Callable[[int, int | None], None] | None = None,
) -> Path:
    """Download a file once, and check its digest.

    An existing file is checked too. A partial or wrong file is never left under the name.

    Args:
        path: Where to put it.
        url: Where to get it.
        digest: Its SHA-256 or MD5 in hex, distinguished by length; None checks nothing.
        progress: Called as progress(bytes so far, total bytes or None).

    Returns:
        The path.

    Raises:
        OSError: If it cannot be downloaded.
        WrongContent: If it does not have the digest.
    """
    path = Path(path)
    algorithm = 'md5' if digest is not None and len(digest) == 32 else 'sha256'
    if path.exists():
        _check(path, digest, algorithm, str(path))
        return path
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            path.parent.mkdir(parents=True, exist_ok=True)
            remove_stale(path.parent, path.stem)
            with whole_file(path) as temporary:
                with open(temporary, 'wb') as file:
                    _copy(response, file, progress)
                _check(temporary, digest, algorithm, url)
    except WrongContent:
        raise
    except OSError as error:
        reason = getattr(error, 'reason', error)
        raise OSError(
            f'could not download {url} ({reason}); fetch it by other means and place it at {path}'
        ) from None
    return path


class WrongContent(OSError):
    """A file does not have its published digest."""


def _copy(
    response: Any, file: BinaryIO, progress: Callable[[int, int | None], None] | None
) -> None:
    if progress is None:
        shutil.copyfileobj(response, file)
        return
    total = int(response.headers.get('Content-Length') or 0) or None
    count = 0
    while chunk := response.read(1 << 18):
        file.write(chunk)
        count += len(chunk)
        progress(count, total)


def _check(path: Path, digest: str | None, algorithm: str, source: str) -> None:
    if digest is None:
        return
    actual = digest_of(path, algorithm)
    if actual != digest.lower():
        raise WrongContent(
            f'{source} must have the {algorithm.upper()} {digest}, as published; got {actual}. '
            'It is damaged or another file: delete it and fetch it again'
        )
