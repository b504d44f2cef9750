"""Signals that ask a run to stop: the first one asks, a second one ends it at once."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from torch import Tensor, distributed

#: Signals that ask once and end the process when they come again: Ctrl-C and SIGTERM.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
#: Signals that only ask, however often they come: a closed terminal or connection, which the kernel
#: and the shell may both report, and the early notice of a cluster, which SIGTERM follows.
NOTICES = tuple(getattr(signal, name) for name in ('SIGHUP', 'SIGUSR1') if hasattr(signal, name))


@contextmanager
def on_interrupt(
    ask: Callable[[int], None],
    signals: Sequence[int] = STOP_SIGNALS,
    grace: float = 0.0,
    notices: Sequence[int] = NOTICES,
) -> Iterator[None]:
    """Call `ask` with the number of the first signal; end the process at the second one.

    The second Ctrl-C raises KeyboardInterrupt, the second SIGTERM ends the process; so too where a
    shell started the program in the background, which makes it deaf to Ctrl-C. Only the main thread
    can take signals; elsewhere this does nothing.

    Args:
        ask: Called at the first signal of either kind.
        signals: The signals of which the second one ends the process.
        grace: Seconds in which repeats of `signals` count as the first: launchers pass on to their
            processes what these have had already.
        notices: The signals that only ask. One that is ignored (nohup) stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    notices = [number for number in notices if signal.getsignal(number) != signal.SIG_IGN]
    asked_at: list[float] = []

    def request(number: int, frame: FrameType | None) -> None:
        if not asked_at:
            asked_at.append(time.monotonic())
            ask(number)
        elif time.monotonic() - asked_at[0] >= grace:
            signal.signal(number, _leaving(number, before[number]))
            signal.raise_signal(number)

    def note(number: int, frame: FrameType | None) -> None:
        if not asked_at:
            ask(number)

    before = {number: signal.getsignal(number) or signal.SIG_DFL for number in (*signals, *notices)}
    try:
        for number in before:
            signal.signal(number, request if number in signals else note)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class StopVote:
    """The question whether any of several processes was asked to stop, which all ask at one
    step.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._sent: tuple[Tensor, Any] | None = None

    def send(self, asked: bool) -> None:
        """Send the answer of this process, without a wait."""
        flag = torch.full((1,), float(asked), device=self.device)
        self._sent = flag, distributed.all_reduce(flag, distributed.ReduceOp.MAX, async_op=True)

    def result(self) -> bool:
        """Return whether any answer was yes; False where none was sent."""
        if self._sent is None:
            return False
        (flag, work), self._sent = self._sent, None
        work.wait()
        return bool(flag.item())


def _leaving(number: int, before: Any) -> Any:
    """What a signal did before, or does by itself where it was ignored."""
    if before != signal.SIG_IGN:
        return before
    return signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
