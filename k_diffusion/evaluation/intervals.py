"""Standard errors and intervals by resampling."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..core.incomplete_beta import student_quantile
from ..core.random import generator
from .arrays import as_tensor, whole_number

#: Number of parts of the jackknife.
BLOCKS = 20


def jackknife(
    metric: Callable[[Tensor], float], x: Any, blocks: int = BLOCKS
) -> tuple[float, float, float]:
    """Return metric(x), the value without its bias, and the standard error over the draw of x.

    The rows of x are independent and identically distributed. With m the value, m_i the one without
    block i of g, and m. their mean, the second value is g m - (g - 1) m. and the error sqrt((g - 1)
    / g sum (m_i - m.)^2). Rows of one kind (one class) must not be adjacent.

    Args:
        metric: A function of rows.
        x: The rows, [N, ...].
        blocks: Number of parts.

    Raises:
        ValueError: If there are fewer than 4 rows.

    References:
        Miller (1974), "The jackknife - a review", doi:10.1093/biomet/61.1.1.
    """
    x, parts = as_tensor(x, 'x'), min(whole_number(blocks, 'blocks', 2), len(x))
    if len(x) < 4:
        raise ValueError(f'x must have at least 4 rows for a standard error; got {len(x)}')
    split = x.tensor_split(min(parts, len(x) // 2))
    value, count = metric(x), len(split)
    without = [metric(torch.cat([*split[:i], *split[i + 1 :]])) for i in range(count)]
    mean = math.fsum(without) / count
    stderr = math.sqrt((count - 1) / count * math.fsum((one - mean) ** 2 for one in without))
    return value, count * value - (count - 1) * mean, stderr


def interval(
    value: float, stderr: float, freedom: float, level: float = 0.95
) -> tuple[float, float]:
    """Return the interval of a value with a standard error, by Student's t.

    Args:
        value: The value.
        stderr: Its standard error.
        freedom: The degrees of freedom of the error.
        level: The confidence level.

    Raises:
        ValueError: If freedom or level is out of range.
    """
    if not freedom > 0 or not 0 < level < 1:
        raise ValueError(f'freedom must be > 0 and level in (0, 1); got {freedom} and {level}')
    half = student_quantile((1 + level) / 2, freedom) * stderr
    return value - half, value + half


def bootstrap(
    metric: Callable[[Tensor], float],
    x: Any,
    replicates: int = 100,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, tuple[float, float]]:
    """Return the standard error of metric(x) and its interval (low, high) over the draw of x.

    Sets of the same size are drawn with repetition. The interval is the basic one, 2 metric(x)
    minus the quantiles. It is one of the value without its bias: where repeated rows raise the
    metric, as they do the Frechet distance, it is below metric(x); use `jackknife` there.

    Args:
        metric: A function of rows.
        x: The rows, [N, ...].
        replicates: Number of sets.
        level: The confidence level.
        seed: Seed of the draws.

    References:
        Davison & Hinkley (1997), "Bootstrap Methods and their Application", section 5.2.
    """
    x = as_tensor(x, 'x')
    if x.ndim < 1 or len(x) < 2:
        raise ValueError(f'x must have at least 2 rows; got shape {list(x.shape)}')
    whole_number(replicates, 'replicates', 2)
    if not 0 < level < 1:
        raise ValueError(f'level must be in (0, 1); got {level}')
    source = generator(seed, 'bootstrap')
    values = torch.tensor(
        [
            metric(x[torch.randint(len(x), [len(x)], generator=source).to(x.device)])
            for _ in range(replicates)
        ],
        dtype=torch.float64,
    )
    value, tail = metric(x), (1 - level) / 2
    low, high = (2 * value - torch.quantile(values, q).item() for q in (1 - tail, tail))
    return values.std().item(), (low, high)
