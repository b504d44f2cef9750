"""Lock the folder of a run: a kernel lock, which ends with its process in any case."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Taken(ValueError):
    """Another process trains in the folder."""


@contextmanager
def run_lock(folder: Path, name: str) -> Iterator[None]:
    """Hold the lock of a run, and create its folder.

    Folders created here that stay empty are removed at the end.

    Args:
        folder: The folder of the run.
        name: The run.

    Raises:
        Taken: If a living process holds it.
        OSError: If the folder cannot be written to.
    """
    path = folder / f'{name}.lock'
    made = [at for at in (folder, *folder.parents) if not at.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = _taken(path, name)
    except OSError as error:
        raise OSError(
            f'the run cannot live in {folder} ({error.strerror}); choose another folder with '
            'run_dir=...'
        ) from None
    try:
        with contextlib.suppress(
            OSError
        ):  # who holds it is told for kindness; on a full disk it is held all the same
            os.ftruncate(descriptor, 0)
            os.write(
                descriptor, json.dumps({'pid': os.getpid(), 'host': socket.gethostname()}).encode()
            )
        yield
    finally:
        with contextlib.suppress(OSError):  # (the folder may be another one by now)
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                path.unlink()
        os.close(descriptor)
        for at in made:
            with contextlib.suppress(OSError):
                at.rmdir()


def _taken(path: Path, name: str) -> int:
    """Return the descriptor of the locked lock file.

    If its last holder has removed the file meanwhile, another one is created.
    """
    while True:
        descriptor = os.open(
            path,
            os.O_RDWR | os.O_CREAT | getattr(os, 'O_CLOEXEC', 0) | getattr(os, 'O_NOFOLLOW', 0),
            0o644,
        )
        try:
            _lock(descriptor)
        except OSError:
            holder = _holder(descriptor)
            os.close(descriptor)
            raise Taken(
                f'the run {name!r} in {path.parent} is being trained by {holder}; '
                'wait for it, stop it, or choose another name'
            ) from None
        with contextlib.suppress(OSError):
            if os.fstat(descriptor).st_ino == os.stat(path).st_ino:
                return descriptor
        os.close(descriptor)


def _lock(descriptor: int) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined, unused-ignore]
        return
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _holder(descriptor: int) -> str:
    try:
        held = json.loads(os.pread(descriptor, 4096, 0))
        return f'process {held["pid"]} on {held["host"]}'
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return 'another process'
