"""Watch over a long run: uploads, a time budget, events, traces, bad batches and spikes."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from ...core.remote import is_url
from ...training import Retention, RunFolder, Trainer
from ...training.checkpoints.uploads import RunUploads, UploadHook
from ...training.spikes import SpikeGuard
from .batch_dump import BatchDump
from .display import Display
from .events import EventHook, Events, facts_of_place, facts_of_run
from .hooks import LOG_EVERY
from .profiling import ProfileHook
from .settings import TrainSettings


def open_folder(settings: TrainSettings, extra: dict[str, Any]) -> RunFolder:
    """Return the folder of a run on this machine.

    Args:
        settings: The settings; their `run_dir` may be a URL.
        extra: Values that each checkpoint contains.
    """
    place = settings.local_dir if is_url(settings.run_dir) else settings.run_dir
    return RunFolder(
        Path(place or Path('runs') / settings.name),
        settings.name,
        extra,
        Retention(settings.keep_last, settings.keep_best),
    )


class Watch:
    """Watch over a run: a context around all of it, which restores, attaches hooks and reports.

    Args:
        settings: The settings of the run.
        folder: Its folder on this machine.
        main: Whether this is the main process.
        display: Shows messages.
    """

    def __init__(
        self, settings: TrainSettings, folder: RunFolder, main: bool, display: Display
    ) -> None:
        self.settings, self.folder, self.display = settings, folder, display
        self._end = (
            None if settings.max_seconds is None else time.monotonic() + settings.max_seconds
        )
        self._uploads: RunUploads | None = None
        self._events: Events | None = None
        self._trainer: Trainer | None = None
        self._profile: ProfileHook | None = None
        self._ran = False
        if main and is_url(settings.run_dir):
            self._uploads = RunUploads(str(settings.run_dir), folder)
        if main and settings.on_event and not settings.dry_run:
            self._events = Events(settings.targets, facts_of_place(settings.name, folder.path))

    def __enter__(self) -> Watch:
        if self._uploads is not None:
            path = self._uploads.restore()
            if path is not None:
                self.display.say(f'fetched {path.name} from {self._uploads.remote.url}')
        return self

    def attach(self, trainer: Trainer) -> None:
        """Add hooks and parts to a `trainer`, before a checkpoint is loaded."""
        settings, main = self.settings, trainer.accelerator.is_main_process
        self._trainer = trainer
        first: list[Any] = []
        last: list[Any] = []
        if settings.rewinds:
            guard = SpikeGuard(
                self.folder,
                settings.save_every,
                settings.rewinds,
                LOG_EVERY,
                settings.spike_factor,
                self._tell if main else None,
            )
            first.append(guard)
            trainer.parts = {**trainer.parts, 'spikes': guard}
        if settings.nan_batches:
            first.append(BatchDump(self.folder.path, settings.name, settings.nan_batches))
        if self._events is not None:
            last.append(EventHook(self._events))
        if self._uploads is not None:
            last.append(UploadHook(self._uploads, settings.save_every))
        if settings.profile and main:
            self._profile = ProfileHook(self.folder.path, settings.name, settings.profile)
            last.append(self._profile)
        trainer.hooks = [*trainer.hooks[:1], *first, *trainer.hooks[1:], *last]
        trainer.stop = self._stop_of(trainer.stop)

    def _stop_of(self, stop_setting: Callable[[], bool] | None) -> Callable[[], bool] | None:
        """Return a function that is True at the end of the time, or if the passed one is."""
        if self._end is None:
            return stop_setting
        end = self._end

        def stop() -> bool:
            if time.monotonic() < end:
                return stop_setting is not None and stop_setting()
            self.display.say(f'max_seconds ({self.settings.max_seconds:g} s) is reached; stopping')
            return True

        return stop

    def run(self, trainer: Trainer) -> str:
        """Train with `trainer`, and send the event that the run starts."""
        self._ran = True
        if self._uploads is not None:
            self._uploads.begin()
        for hook in trainer.hooks:
            if isinstance(hook, EventHook):
                hook.begin(trainer)
        return trainer.run()

    def _tell(self, event: str, **values: Any) -> None:
        if self._events is not None and self._trainer is not None:
            self._events.send(event, **{**facts_of_run(self._trainer), **values})

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._profile is not None and self._ran:
            self._profile.close()
        if self._uploads is not None:
            if error is None and not self.settings.dry_run:
                self._uploads.begin()  # (an earlier start may have left some)
            self._uploads.close()
        if self._events is None:
            return
        if error is not None:
            facts = {'step': 0} if self._trainer is None else facts_of_run(self._trainer)
            reason = ' '.join(str(error).split()) or type(error).__name__
            self._events.send('failure', **facts, reason=reason, error=type(error).__name__)
        elif self._ran and self._trainer is not None:
            signal = self._trainer.stopped_by
            self._tell('end') if self._trainer.done else self._tell('stop', signal=signal)
        self._events.close()
