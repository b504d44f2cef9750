"""Time travel: repeat each step with fresh noise, so that guidance and data come to agree."""

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
    """Make a sampler that repeats steps in an interval of noise levels.

    Each step that starts in the interval is taken `times` times, with noise added in between. With
    times 1 the sampler is returned unchanged.

    Args:
        sample: A function (model, x, sigmas, ...) -> x, preferably one without a history across
            steps, such as euler_ancestral.
        times: Number of times each step is taken, >= 1.
        interval: Noise levels (low, high].
        noise: Unit noise for (sigma_next, sigma), new at each call; by default the `noise_sampler`
            of the call, else torch's global generator.

    Returns:
        A sampler.

    References:
        Lugmayr et al. (2022), arXiv:2201.09865.
        Yu et al. (2023), arXiv:2303.09833.
    """
    check_function('sample', sample, '(model, x, sigmas, ...) -> x')
    if times < 1:
        raise ValueError(f'times must be an integer >= 1; got {times}')
    if times == 1:
        return sample
    low, high = interval

    @functools.wraps(sample)
    def sample_with_travel(
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
            step_callback = (
                None if callback is None else lambda info, i=i: callback({**info, 'i': i})
            )
            for repeat in range(repeats):
                x = sample(model, x, sigmas[i : i + 2], *args, callback=step_callback, **kwargs)
                if repeat < repeats - 1:
                    x = torch.add(
                        x, own(sigma_next, sigma), alpha=math.sqrt(sigma**2 - sigma_next**2)
                    )
        return x

    sample_with_travel.__dict__.pop('entry', None)  # the properties of the sampler do not hold here
    return sample_with_travel
