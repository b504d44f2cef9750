"""Standard output and error that may be closed, full or without a reader."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO, cast


class SafeStream:
    """A text stream that drops what the system refuses to write.

    Attributes:
        stream: The stream.
        fault: The first error of a write.
    """

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.fault: OSError | None = None

    def write(self, text: str) -> int:
        """Write text, or drop it.

        Args:
            text: The text.
        """
        try:
            return int(self.stream.write(text))
        except OSError as error:
            self._drop(error)
            return len(text)

    def flush(self) -> None:
        """Write the buffer, or drop it."""
        try:
            self.stream.flush()
        except OSError as error:
            self._drop(error)

    def _drop(self, error: OSError) -> None:
        """Keep the error and redirect further output to the null device."""
        self.fault = self.fault or error
        with contextlib.suppress(OSError, AttributeError):
            number = self.stream.fileno()
            if number in (1, 2):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, number)
                os.close(null)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextlib.contextmanager
def safe_streams() -> Iterator[None]:
    """Suppress faults of standard output and error in this context; closed ones are discarded."""
    before = sys.stdout, sys.stderr
    _fill_closed()
    with contextlib.ExitStack() as stack:
        for name, stream in zip(('stdout', 'stderr'), before):
            if stream is None:  # it was closed when Python started
                stream = stack.enter_context(open(os.devnull, 'w', encoding='utf-8'))
            if not isinstance(stream, SafeStream):
                stream = cast(TextIO, SafeStream(stream))
            setattr(sys, name, stream)
        try:
            yield
        finally:
            for stream in (sys.stdout, sys.stderr):
                if stream is not None:
                    stream.flush()
            sys.stdout, sys.stderr = before


def output_fault() -> OSError | None:
    """Flush standard output; return the error that lost a part of it, or None."""
    sys.stdout.flush()
    return getattr(sys.stdout, 'fault', None)


def _fill_closed() -> None:
    """Open closed standard descriptors on the null device; files must not take their numbers."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, number)  # inherited by child processes
            if null != number:
                os.close(null)
