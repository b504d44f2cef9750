"""Lists of levels found by a search for one model: OptimalSteps and GITS."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..core.registry import unknown
from .flow import flow_time_to_sigma
from .parts import SCHEDULES, append_zero, check_count, read_levels, steps_between

#: Flow times of OptimalSteps: ten steps for Flux, twenty for Wan 2.1, forty for Chroma. The last
#: one is for interpolation only.
OPTIMAL_TIMES = {
    'flux': (0.9968, 0.9886, 0.9819, 0.975, 0.966, 0.9471, 0.9158, 0.8287, 0.5512, 0.2808, 0.001),
    'wan': (
        1.0,
        0.997,
        0.995,
        0.993,
        0.991,
        0.989,
        0.987,
        0.985,
        0.98,
        0.975,
        0.973,
        0.968,
        0.96,
        0.946,
        0.927,
        0.902,
        0.864,
        0.776,
        0.539,
        0.208,
        0.001,
    ),
    'chroma': (
        0.992,
        0.99,
        0.988,
        0.985,
        0.982,
        0.978,
        0.973,
        0.968,
        0.961,
        0.953,
        0.943,
        0.931,
        0.917,
        0.9,
        0.881,
        0.858,
        0.832,
        0.802,
        0.769,
        0.731,
        0.69,
        0.646,
        0.599,
        0.55,
        0.501,
        0.451,
        0.402,
        0.355,
        0.311,
        0.27,
        0.232,
        0.199,
        0.169,
        0.143,
        0.12,
        0.101,
        0.084,
        0.07,
        0.058,
        0.048,
        0.001,
    ),
}

#: The level in place of flow time 1, whose level is infinite.
HIGHEST = 4096.0

#: GITS for Stable Diffusion 1.5 with the coefficient 1.2: a list for each number of steps from 2 to
#: 20. Its last level stands for 0.
GITS_LEVELS = (
    (14.61464119, 0.803307, 0.02916753),
    (14.61464119, 1.56271636, 0.52423614, 0.02916753),
    (14.61464119, 2.36326075, 0.92192322, 0.36617002, 0.02916753),
    (14.61464119, 2.84484982, 1.24153244, 0.59516323, 0.25053367, 0.02916753),
    (14.61464119, 5.85520077, 2.05039096, 0.95350921, 0.45573691, 0.17026083, 0.02916753),
    (
        14.61464119,
        5.85520077,
        2.45070267,
        1.24153244,
        0.64427125,
        0.29807833,
        0.09824532,
        0.02916753,
    ),
    (
        14.61464119,
        5.85520077,
        2.45070267,
        1.36964464,
        0.803307,
        0.45573691,
        0.25053367,
        0.09824532,
        0.02916753,
    ),
    (
        14.61464119,
        5.85520077,
        2.84484982,
        1.61558151,
        0.95350921,
        0.59516323,
        0.36617002,
        0.19894916,
        0.09824532,
        0.02916753,
    ),
    (
        14.61464119,
        5.85520077,
        2.84484982,
        1.67050016,
        1.08895338,
        0.74807048,
        0.50118381,
        0.32104823,
        0.19894916,
        0.09824532,
        0.02916753,
    ),
    (
        14.61464119,
        5.85520077,
        2.95596409,
        1.84880662,
        1.24153244,
        0.83188516,
        0.59516323,
        0.41087446,
        0.27464288,
        0.17026083,
        0.09824532,
        0.02916753,
    ),
    (
        14.61464119,
        5.85520077,
        3.07277966,
        1.98035145,
        1.36964464,
        0.95350921,
        0.69515091,
        0.50118381,
        0.36617002,
        0.25053367,
        0.17026083,
        0.09824532,
        0.02916753,
    ),
    (
        14.61464119,
        6.77309084,
        3.46139455,
        2.36326075,
        1.56271636,
        1.08895338,
        0.803307,
        0.59516323,
        0.45573691,
        0.34370604,
        0.25053367,
        0.17026083,
        0.09824532,
        0.02916753,
    ),
    (
        14.61464119,
        6.77309084,
        3.46139455,
        2.45070267,
        1.61558151,
        1.162866,
        0.86115354,
        0.64427125,
        0.50118381,
        0.38853383,
        0.29807833,
        0.22545385,
        0.17026083,
        0.09824532,
        0.02916753,
    ),
    (
        14.61464119,
        7.49001646,
        4.65472794,
        3.07277966,
        2.12350607,
        1.51179266,
        1.08895338,
        0.83188516,
        0.64427125,
        0.50118381,
        0.38853383,
        0.29807833,
        0.22545385,
        0.17026083,
        0.09824532,
        0.02916753,
    ),
    (
        14.61464119,
        7.49001646,
        4.65472794,
        3.07277966,
        2.12350607,
        1.51179266,
        1.08895338,
        0.83188516,
        0.64427125,
        0.50118381,
        0.41087446,
        0.32104823,
        0.25053367,
        0.19894916,
        0.13792117,
        0.09824532,
        0.02916753,
    ),
    (
        14.61464119,
        7.49001646,
        4.65472794,
        3.07277966,
        2.12350607,
        1.51179266,
        1.08895338,
        0.83188516,
        0.64427125,
        0.50118381,
        0.41087446,
        0.34370604,
        0.27464288,
        0.22545385,
        0.17026083,
        0.13792117,
        0.09824532,
        0.02916753,
    ),
    (
        14.61464119,
        7.49001646,
        4.65472794,
        3.07277966,
        2.19988537,
        1.61558151,
        1.20157266,
        0.92192322,
        0.72133851,
        0.57119018,
        0.45573691,
        0.36617002,
        0.29807833,
        0.25053367,
        0.19894916,
        0.17026083,
        0.13792117,
        0.09824532,
        0.02916753,
    ),
    (
        14.61464119,
        7.49001646,
        4.65472794,
        3.07277966,
        2.19988537,
        1.61558151,
        1.24153244,
        0.95350921,
        0.74807048,
        0.59516323,
        0.4783645,
        0.38853383,
        0.32104823,
        0.27464288,
        0.22545385,
        0.19894916,
        0.17026083,
        0.13792117,
        0.09824532,
        0.02916753,
    ),
    (
        14.61464119,
        7.49001646,
        4.65472794,
        3.07277966,
        2.19988537,
        1.61558151,
        1.24153244,
        0.95350921,
        0.74807048,
        0.59516323,
        0.50118381,
        0.41087446,
        0.34370604,
        0.29807833,
        0.25053367,
        0.22545385,
        0.19894916,
        0.17026083,
        0.13792117,
        0.09824532,
        0.02916753,
    ),
)


@SCHEDULES.register('optimal_steps')
def get_sigmas_optimal_steps(n: int, model: str = 'flux', device: Any = 'cpu') -> Tensor:
    """Interpolate the OptimalSteps levels of flux (10 steps), wan (20) or chroma (40): [n + 1].

    The levels are those of the model, regardless of bounds and shift. Any other n interpolates the
    list of flow times log-linearly at n + 1 equal distances, and 0 replaces the last level. The
    lists of flux and wan are the authors', that of chroma is ComfyUI's.

    Args:
        n: Number of steps.
        model: 'flux', 'wan' or 'chroma'.
        device: The device of the result.

    References:
        Pei et al. (2025), arXiv:2503.21774.
    """
    if model not in tuple(OPTIMAL_TIMES):
        raise ValueError(unknown('model', model, OPTIMAL_TIMES))
    check_count(n)
    times = read_levels(n + 1, OPTIMAL_TIMES[model])[:-1]
    return append_zero(flow_time_to_sigma(times).clamp(max=HIGHEST).float()).to(device)


@SCHEDULES.register('gits')
def get_sigmas_gits(n: int, device: Any = 'cpu') -> Tensor:
    """Take the levels that GITS found for Stable Diffusion 1.5: [n + 1].

    There is a list for each n up to 20. More steps interpolate that of 20 log-linearly at n + 1
    equal distances.

    Args:
        n: Number of steps.
        device: The device of the result.

    References:
        Chen et al. (2024), arXiv:2405.11326.
    """
    check_count(n)
    return steps_between(n, GITS_LEVELS[min(max(n, 2), len(GITS_LEVELS) + 1) - 2], device)
