"""Which checkpoints are kept, and which of them a run that diverged may go back to."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median

#: A loss is sane up to so many times the median of so many sane losses before it.
FACTOR, WINDOW = 10.0, 100

#: In the metrics of a checkpoint: the step from which on its loss means what it does, where that is
#: not the first.
LOSS_SINCE = 'loss_since'


def comparable(metrics: Mapping[int, Mapping[str, float]]) -> dict[int, Mapping[str, float]]:
    """Return the metrics of those checkpoints whose loss means what that of the latest ones
    does.
    """
    since = max((values.get(LOSS_SINCE, 0.0) for values in metrics.values()), default=0.0)
    return {
        step: values for step, values in metrics.items() if values.get(LOSS_SINCE, 0.0) == since
    }


@dataclass(frozen=True)
class Retention:
    """Keeps the last `last` checkpoints (0: all of them) and the `best` with the smallest
    `metric`; pinned ones always.
    """

    last: int = 0
    best: int = 1
    metric: str = 'loss'

    def __post_init__(self) -> None:
        for key in ('last', 'best'):
            if getattr(self, key) < 0:
                raise ValueError(f'{key} is {getattr(self, key)}; it must be at least 0')

    def reasons(
        self,
        steps: Iterable[int],
        metrics: Mapping[int, Mapping[str, float]],
        pinned: Iterable[int] = (),
    ) -> dict[int, list[str]]:
        """For each step, why its checkpoint is kept; an empty list where it is to go."""
        newest_first = sorted(steps, reverse=True)
        reasons: dict[int, list[str]] = {step: [] for step in newest_first}
        for step in newest_first[: self.last] if self.last else newest_first:
            reasons[step].append('last')
        metrics = comparable(metrics) if self.metric == 'loss' else metrics
        measured = [step for step in newest_first if self.metric in metrics.get(step, {})]
        for step in sorted(measured, key=lambda s: metrics[s][self.metric])[: self.best]:
            reasons[step].append('best')
        for step in pinned:
            if step in reasons:
                reasons[step].append('pinned')
        return reasons


def sane_steps(
    losses: Iterable[tuple[int, float]], saved: Mapping[int, float], begins: Iterable[float] = ()
) -> list[int]:
    """Return the steps of the checkpoints whose loss is sane, in order.

    A loss is sane where it is finite and at most `FACTOR` times the median of the last `WINDOW`
    sane losses before it. Losses that are not sane count for nothing, so that a run that stays at a
    large loss does not get used to it.

    Args:
        losses: Steps and losses of the log.
        saved: The loss of each checkpoint by its step.
        begins: Steps after which the loss means something else, and is compared with none before.
    """
    ahead = deque(sorted(begins))
    before: deque[float] = deque(maxlen=WINDOW)
    sane = []
    events = [(step, False, loss) for step, loss in losses] + [
        (step, True, loss) for step, loss in saved.items()
    ]
    for step, is_saved, loss in sorted(events):
        while ahead and step > ahead[0]:
            ahead.popleft()
            before.clear()
        if not math.isfinite(loss) or (before and loss > FACTOR * median(before)):
            continue
        before.append(loss)
        if is_saved:
            sane.append(step)
    return sane
