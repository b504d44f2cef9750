"""A guard against spikes of the loss: it takes a run back to its last good checkpoint.

The weights, moments, averages and the step are those of the checkpoint; the data goes on where it
is, so that the batches before and during the spike are passed over and the same spike is not met
again. (Chowdhery et al. 2022, arXiv:2204.02311, section 5.1, did so by hand, about 100 steps back.)
All that it decides by is kept in checkpoints, so that a pause changes nothing.
"""

from __future__ import annotations

import math
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch

from .checkpoints.folder import RunFolder, step_of
from .checkpoints.reading import read_training_checkpoint
from .checkpoints.retention import FACTOR, WINDOW

if TYPE_CHECKING:
    from .trainer import Trainer

#: So many losses in a row that are too large, or no numbers, are a spike; before so many losses
#: that are not there is none.
PATIENCE, LEAST = 3, 20


class SpikeGuard:
    """Takes a run back where `PATIENCE` losses in a row are not finite or too large.

    Too large is above `factor` times the median of the last 100 that were not. A part of the
    Trainer under 'spikes', and a hook that comes before those that save. It goes back to the newest
    checkpoint before the spike of those that are saved every `save_every` steps, since those alone
    are the same in a run that was paused.

    Args:
        folder: The folder of the run.
        save_every: How often checkpoints are saved.
        most: How often it goes back at most; after that spikes are only reported.
        every: At which steps it acts.
        factor: How large is too large.
        tell: Called with 'spike' and facts of it.

    Attributes:
        rewinds: How often it has gone back.
    """

    def __init__(
        self,
        folder: RunFolder,
        save_every: int,
        most: int,
        every: int = 10,
        factor: float = FACTOR,
        tell: Callable[..., None] | None = None,
    ) -> None:
        self.folder, self.save_every, self.most = folder, save_every, most
        self.every, self.factor, self.tell = every, factor, tell
        self.rewinds = 0
        self._sane: deque[float] = deque(maxlen=WINDOW)
        self._first = self._count = 0  # the losses in a row that are too large
        self._spike: int | None = None  # where the one that was not acted on yet begins

    def see_losses(self, trainer: Trainer, losses: Sequence[tuple[int, float]]) -> None:
        """Take in the losses of some steps, in order."""
        for step, loss in losses:
            usual = median(self._sane) if len(self._sane) >= LEAST else math.inf
            if math.isfinite(loss) and loss <= self.factor * usual:
                self._sane.append(loss)
                self._count = 0
                continue
            self._first = step if self._count == 0 else self._first
            self._count += 1
            if self._count == PATIENCE:
                self._spike = self._first

    def __call__(self, trainer: Trainer) -> None:
        trainer.read_losses()
        if self._spike is not None:
            self._rewind(trainer, self._spike)

    def recover(self, trainer: Trainer) -> bool:
        """Take back a run that has diverged; return False where that cannot be done."""
        return self._rewind(trainer, self._first if self._count else trainer.step)

    def _rewind(self, trainer: Trainer, first: int) -> bool:
        self._spike, step = None, trainer.step
        path = self._find_checkpoint(trainer, first)
        if path is None or self.rewinds >= self.most:
            why = (
                'no checkpoint from before it is whole'
                if path is None
                else f'the run has gone back {self.rewinds} times already'
            )
            self._report(first, step, None, f'{why}, so that it is left as it is')
            return False
        rewinds = self.rewinds + 1
        trainer.rewind(read_training_checkpoint(path, verify=False), path)
        self.rewinds, self._count, self._spike = rewinds, 0, None
        if trainer.accelerator.is_main_process:
            self.folder.point_to(path)
        self._report(
            first,
            step,
            path,
            f'the run goes back to step {trainer.step} and on with other data '
            f'({rewinds} of {self.most} times)',
        )
        return True

    def _find_checkpoint(self, trainer: Trainer, first: int) -> Path | None:
        """Return the newest checkpoint before a step, the same one on all processes."""
        found: list[str | None] = [None]
        if trainer.accelerator.is_main_process:
            paths = (
                path
                for path in self.folder.checkpoints()
                if step_of(path) < first and step_of(path) % self.save_every == 0
            )
            found = [next((str(path) for path in paths if self.folder.is_whole(path)), None)]
        if trainer.accelerator.num_processes > 1:
            torch.distributed.broadcast_object_list(found)
        return None if found[0] is None else Path(found[0])

    def _report(self, first: int, step: int, path: Path | None, text: str) -> None:
        warnings.warn(f'the loss spikes from step {first} on; {text}', stacklevel=2)
        if self.tell is not None:
            to = None if path is None else step_of(path)
            self.tell('spike', spike=first, noticed=step, goes_back_to=to, rewinds=self.rewinds)

    def state_dict(self) -> dict[str, Any]:
        """Return what it decides by."""
        return {
            'sane': list(self._sane),
            'first': self._first,
            'count': self._count,
            'spike': self._spike,
            'rewinds': self.rewinds,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self._sane = deque(state['sane'], maxlen=WINDOW)
        self._first, self._count, self._spike = state['first'], state['count'], state['spike']
        self.rewinds = state['rewinds']
