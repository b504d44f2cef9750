"""Send the events of a run (start, checkpoint, bad loss, end) to commands and webhooks."""

from __future__ import annotations

import contextlib
import json
import math
import os
import queue
import shlex
import signal
import socket
import subprocess
import threading
import time
import urllib.parse
import urllib.request
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...core.names import escape_name
from ...training import Trainer
from ...training.checkpoints.folder import step_of

#: Seconds that a command or a webhook may take, and the run waits for them when it ends.
TIMEOUT = 30.0
#: How many events may wait for a command that is slow; more are dropped.
WAITING = 100
#: The events, with a sentence for each.
EVENTS = {
    'start': 'begins at step {step}',
    'checkpoint': 'saved step {step}',
    'spike': 'has a spike of its loss from step {spike} on',
    'nan': 'has a loss that is not a number at step {step}',
    'stop': 'stopped at step {step}; it can go on',
    'failure': 'failed at step {step}: {reason}',
    'end': 'is done at step {step}',
}


class Events:
    """Send events to commands and webhooks, by a thread for each; none delays the run.

    A command runs without a shell, its words split as a shell splits them, with the event as one
    JSON object on its standard input; a URL (http or https) receives it by POST. A target that
    fails, or that exceeds the timeout and is ended, is reported once.

    Args:
        targets: The commands and URLs.
        facts: Values that are part of each event.
        timeout: Seconds for a target; None: TIMEOUT.
    """

    def __init__(
        self, targets: Sequence[str], facts: Mapping[str, Any], timeout: float | None = None
    ) -> None:
        self.facts, self.timeout = dict(facts), TIMEOUT if timeout is None else timeout
        self._targets = [_Target(text, self.timeout) for text in targets]

    def send(self, event: str, **values: Any) -> None:
        """Send an `event` (a key of EVENTS) with `values`."""
        now = time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())
        message = {'event': event, **self.facts, 'time': now, **values}
        message['text'] = f'{message.get("run", "the run")} ' + EVENTS[event].format(**message)
        content = json.dumps({key: _plain(value) for key, value in message.items()}).encode()
        for target in self._targets:
            target.send(content)

    def close(self) -> None:
        """Wait until all events are sent, at most `timeout` seconds."""
        end = time.monotonic() + self.timeout
        for target in self._targets:
            target.close(max(0.0, end - time.monotonic()))


class _Target:
    """A command or a URL with the thread that sends events to it."""

    def __init__(self, text: str, timeout: float) -> None:
        self.timeout = timeout
        self._place = _Webhook(text) if is_webhook(text) else _Command(text)
        self._reported = self._closed = False
        self._waiting: queue.Queue[bytes | None] = queue.Queue(WAITING)
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def send(self, content: bytes | None) -> None:
        try:
            self._waiting.put_nowait(content)
        except queue.Full:
            self._report(f'{WAITING} events wait for it, and others are dropped')

    def close(self, seconds: float) -> None:
        self.send(None)
        self._thread.join(seconds)
        self._closed = True
        self._place.end()

    def _work(self) -> None:
        while (content := self._waiting.get()) is not None and not self._closed:
            try:
                self._place.tell(content, self.timeout)
            except Exception as error:  # (nothing in it may end the run)
                self._report(str(error) or type(error).__name__)

    def _report(self, reason: str) -> None:
        if not self._reported:
            self._reported = True
            warnings.warn(
                f'on_event: {escape_name(self._place.name)} failed ({escape_name(reason)}); '
                'training continues; further failures are not reported',
                stacklevel=2,
            )


def is_webhook(text: str) -> bool:
    """Return True if `text`, a target of events, is a URL."""
    return text.startswith(('http://', 'https://'))


def find_target_problem(text: Any) -> str | None:
    """Return the problem of `text` as a target of events, or None."""
    try:
        parts = isinstance(text, str) and (
            urllib.parse.urlsplit(text).hostname if is_webhook(text) else shlex.split(text)
        )
        if parts:
            return None
    except ValueError:  # a quotation that is not closed, an address that is none
        pass
    return f'on_event must be a command or a URL (http, https); got {text!r:.80}'


class _Webhook:
    """A URL that receives events by POST."""

    def __init__(self, url: str) -> None:
        parts = urllib.parse.urlsplit(url)
        self.url, self.name = url, f'{parts.scheme}://{parts.hostname}'  # (the rest may be secret)

    def tell(self, content: bytes, timeout: float) -> None:
        request = urllib.request.Request(self.url, content, {'Content-Type': 'application/json'})
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            answer.read(1)

    def end(self) -> None:
        """Do nothing: a request ends with the process."""


class _Command:
    """A command that receives events on its standard input."""

    def __init__(self, text: str) -> None:
        self.words = shlex.split(text)
        self.name = self.words[0]
        self._process: subprocess.Popen[bytes] | None = None

    def tell(self, content: bytes, timeout: float) -> None:
        """Start the command with `content` on its standard input, and wait for it to end."""
        # (A session of its own keeps Ctrl-C from it, and lets `end` reach all that it starts.)
        self._process = process = subprocess.Popen(
            self.words,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            process.communicate(content, timeout)
        except subprocess.TimeoutExpired:
            self.end()
            raise OSError(f'timed out after {timeout:g} s') from None
        if process.returncode:
            raise OSError(f'exit status {process.returncode}')

    def end(self) -> None:
        """End the running command and the processes that it started."""
        process = self._process
        if process is None or process.poll() is not None:
            return
        with contextlib.suppress(OSError):
            if hasattr(os, 'killpg'):
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()
        process.wait()


def _plain(value: Any) -> Any:
    """Return a value as JSON allows it; a number that is not finite as a text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, (int, float, str, type(None))) else str(value)


class EventHook:
    """Send events for checkpoints and for losses that are not numbers (on the main process)."""

    every = 1
    at_end = rescue = True

    def __init__(self, events: Events) -> None:
        self.events = events
        self._saved: Path | None = None

    def begin(self, trainer: Trainer) -> None:
        """Send the event that the run of `trainer` starts or continues."""
        self._saved = trainer.last_checkpoint
        self.events.send('start', **facts_of_run(trainer))

    def __call__(self, trainer: Trainer) -> None:
        path = trainer.last_checkpoint
        if path is not None and path != self._saved and step_of(path) == trainer.step:
            self.events.send('checkpoint', checkpoint=path, **facts_of_run(trainer))
        self._saved = path

    def see_losses(self, trainer: Trainer, losses: Sequence[tuple[int, float]]) -> None:
        """Send an event for each of the `losses` of `trainer` that is not a number."""
        for step, loss in losses:
            if not math.isfinite(loss):
                self.events.send('nan', **{**facts_of_run(trainer), 'step': step, 'loss': loss})


def facts_of_run(trainer: Trainer) -> dict[str, Any]:
    """Return the step, the smoothed loss and the elapsed seconds of `trainer`."""
    return {
        'step': trainer.step,
        'end_step': trainer.end_step,
        'loss': trainer.ema_stats.get('loss'),
        'elapsed': round(trainer.elapsed, 1),
    }


def facts_of_place(name: str, folder: Any) -> dict[str, Any]:
    """Return the `name` of a run, its `folder`, the host and the process."""
    return {
        'run': name,
        'folder': str(folder),
        'host': socket.gethostname(),
        'process': os.getpid(),
    }
