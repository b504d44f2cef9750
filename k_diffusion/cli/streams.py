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
        stream: The stream itself.
        fault: The first error in writing to it.
    """

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.fault: OSError | None = None

    def write(self, text: str) -> int:
        """Write text, or drop it."""
        try:
            return int(self.stream.write(text))
        except OSError as error:
            self._drop(error)
            return len(text)

    def flush(self) -> None:
        """Write what is buffered, or drop it."""
        try:
            self.stream.flush()
        except OSError as error:
            self._drop(error)

    def _drop(self, error: OSError) -> None:
        """Keep the error and send what is still to come to the null device."""
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
    """Within it no fault of standard output or error raises; closed ones lead nowhere."""
    before = sys.stdout, sys.stderr
    _fill_closed()
    with contextlib.ExitStack() as opened:
        for name, stream in zip(('stdout', 'stderr'), before):
            if stream is None:  # it was closed when Python started
                stream = opened.enter_context(open(os.devnull, 'w', encoding='utf-8'))
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
    """Write what standard output still holds; return the error that lost some of it, if any."""
    sys.stdout.flush()
    return getattr(sys.stdout, 'fault', None)


def _fill_closed() -> None:
    """Open closed standard descriptors on the null device, or the next files take their numbers."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, number)  # (which processes started later inherit)
            if null != number:
                os.close(null)
