"""Schedules optimised for published models. Sabour et al. (2024), "Align Your Steps", arXiv:2404.14507."""
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..core.registry import unknown
from .parts import SCHEDULES, append_zero, between_places, check_count, ramp

#: The eleven levels published for ten steps of each model; the last one only serves to interpolate, as sampling ends in 0.
AYS_LEVELS = {
    'sd15': (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    'sdxl': (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
    'svd': (700.00, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002),
}


@SCHEDULES.register('ays')
def get_sigmas_ays(n: int, model: str = 'sd15', device: Any = 'cpu') -> Tensor:
    """The levels of sd15 (Stable Diffusion 1.5), sdxl or svd (Stable Video Diffusion): [n + 1].

    They are the model's own, whatever its bounds: sigma_min and sigma_max are not asked for. Ten steps take the published list; any
    other n reads it at n + 1 equal distances, log-linearly, the last of which then is 0.
    """
    check_count(n)
    if model not in AYS_LEVELS:
        raise ValueError(unknown('model', model, AYS_LEVELS))
    levels = torch.tensor(AYS_LEVELS[model], dtype=torch.float64)
    return append_zero(between_places(levels, ramp(0, len(levels) - 1, n + 1))[:-1].float()).to(device)
