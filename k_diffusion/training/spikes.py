"""A guard against spikes of the loss, which moves a run back to its last good checkpoint.

The weights, moments, averages and the step are those of the checkpoint. The position in the data
does not change, so that the batches before and during the spike are skipped and the same spike does
not recur. All values that it decides by are kept in checkpoints, so that an interruption changes
nothing.

References:
    Chowdhery et al. (2022), arXiv:2204.02311, section 5.1, who did so by hand, about 100 steps
        back.
"""

from __future__ import annotations

import math
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .checkpoints.folder import RunFolder, step_of
from .checkpoints.reading import read_training_checkpoint
from .checkpoints.retention import FACTOR, LOSS_SINCE, WINDOW, largest_sane

if TYPE_CHECKING:
    from .trainer import Trainer

#: PATIENCE consecutive losses that are too large or not finite are a spike. Before LEAST losses
#: that are neither, no loss is too large.
PATIENCE, LEAST = 3, 20


class SpikeGuard:
    """Moves a run back when `PATIENCE` consecutive losses are not finite or too large.

    A loss is too large above `factor` times the median of the last 100 sane ones (where losses may
    be negative: above `largest_sane`). The guard is a
    part of the Trainer under 'spikes', and a hook before those that save. It moves back to the
    newest checkpoint before the spike whose step is a multiple of `save_every`, because only those
    are the same in a run that was interrupted.

    Args:
        folder: The folder of the run.
        save_every: Steps between checkpoints.
        most: The largest number of rewinds; later spikes are only reported.
        every: Steps between checks.
        factor: The limit of a sane loss relative to the median.
        tell: Called with 'spike' and a description of it.

    Attributes:
        rewinds: The number of rewinds so far.
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
        self._first = self._count = 0  # consecutive losses that are too large
        self._spike: int | None = None  # the first step of a spike to act on

    def see_losses(self, trainer: Trainer, losses: Sequence[tuple[int, float]]) -> None:
        """Record the losses of some steps, in order.

        Args:
            trainer: The trainer.
            losses: Steps and losses.
        """
        for step, loss in losses:
            enough = len(self._sane) >= LEAST
            limit = largest_sane(self._sane, self.factor) if enough else math.inf
            if math.isfinite(loss) and loss <= limit:
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
        """Move back a run that has diverged; return False if that is not possible.

        Args:
            trainer: The trainer.
        """
        return self._rewind(trainer, self._first if self._count else trainer.step)

    def _rewind(self, trainer: Trainer, first: int) -> bool:
        """Load the checkpoint before a spike, and report it; return False if that is impossible."""
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
        rewinds, since = self.rewinds + 1, trainer.ema_stats.get(LOSS_SINCE, -1.0)
        trainer.rewind(read_training_checkpoint(path, verify=False), path)
        self.rewinds, self._count, self._spike = rewinds, 0, None
        if trainer.step <= since:  # its losses were of another meaning
            trainer.begin_losses()
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
        result: list[str | None] = [None]
        if trainer.accelerator.is_main_process:
            paths = (
                path
                for path in self.folder.checkpoints()
                if step_of(path) < first and step_of(path) % self.save_every == 0
            )
            result = [next((str(path) for path in paths if self.folder.is_whole(path)), None)]
        if trainer.accelerator.num_processes > 1:
            torch.distributed.broadcast_object_list(result)
        return None if result[0] is None else Path(result[0])

    def _report(self, first: int, step: int, path: Path | None, text: str) -> None:
        """Warn of a spike, and pass its description to `tell`."""
        warnings.warn(f'the loss spikes from step {first} on; {text}', stacklevel=2)
        if self.tell is not None:
            to = None if path is None else step_of(path)
            self.tell('spike', spike=first, noticed=step, goes_back_to=to, rewinds=self.rewinds)

    def forget_losses(self) -> None:
        """Forget the losses so far, which are not comparable with later ones."""
        self._sane.clear()
        self._first, self._count, self._spike = 0, 0, None

    def state_dict(self) -> dict[str, Any]:
        """Return the losses and counters that it decides by."""
        return {
            'sane': list(self._sane),
            'first': self._first,
            'count': self._count,
            'spike': self._spike,
            'rewinds': self.rewinds,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state.

        Args:
            state: The result of state_dict.
        """
        self._sane = deque(state['sane'], maxlen=WINDOW)
        self._first, self._count, self._spike = state['first'], state['count'], state['spike']
        self.rewinds = state['rewinds']
