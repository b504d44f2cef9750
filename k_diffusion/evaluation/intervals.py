"""How sure a number is: resampling."""
from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..core.random import generator


def bootstrap(metric: Callable[[Tensor], float], x: Tensor, replicates: int = 100, level: float = 0.95, seed: int = 0,
              ) -> tuple[float, tuple[float, float]]:
    """(standard error, (low, high)) of metric(x) over the draw of the rows of x, from sets of the same size drawn with repetition.

    The interval is the basic one, 2 metric(x) minus the quantiles: a metric that grows where rows repeat, as the Frechet distance
    does, moves the resampled values and not the interval's centre (Davison and Hinkley 1997, section 5.2).
    """
    if replicates < 2 or not 0 < level < 1:
        raise ValueError(f'{replicates} replicates and a level of {level} give no interval; take 2 or more, and a level below 1')
    source = generator(seed, 'bootstrap')
    values = torch.tensor([metric(x[torch.randint(len(x), [len(x)], generator=source).to(x.device)]) for _ in range(replicates)],
                          dtype=torch.float64)
    value, tail = metric(x), (1 - level) / 2
    low, high = (2 * value - torch.quantile(values, q).item() for q in (1 - tail, tail))
    return values.std().item(), (low, high)
