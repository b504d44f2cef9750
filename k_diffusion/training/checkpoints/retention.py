"""Which checkpoints are kept: the last few, the best, those a person has pinned."""
from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

#: In the metrics of a checkpoint: the step from which on its loss means what it does, where that is not the first.
LOSS_SINCE = 'loss_since'


def comparable(metrics: Mapping[int, Mapping[str, float]]) -> dict[int, Mapping[str, float]]:
    """Return the metrics of those checkpoints whose loss means what that of the latest ones does."""
    since = max((values.get(LOSS_SINCE, 0.) for values in metrics.values()), default=0.)
    return {step: values for step, values in metrics.items() if values.get(LOSS_SINCE, 0.) == since}


@dataclass(frozen=True)
class Retention:
    """Keeps the last `last` checkpoints (0: all of them) and the `best` with the smallest `metric`; pinned ones always."""

    last: int = 0
    best: int = 1
    metric: str = 'loss'

    def __post_init__(self) -> None:
        for key in ('last', 'best'):
            if getattr(self, key) < 0:
                raise ValueError(f'{key} is {getattr(self, key)}; it must be at least 0')

    def reasons(self, steps: Iterable[int], metrics: Mapping[int, Mapping[str, float]], pinned: Iterable[int] = ()) -> dict[int, list[str]]:
        """For each step, why its checkpoint is kept; an empty list where it is to go."""
        newest_first = sorted(steps, reverse=True)
        reasons: dict[int, list[str]] = {step: [] for step in newest_first}
        for step in newest_first[:self.last] if self.last else newest_first:
            reasons[step].append('last')
        metrics = comparable(metrics) if self.metric == 'loss' else metrics
        measured = [step for step in newest_first if self.metric in metrics.get(step, {})]
        for step in sorted(measured, key=lambda s: metrics[s][self.metric])[:self.best]:
            reasons[step].append('best')
        for step in pinned:
            if step in reasons:
                reasons[step].append('pinned')
        return reasons
