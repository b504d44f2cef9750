"""Signals that stop a run: the first one requests a stop, a second one ends the process."""

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

#: Signals that request a stop, and end the process when they are repeated: Ctrl-C and SIGTERM.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
#: Signals that only request a stop: a closed terminal or connection, which the kernel and the shell
#: may both report, and the early notice of a cluster, which SIGTERM follows.
NOTICES = tuple(getattr(signal, name) for name in ('SIGHUP', 'SIGUSR1') if hasattr(signal, name))


@contextmanager
def on_interrupt(
    ask: Callable[[int], None],
    signals: Sequence[int] = STOP_SIGNALS,
    grace: float = 0.0,
    notices: Sequence[int] = NOTICES,
) -> Iterator[None]:
    """Call `ask` with the number of the first signal; end the process at the second one.

    The second Ctrl-C raises KeyboardInterrupt, the second SIGTERM ends the process; likewise if a
    shell started the program in the background, where Ctrl-C is ignored by default. Only the main
    thread can handle signals; elsewhere this does nothing.

    Args:
        ask: Called at the first signal of either kind.
        signals: The signals of which the second one ends the process.
        grace: Seconds in which repeats of `signals` count as the first, because launchers forward
            signals that their processes have received already.
        notices: The signals that only request a stop. An ignored one (nohup) stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    notices = [number for number in notices if signal.getsignal(number) != signal.SIG_IGN]
    asked_at: list[float] = []

    def request(number: int, frame: FrameType | None) -> None:
        """Ask for a stop at the first signal; after `grace`, act as without this handler."""
        if not asked_at:
            asked_at.append(time.monotonic())
            ask(number)
        elif time.monotonic() - asked_at[0] >= grace:
            signal.signal(number, _leaving(number, before[number]))
            signal.raise_signal(number)

    def note(number: int, frame: FrameType | None) -> None:
        """Ask for a stop, unless one was asked for."""
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
    """A vote of several processes at one step on whether any of them was asked to stop.

    Args:
        device: The device of the message.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._pending: tuple[Tensor, Any] | None = None

    def send(self, vote: bool) -> None:
        """Send the vote of this process without waiting.

        Args:
            vote: Its vote.
        """
        flag = torch.full((1,), float(vote), device=self.device)
        self._pending = flag, distributed.all_reduce(flag, distributed.ReduceOp.MAX, async_op=True)

    def result(self) -> bool:
        """Return whether any process voted yes; False if none was sent."""
        if self._pending is None:
            return False
        (flag, work), self._pending = self._pending, None
        work.wait()
        return bool(flag.item())


def _leaving(number: int, before: Any) -> Any:
    """Return the former handler of a signal, or its default if it was ignored."""
    if before != signal.SIG_IGN:
        return before
    return signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
