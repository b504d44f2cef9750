"""Schedules optimised for published models.

References:
    Sabour et al. (2024), arXiv:2404.14507 (Align Your Steps).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ..core.registry import unknown
from .parts import SCHEDULES, append_zero, check_count, read_levels, steps_between

#: The eleven published levels of each model, for ten steps. The last one is for interpolation only,
#: because sampling ends at 0.
AYS_LEVELS = {
    'sd15': (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    'sdxl': (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
    'svd': (700.00, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002),
}

#: The 32 levels of image programs (reForge) by the same method, down to 0.015.
AYS_32_LEVELS = {
    'sd15': (
        14.615,
        11.23951352,
        8.64363081,
        6.64729424,
        5.57250862,
        4.71648546,
        3.99196065,
        3.5195609,
        3.13490466,
        2.79228788,
        2.48773628,
        2.21663865,
        1.97508351,
        1.7793172,
        1.61475335,
        1.46540953,
        1.314849,
        1.16642497,
        1.03475547,
        0.91573744,
        0.80748169,
        0.71202361,
        0.621739,
        0.53065202,
        0.4529096,
        0.37491455,
        0.27461819,
        0.2011529,
        0.14105873,
        0.06682881,
        0.03166121,
        0.015,
    ),
    'sdxl': (
        14.615,
        11.1491618,
        8.50522127,
        6.48827151,
        5.43707402,
        4.60398619,
        3.89854704,
        3.27407457,
        2.74396527,
        2.29968659,
        1.95448514,
        1.67108715,
        1.42878152,
        1.23181009,
        1.06789649,
        0.92579443,
        0.80290886,
        0.69660121,
        0.60436903,
        0.52852552,
        0.46773344,
        0.41393379,
        0.36258186,
        0.31008517,
        0.26518925,
        0.22326461,
        0.17653877,
        0.13959192,
        0.10587381,
        0.05519369,
        0.02877334,
        0.015,
    ),
}


@SCHEDULES.register('ays')
def get_sigmas_ays(n: int, model: str = 'sd15', device: Any = 'cpu') -> Tensor:
    """Interpolate the published levels of sd15, sdxl or svd log-linearly: [n + 1].

    The levels are those of the model, regardless of sigma_min and sigma_max. Ten steps use the
    published list. Any other n interpolates it at n + 1 equal distances, and 0 replaces the last
    level.

    Args:
        n: Number of steps.
        model: 'sd15' (Stable Diffusion 1.5), 'sdxl' or 'svd' (Stable Video Diffusion).
        device: The device of the result.

    References:
        Sabour et al. (2024), arXiv:2404.14507.
    """
    return steps_between(n, _levels(AYS_LEVELS, model), device)


@SCHEDULES.register('ays_11')
def get_sigmas_ays_11(n: int, model: str = 'sd15', device: Any = 'cpu') -> Tensor:
    """Interpolate all eleven published levels of sd15, sdxl or svd, then append 0: [n + 1].

    Eleven steps use the published list; any other n interpolates it log-linearly at n equal
    distances. `ays` replaces the last level by 0.

    Args:
        n: Number of steps.
        model: 'sd15', 'sdxl' or 'svd'.
        device: The device of the result.

    References:
        Sabour et al. (2024), arXiv:2404.14507.
    """
    return _all_of(n, _levels(AYS_LEVELS, model), device)


@SCHEDULES.register('ays_32')
def get_sigmas_ays_32(n: int, model: str = 'sd15', device: Any = 'cpu') -> Tensor:
    """Interpolate the 32 levels of sd15 or sdxl, then append 0: [n + 1].

    Any n other than 32 interpolates them log-linearly at n equal distances.

    Args:
        n: Number of steps.
        model: 'sd15' or 'sdxl'.
        device: The device of the result.

    References:
        Sabour et al. (2024), arXiv:2404.14507.
    """
    return _all_of(n, _levels(AYS_32_LEVELS, model), device)


def _all_of(n: int, levels: Sequence[float], device: Any) -> Tensor:
    """Interpolate a list at n equal distances and append 0."""
    check_count(n)
    return append_zero(read_levels(n, levels).float()).to(device)


def _levels(lists: Mapping[str, Sequence[float]], model: str) -> Sequence[float]:
    """Return the list of a model."""
    if model not in tuple(lists):
        raise ValueError(unknown('model', model, lists))
    return lists[model]
