"""Time travel: each step is taken several times over, with fresh noise in between, so that
guidance and data come to agree.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..core.arguments import check_function
from ..core.protocols import NoiseSampler

SampleFn = Callable[..., Tensor]


def time_travel(
    sample: SampleFn,
    times: int = 2,
    interval: tuple[float, float] = (0.0, math.inf),
    noise: NoiseSampler | None = None,
) -> SampleFn:
    """A sampler that takes every step which begins in the interval of noise levels `times` times,
    noised back in between.

    sample: any function (model, x, sigmas, ...) -> x, best one that keeps no history from step to
    step, as euler_ancestral. noise: unit noise for (sigma_next, sigma), new at each call; by
    default the `noise_sampler` that the sampler is called with, else torch's global generator. With
    times 1 it is the sampler itself. Lugmayr et al. (2022), arXiv 2201.09865; Yu et al. (2023),
    arXiv 2303.09833.
    """
    check_function('sample', sample, '(model, x, sigmas, ...) -> x')
    if times < 1:
        raise ValueError(f'times is {times}; it must be at least 1, a step taken once')
    if times == 1:
        return sample
    low, high = interval

    @functools.wraps(sample)
    def travelling(
        model: Any,
        x: Tensor,
        sigmas: Tensor,
        *args: Any,
        callback: Callable[[dict[str, Any]], Any] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        levels = torch.as_tensor(sigmas).tolist()
        own = noise or kwargs.get('noise_sampler') or (lambda *_: torch.randn_like(x))
        for i, (sigma, sigma_next) in enumerate(itertools.pairwise(levels)):
            repeats = times if low < sigma <= high else 1
            shown = None if callback is None else lambda info, i=i: callback({**info, 'i': i})
            for repeat in range(repeats):
                x = sample(model, x, sigmas[i : i + 2], *args, callback=shown, **kwargs)
                if repeat < repeats - 1:
                    x = torch.add(
                        x, own(sigma_next, sigma), alpha=math.sqrt(sigma**2 - sigma_next**2)
                    )
        return x

    travelling.__dict__.pop('entry', None)  # what a sampler says of itself is not true of this
    return travelling
