"""Which checkpoints are kept, and to which a diverged run may go back."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from statistics import median

#: A loss is sane up to this factor times the median of this many sane losses before it, or as far
#: above it if losses may be negative (`largest_sane`).
FACTOR, WINDOW = 10.0, 100

#: Key in the metrics of a checkpoint: the first step of losses with the same meaning, if it is not
#: the first step of the run.
LOSS_SINCE = 'loss_since'


def comparable(metrics: Mapping[int, Mapping[str, float]]) -> dict[int, Mapping[str, float]]:
    """Return the metrics of the checkpoints whose loss is comparable to that of the latest ones.

    Args:
        metrics: Metrics by step.
    """
    since = max((values.get(LOSS_SINCE, 0.0) for values in metrics.values()), default=0.0)
    return {
        step: values for step, values in metrics.items() if values.get(LOSS_SINCE, 0.0) == since
    }


@dataclass(frozen=True)
class Retention:
    """Keeps the last checkpoints, the best ones, and pinned ones.

    Attributes:
        last: The number of last checkpoints to keep; 0 keeps all.
        best: The number of checkpoints with the smallest metric to keep.
        metric: The name of the metric.
    """

    last: int = 0
    best: int = 1
    metric: str = 'loss'

    def __post_init__(self) -> None:
        for key in ('last', 'best'):
            if getattr(self, key) < 0:
                raise ValueError(f'{key} must be >= 0; got {getattr(self, key)}')

    def reasons(
        self,
        steps: Iterable[int],
        metrics: Mapping[int, Mapping[str, float]],
        pinned: Iterable[int] = (),
    ) -> dict[int, list[str]]:
        """Return the reasons to keep the checkpoint of each step; an empty list deletes it.

        Args:
            steps: The steps.
            metrics: Metrics by step.
            pinned: Steps that are always kept.
        """
        newest_first = sorted(steps, reverse=True)
        reasons: dict[int, list[str]] = {step: [] for step in newest_first}
        for step in newest_first[: self.last] if self.last else newest_first:
            reasons[step].append('last')
        metrics = comparable(metrics) if self.metric == 'loss' else metrics
        steps_with_metric = [step for step in newest_first if self.metric in metrics.get(step, {})]
        for step in sorted(steps_with_metric, key=lambda s: metrics[s][self.metric])[: self.best]:
            reasons[step].append('best')
        for step in pinned:
            if step in reasons:
                reasons[step].append('pinned')
        return reasons


def largest_sane(losses: Collection[float], factor: float = FACTOR) -> float:
    """Return the limit of a sane loss after other sane losses.

    With m their median it is m + (factor - 1) median |loss|. That is factor * m if none is
    negative; it stays above m for losses that may be, as a likelihood or with a contrast.

    Args:
        losses: The losses before it, at least one.
        factor: The limit relative to the median.
    """
    return median(losses) + (factor - 1) * median(map(abs, losses))


def sane_steps(
    losses: Iterable[tuple[int, float]],
    saved_losses: Mapping[int, float],
    begins: Iterable[float] = (),
) -> list[int]:
    """Return the steps of the checkpoints with a sane loss, in order.

    A loss is sane if it is finite and at most `largest_sane` of the last `WINDOW` sane losses
    before it. Other losses are ignored, so that a run with a permanently large loss is not
    considered sane again.

    Args:
        losses: Steps and losses of the log.
        saved_losses: The loss of each checkpoint by its step.
        begins: Steps after which losses have another meaning, and are not compared with earlier
            ones.
    """
    ahead = deque(sorted(begins))
    before: deque[float] = deque(maxlen=WINDOW)
    sane = []
    events = [(step, False, loss) for step, loss in losses] + [
        (step, True, loss) for step, loss in saved_losses.items()
    ]
    for step, is_saved, loss in sorted(events):
        while ahead and step > ahead[0]:
            ahead.popleft()
            before.clear()
        if not math.isfinite(loss) or (before and loss > largest_sane(before)):
            continue
        before.append(loss)
        if is_saved:
            sane.append(step)
    return sane
