"""Files at URLs: the file systems of fsspec, tried again where they fail, read and compared."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from .extras import require
from .files import Written
from .names import escape_name

T = TypeVar('T')

#: The protocols of fsspec that are used: those that move bytes of a place and do no more.
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
    """A place at a URL failed each time that it was tried; the text is the reason and the tries."""


def is_url(place: object) -> bool:
    """Return whether a place is an fsspec URL rather than a path."""
    return isinstance(place, str) and re.match(r'[a-zA-Z][\w+.-]*://', place) is not None


def file_system(url: str, name: str = 'url') -> tuple[Any, str]:
    """Return the fsspec file system of a URL, and the path there.

    Args:
        url: The URL.
        name: The argument that holds it, for messages.

    Raises:
        ValueError: It is a chain of URLs, or of a protocol that is not among PROTOCOLS.
    """
    protocol = url.split('://')[0].lower()
    if '::' in url or protocol not in PROTOCOLS:
        raise ValueError(
            f'{name} must be a path or a URL of {", ".join(sorted(PROTOCOLS))}; got '
            f'{escape_name(hide_secrets(url))}'
        )
    core = require('fsspec.core', 'remote', f'the URL {protocol}://')
    system, path = core.url_to_fs(url)
    return system, path


def hide_secrets(url: str) -> str:
    """Return a URL without a password or a query, which may hold one."""
    return re.sub(r'(\w+://)[^/\s@]+@', r'\1...@', url.split('?')[0])


def try_again(action: Callable[[], T], waits: Sequence[float] | None = None) -> T:
    """Return what an action returns; where it fails it is tried again after each of some waits.

    Args:
        action: It may raise anything: each file system of fsspec has errors of its own. A
            ValueError and a missing package are raised at once.
        waits: Seconds (default: WAITS).

    Raises:
        Unreachable: It failed each time.
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
    """Return the reason of a fault of a file system in words."""
    if isinstance(error, OSError):
        return escape_name(error.strerror or str(error) or type(error).__name__)
    return escape_name(f'{type(error).__name__}: {error}')


def digest_remote(system: Any, path: str) -> Written:
    """Return the size and the SHA-256 of a file at a file system, which is read whole."""
    state, count = hashlib.sha256(), 0
    with system.open(path, 'rb') as file:
        while chunk := file.read(_CHUNK):
            state.update(chunk)
            count += len(chunk)
    return Written(count, state.hexdigest())


def download(system: Any, remote: str, path: Path) -> int:
    """Copy a file from a file system, and compare its size with the one that it says there.

    Returns:
        The bytes that were written.

    Raises:
        OSError: It arrived cut short.
    """
    size = system.info(remote).get('size')
    system.get_file(remote, str(path))
    copied = path.stat().st_size
    if size is not None and copied != size:
        raise OSError(f'{copied:,} of {size:,} bytes arrived')
    return copied


def state_of(system: Any, path: str) -> str:
    """Return a text that changes when a file at a file system does."""
    info: dict[str, Any] = system.info(path)
    return ' '.join(str(info.get(key)) for key in ('size', 'ETag', 'LastModified', 'mtime'))
