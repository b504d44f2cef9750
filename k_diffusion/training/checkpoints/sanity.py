"""Which checkpoints a run that diverged may go back to: those whose loss is sane."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from statistics import median

#: A loss is sane up to so many times the median of so many sane losses before it.
FACTOR, WINDOW = 10.0, 100


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
    told = [(step, False, loss) for step, loss in losses] + [
        (step, True, loss) for step, loss in saved.items()
    ]
    for step, is_saved, loss in sorted(told):
        while ahead and step > ahead[0]:
            ahead.popleft()
            before.clear()
        if not math.isfinite(loss) or (before and loss > FACTOR * median(before)):
            continue
        before.append(loss)
        if is_saved:
            sane.append(step)
    return sane
