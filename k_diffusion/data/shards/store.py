"""Open shards as local files; those at URLs are copied on demand, up to a size limit."""

from __future__ import annotations

import contextlib
import hashlib
import os
import queue
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from ...core.files import whole_file
from ...core.names import escape_name
from ...core.remote import Unreachable, download, file_system, is_url, try_again

try:
    import fcntl
except ImportError:  # Windows: two processes may each fetch the same shard
    fcntl = None  # type: ignore[assignment]

#: The default limit for copies in bytes.
COPIES_LIMIT = 2**34


class ShardStore:
    """Opens shards by path or URL.

    Args:
        folder: The folder of the copies, shared by all processes of this machine; None uses a
            temporary folder of this process.
        limit: The limit for copies in bytes; the least recently used ones are removed first.
    """

    def __init__(self, folder: Path | None = None, limit: int = COPIES_LIMIT) -> None:
        self.folder, self.limit = folder, limit
        self._own: tempfile.TemporaryDirectory[str] | None = None
        self._ahead: queue.SimpleQueue[str] | None = None
        self._expected: set[str] = set()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[ShardStore], tuple[Path | None, int]]:
        return ShardStore, (self.folder, self.limit)

    def open(self, url: str) -> IO[bytes]:
        """Open a shard for reading, and retry a few times if it is missing or cannot be fetched.

        Args:
            url: Its path or URL.

        Raises:
            OSError: If it cannot be read; the message names it.
        """
        try:
            return try_again(lambda: open(self._fetch(url) if is_url(url) else url, 'rb'))
        except Unreachable as error:
            raise FileNotFoundError(
                f'the shard {escape_name(url)} cannot be read ({error}); restore it, or remove it '
                'from dataset.location, and start again: training resumes'
            ) from error

    def expect(self, urls: Sequence[str]) -> None:
        """Fetch shards in the background before they are opened.

        Args:
            urls: Their URLs; paths are ignored.
        """
        new = [url for url in urls if is_url(url) and url not in self._expected]
        self._expected = {url for url in urls if is_url(url)}
        if new and self._ahead is None:
            self._ahead = queue.SimpleQueue()
            # A daemon thread, because it never ends and must not keep the process alive.
            threading.Thread(target=self._fetch_ahead, args=(self._ahead,), daemon=True).start()
        for url in new:
            if self._ahead is not None:
                self._ahead.put(url)

    def _fetch_ahead(self, ahead: queue.SimpleQueue[str]) -> None:
        while True:
            url = ahead.get()
            if url in self._expected:
                with contextlib.suppress(Exception):  # reported by `open` when the shard is needed
                    self._fetch(url)

    def _place(self) -> Path:
        with self._lock:
            if self.folder is not None:
                self.folder.mkdir(parents=True, exist_ok=True)
                return self.folder
            if self._own is None:
                self._own = tempfile.TemporaryDirectory(prefix='k-diffusion-shards-')
            return Path(self._own.name)

    def _fetch(self, url: str) -> Path:
        """Return the copy of a shard, made by one process of this machine."""
        folder = self._place()
        digest = hashlib.blake2b(url.encode('utf-8', 'surrogatepass'), digest_size=12).hexdigest()
        path = folder / f'{digest}.tar'
        if not path.exists():
            with _exclusive(folder / f'{digest[0]}.lock'):
                if not path.exists():
                    self._copy(url, path)
        with contextlib.suppress(OSError):  # the file belongs to another user
            os.utime(path)
        return path

    def _copy(self, url: str, path: Path) -> None:
        system, remote = file_system(url, 'dataset.location')
        size = system.info(remote).get('size')
        self._make_room(path.parent, size or 0)
        with whole_file(path, sync=False) as temporary:
            download(system, remote, temporary)

    def _make_room(self, folder: Path, size: int) -> None:
        """Remove the least recently used copies until `size` bytes fit under the limit."""
        files = []
        for path in folder.glob('*.tar'):
            with contextlib.suppress(OSError):
                facts = path.stat()
                files.append((facts.st_mtime, facts.st_size, path))
        total = sum(bytes_ for _, bytes_, _ in files)
        for _, bytes_, path in sorted(files):
            if total + size <= self.limit:
                break
            with contextlib.suppress(OSError):
                path.unlink()
                total -= bytes_


@contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    """Hold a lock file, so that one thread of the machine is inside at a time."""
    if fcntl is None:
        yield
        return
    with open(path, 'wb') as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
