"""Files that are whole or not there: written under a temporary name, synced, renamed; downloads
checked.
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
    """Return what is wrong with a file, from one of the errors MALFORMED."""
    return (
        str(error)
        if isinstance(error, (ValueError, OSError))
        else 'it does not have the form of such a file'
    )


@contextmanager
def whole_file(path: str | os.PathLike[str], sync: bool = True) -> Iterator[Path]:
    """Yields a temporary name beside `path`; what is written there takes the name at the end, or
    vanishes.

    It is synced to the disk first, unless `sync` is False (for files that are cheap to make again).

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
    """Return where downloads and what is computed from them are kept.

    It is $XDG_CACHE_HOME/k-diffusion, or ~/.cache/k-diffusion.
    """
    return Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'k-diffusion'


def temporary_path(path: Path) -> Path:
    """Return the name under which this process writes `path`: beside it, with host and process."""
    return path.with_name(f'.{path.name}.{_host()}.{os.getpid()}.tmp{path.suffix}')


def remove_stale(folder: Path, name: str) -> list[Path]:
    """Remove the temporary files of processes of this host that are gone.

    Args:
        folder: The folder; those of its subfolder `cache` are removed too.
        name: The run. Of files that tell no host, those of this run alone are removed.

    Returns:
        The paths that were removed. Files of other hosts and of living processes stay.
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
    # Under this process's own number lie files of an earlier one too: in a container each is 1.
    with contextlib.suppress(OSError):
        return path.lstat().st_mtime < _IMPORTED_AT
    return False


def is_alive(pid: int) -> bool:
    """Return whether a process of this host lives; where that cannot be asked, True."""
    if os.name == 'nt':  # (there os.kill would end it)
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


def _host() -> str:
    """Return what tells hosts apart in the names of temporary files."""
    return 'host-' + hashlib.blake2b(socket.gethostname().encode(), digest_size=4).hexdigest()


class Written(NamedTuple):
    """What a file is: its size and the SHA-256 of its contents."""

    bytes: int
    sha256: str


class HashingFile:
    """A file to be written in order, which keeps count and digest of what it was given (not of
    what the disk made of it).
    """

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
    """Parses JSON; NaN, infinity and a key given twice are refused with the name of where they
    stand.

    (`Infinity` is refused too: it is not JSON. Write a large number or leave the key out.)
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
        raise ValueError(
            f'{name} is nested too deeply to be read; a config has a handful of levels'
        ) from None


def read_json_file(path: Path, name: str | None = None) -> Any:
    """Parse a JSON file in UTF-8 as `read_json` does; `name` is what errors call it (its path)."""
    name = name or str(path)
    try:
        return read_json(path.read_text('utf-8'), name)
    except UnicodeDecodeError as error:
        where = f'{error.reason} at byte {error.start}'
        raise ValueError(f'{name} is not UTF-8 text ({where})') from None


def note_once(text: str) -> None:
    """Warn of something, such as a file that is passed over, once in a process for each text."""
    if text not in _notes:
        _notes.add(text)
        warnings.warn(text, stacklevel=3)


def digest_of(path: str | os.PathLike[str], algorithm: str = 'sha256') -> str:
    """The hex digest of a file's contents."""
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
    """Downloads a file once, checks its SHA-256 (or MD5, told by the length) and returns its path.

    A file already there is checked too. Nothing half-downloaded or of another content is ever left
    under the name. `progress(bytes so far, bytes in all or None)` is called as it goes on.
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
    """A file is not the one whose digest is known."""


def _copy(
    response: Any, file: BinaryIO, progress: Callable[[int, int | None], None] | None
) -> None:
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
        raise WrongContent(
            f'{source} has the {algorithm.upper()} {found}, not the published {digest}; '
            'the file is damaged or another one: delete it and fetch it again'
        )
