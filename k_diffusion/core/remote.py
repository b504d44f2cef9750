"""Files at URLs through fsspec: retried on failure, read and compared."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from .extras import require
from .files import FileDigest
from .names import escape_name

T = TypeVar('T')

#: The allowed protocols of fsspec: those that only transfer bytes.
PROTOCOLS = frozenset(
    (
        'abfs',
        'abfss',
        'adl',
        'az',
        'file',
        'ftp',
        'gcs',
        'gs',
        'hdfs',
        'hf',
        'http',
        'https',
        'memory',
        'oss',
        's3',
        's3a',
        'sftp',
        'ssh',
        'webhdfs',
    )
)
#: Seconds between tries.
WAITS = (1.0, 4.0, 15.0)
_CHUNK = 2**20


class Unreachable(OSError):
    """Every attempt to reach a URL failed; the message has the reason and their number."""


def is_url(place: object) -> bool:
    """Return whether a place is an fsspec URL rather than a path.

    Args:
        place: Anything.
    """
    return isinstance(place, str) and re.match(r'[a-zA-Z][\w+.-]*://', place) is not None


def file_system(url: str, name: str = 'url') -> tuple[Any, str]:
    """Return the fsspec file system of a URL, and the path in it.

    Args:
        url: The URL.
        name: The name of the argument, for messages.

    Raises:
        ValueError: If it is a chain of URLs, or of a protocol outside PROTOCOLS.
    """
    protocol = url.split('://')[0].lower()
    if '::' in url or protocol not in PROTOCOLS:
        raise ValueError(
            f'{name} must be a path or a URL of {", ".join(sorted(PROTOCOLS))}; got '
            f'{escape_name(hide_secrets(url))}'
        )
    core = require('fsspec.core', 'remote', f'the URL {protocol}://')
    if protocol in ('s3', 's3a'):
        require('s3fs', 's3', f'the URL {protocol}://')
    system, path = core.url_to_fs(url)
    return system, path


def hide_secrets(url: str) -> str:
    """Return a URL without its password and query, which may contain secrets.

    Args:
        url: The URL.
    """
    return re.sub(r'(\w+://)[^/\s@]+@', r'\1...@', url.split('?')[0])


def try_again(action: Callable[[], T], waits: Sequence[float] | None = None) -> T:
    """Call an action until it succeeds, pausing after each failure.

    Args:
        action: May raise anything, because each file system of fsspec has its own errors. A
            ValueError and a missing package are raised at once.
        waits: The pauses in seconds (default: WAITS).

    Returns:
        The result of the action.

    Raises:
        Unreachable: If every attempt failed.
    """
    waits = WAITS if waits is None else waits
    for wait in (*waits, None):
        try:
            return action()
        except (ImportError, ValueError):
            raise
        except Exception as error:
            if wait is None:
                raise Unreachable(
                    f'{say_reason(error)}; {len(waits) + 1} tries in {sum(waits):g} s'
                ) from error
        time.sleep(wait)
    raise AssertionError('the last try returns or raises')


def say_reason(error: BaseException) -> str:
    """Return the reason for a file system's error as text.

    Args:
        error: The error.
    """
    if isinstance(error, OSError):
        return escape_name(error.strerror or str(error) or type(error).__name__)
    return escape_name(f'{type(error).__name__}: {error}')


def digest_remote(system: Any, path: str) -> FileDigest:
    """Read a remote file completely, and return its size and SHA-256.

    Args:
        system: The file system.
        path: The file in it.
    """
    state, count = hashlib.sha256(), 0
    with system.open(path, 'rb') as file:
        while chunk := file.read(_CHUNK):
            state.update(chunk)
            count += len(chunk)
    return FileDigest(count, state.hexdigest())


def download(system: Any, remote: str, path: Path) -> int:
    """Copy a file from a file system, and compare its size with the size stated there.

    Args:
        system: The file system.
        remote: The file in it.
        path: The copy.

    Returns:
        The number of bytes written.

    Raises:
        OSError: If it arrived incomplete.
    """
    size = system.info(remote).get('size')
    system.get_file(remote, str(path))
    count = path.stat().st_size
    if size is not None and count != size:
        raise OSError(f'{count:,} of {size:,} bytes arrived')
    return count


def state_of(system: Any, path: str) -> str:
    """Return a text that changes when a remote file changes.

    Args:
        system: The file system.
        path: The file in it.
    """
    info: dict[str, Any] = system.info(path)
    return ' '.join(str(info.get(key)) for key in ('size', 'ETag', 'LastModified', 'mtime'))
