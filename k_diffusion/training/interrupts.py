"""Ctrl-C as a request: the first one asks, the second one raises."""
from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType


@contextmanager
def on_interrupt(ask: Callable[[], None], signals: Sequence[int] = (signal.SIGINT,)) -> Iterator[None]:
    """Within it the first of these signals calls `ask`; the next does what it always did (Ctrl-C: KeyboardInterrupt).

    Only the main thread can take signals; elsewhere this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def first(number: int, frame: FrameType | None) -> None:
        signal.signal(number, before[number])
        ask()

    before = {number: signal.getsignal(number) or signal.SIG_DFL for number in signals}
    try:
        for number in signals:
            signal.signal(number, first)
        yield
    finally:
        for number in signals:
            signal.signal(number, before[number])
