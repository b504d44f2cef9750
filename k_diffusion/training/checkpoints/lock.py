"""Lock the folder of a run: a kernel lock, which ends with its process in any case."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class RunLocked(ValueError):
    """Another process trains this run."""


@contextmanager
def run_lock(folder: Path, name: str) -> Iterator[None]:
    """Hold the lock of a run, and create its folder.

    Folders created here that stay empty are removed at the end.

    Args:
        folder: The folder of the run.
        name: The run.

    Raises:
        RunLocked: If a living process holds it.
        OSError: If the folder cannot be written to.
    """
    path = folder / f'{name}.lock'
    new = [at for at in (folder, *folder.parents) if not at.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = _acquire(path, name)
    except OSError as error:
        raise OSError(
            f'cannot write to {folder} ({error.strerror}); choose another folder with run_dir=...'
        ) from None
    try:
        # The holder is written for messages only; on a full disk the lock holds without it.
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.write(
                descriptor, json.dumps({'pid': os.getpid(), 'host': socket.gethostname()}).encode()
            )
        yield
    finally:
        with contextlib.suppress(OSError):  # the folder may have been replaced
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                path.unlink()
        os.close(descriptor)
        for at in new:
            with contextlib.suppress(OSError):
                at.rmdir()


def _acquire(path: Path, name: str) -> int:
    """Lock the lock file and return its descriptor.

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
            raise RunLocked(
                f'run {name!r} in {path.parent} is locked by {holder}; wait for it to finish, '
                'stop it, or pass another name'
            ) from None
        with contextlib.suppress(OSError):
            if os.fstat(descriptor).st_ino == os.stat(path).st_ino:
                return descriptor
        os.close(descriptor)


def _lock(descriptor: int) -> None:
    """Lock a file, or raise an OSError if another process holds it."""
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined, unused-ignore]
        return
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _holder(descriptor: int) -> str:
    """Return the process that holds the lock, in words."""
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
        return f'process {holder["pid"]} on host {holder["host"]}'
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return 'another process'
