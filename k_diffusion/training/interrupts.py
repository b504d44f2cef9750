"""Ctrl-C and SIGTERM as a request: the first one asks, the second one does what it always did."""
from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

#: What asks a run to stop: Ctrl-C, and what schedulers of clusters send before they kill.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def on_interrupt(ask: Callable[[int], None], signals: Sequence[int] = STOP_SIGNALS, grace: float = 0.) -> Iterator[None]:
    """Within it the first of these signals calls `ask` with its number; the next does what it always did.

    (Ctrl-C: KeyboardInterrupt; SIGTERM: the process ends; so too where a shell started the program in the background, which
    makes it deaf to Ctrl-C.) Repeats within `grace` seconds count as the first: launchers pass on
    to their processes what these have had already. Only the main thread can take signals; elsewhere this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked_at: list[float] = []

    def heard(number: int, frame: FrameType | None) -> None:
        if not asked_at:
            asked_at.append(time.monotonic())
            ask(number)
        elif time.monotonic() - asked_at[0] >= grace:
            signal.signal(number, _leaving(number, before[number]))
            signal.raise_signal(number)

    before = {number: signal.getsignal(number) or signal.SIG_DFL for number in signals}
    try:
        for number in signals:
            signal.signal(number, heard)
        yield
    finally:
        for number in signals:
            signal.signal(number, before[number])


def _leaving(number: int, before: Any) -> Any:
    """What a signal did before, or does by itself where it was ignored."""
    if before != signal.SIG_IGN:
        return before
    return signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
