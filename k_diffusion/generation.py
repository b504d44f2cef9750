"""Noise -> sampler -> images: the one door that the command line, demo grids and metrics go through."""
from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .core.protocols import DenoiseFn, NoiseSampler
from .core.random import derive_seed, randn_items
from .core.registry import unknown
from .guidance import time_travel
from .sampling import SAMPLERS, BrownianTreeNoiseSampler, seeded_noise_sampler
from .schedules import SCHEDULES

#: The schedules that go from one noise level to another (the vp one has levels of its own).
BETWEEN = {name: schedule for name, schedule in SCHEDULES.items() if 'sigma_max' in inspect.signature(schedule).parameters}

#: How often each step in an interval of noise levels is taken, and the interval.
Travel = tuple[int, tuple[float, float]]


@dataclass
class SamplingConfig:
    """The config section "sampling": how a model is best sampled, which travels with it; the command line wins."""

    sampler: str = 'dpmpp_2m'
    steps: int = 20
    schedule: str = 'karras'
    guidance: float = 1.                                    # scale of classifier-free guidance; 1: none
    guidance_interval: tuple[float, float] | None = None    # the noise levels it acts at; null: all

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f'steps is {self.steps}; it must be at least 1')
        for key, known in (('sampler', SAMPLERS), ('schedule', BETWEEN)):
            if getattr(self, key) not in known:
                raise ValueError(f'{key}: {unknown(key, getattr(self, key), known)}')
        low, high = self.guidance_interval or (0., math.inf)
        if not 0 <= low < high:
            raise ValueError(f'guidance_interval is {self.guidance_interval}; it must hold two noise levels, the lower one first')


@torch.no_grad()
def generate(denoise: DenoiseFn, shape: Sequence[int], sigmas: Tensor, sampler: str = 'dpmpp_2m', seeds: Sequence[int] = (0,),
             cond: Mapping[str, Tensor] | None = None, decode: Callable[[Tensor], Tensor] | None = None,
             callback: Callable[[int, dict[str, Any]], None] | None = None, batch_size: int = 64, device: Any = 'cpu',
             options: Mapping[str, Any] | None = None, init: Tensor | None = None, travel: Travel | None = None) -> Tensor:
    """Draws one sample per seed: [len(seeds), *shape] on the CPU, float32.

    A sample depends on its seed and its condition alone, not on its neighbours or the batch size: the start noise and the
    noise of every step come from the item's own seed.

    Arguments:
        shape: of one item, [C, H, W].
        sigmas: the descending noise levels, as get_sigmas_* give them.
        sampler: a registered name, with or without `sample_`.
        cond: tensors with one entry per seed, passed to the denoiser batch by batch.
        decode: what turns a batch of samples into images (nothing, in pixel space).
        callback: (how many samples are finished, the sampler's own dict), at each step.
        options: the sampler's own named options, {'eta': 0.} say.
        init: what to go on from instead of nothing, [C, H, W] or one per seed: noise of sigmas[0] is laid over it.
        travel: (times, interval of noise levels), K.guidance.time_travel.
    """
    cond = cond or {}
    for key, value in cond.items():
        if len(value) != len(seeds):
            raise ValueError(f'the condition {key!r} has {len(value)} entries for {len(seeds)} seeds; give one each')
    if batch_size < 1:
        raise ValueError(f'batch_size is {batch_size}; it must be at least 1')
    if SAMPLERS[sampler.removeprefix('sample_')].takes == ('sigma_min', 'sigma_max'):
        batch_size = 1      # an adaptive step suits its whole batch, and an item's image must not depend on its neighbours
    batches = []
    for start in range(0, len(seeds), batch_size):
        chosen = seeds[start:start + batch_size]
        here = {key: value[start:start + batch_size].to(device) for key, value in cond.items()}
        report = None if callback is None else lambda info, start=start: callback(start, info)
        begin = init[start:start + batch_size] if init is not None and init.ndim > len(shape) else init
        x = sample_batch(denoise, shape, sigmas, sampler, chosen, here, report, device, options or {}, begin, travel)
        batches.append((decode(x) if decode else x).float().cpu())
    return torch.cat(batches) if batches else torch.empty(0, *shape)


def sample_batch(denoise: DenoiseFn, shape: Sequence[int], sigmas: Tensor, sampler: str, seeds: Sequence[int],
                 cond: Mapping[str, Tensor], callback: Callable[[dict[str, Any]], None] | None, device: Any,
                 options: Mapping[str, Any], init: Tensor | None = None, travel: Travel | None = None) -> Tensor:
    """One batch of `generate`: start noise of the largest sigma, then the sampler, each item with its own noise."""
    function = SAMPLERS[sampler.removeprefix('sample_')].function
    takes = inspect.signature(function).parameters
    odd = sorted(options.keys() - takes.keys())
    if odd:
        raise ValueError(f'sample_{sampler} has no option {odd[0]!r}; its options are {", ".join(list(takes)[3:])}')
    x = randn_items(shape, [derive_seed(seed, 'start') for seed in seeds], device) * float(sigmas[0])
    x = x if init is None else x + init.to(x)
    arguments: dict[str, Any] = dict(extra_args=dict(cond), callback=callback, disable=True, **options)
    if 'noise_sampler' in takes and 'noise_sampler' not in options:
        arguments['noise_sampler'] = _step_noise(x, sigmas, [derive_seed(seed, 'steps') for seed in seeds],
                                                 churns='s_churn' in takes or travel is not None)
    if travel is not None:
        function = _travelling(function, takes, travel, seeded_noise_sampler(x, [derive_seed(seed, 'travel') for seed in seeds]))
    if 'sigmas' in takes:
        return function(denoise, x, sigmas.to(device), **arguments)
    positive = sigmas[sigmas > 0]
    arguments.update(sigma_min=float(positive[-1]), sigma_max=float(positive[0]))
    if 'n' in takes:
        arguments['n'] = len(sigmas) - 1
    x = function(denoise, x, **arguments)
    return denoise(x, x.new_full([len(x)], float(positive[-1])), **cond)


def _travelling(function: Any, takes: Mapping[str, Any], travel: Travel, noise: NoiseSampler) -> Any:
    if 'sigmas' not in takes:
        raise ValueError(f'{function.__name__} chooses its own steps, so none can be taken again; take another sampler for time travel')
    return time_travel(function, *travel, noise)


def _step_noise(x: Tensor, sigmas: Tensor, seeds: Sequence[int], churns: bool) -> NoiseSampler:
    """Noise of each item's own: from a Brownian path, so that another number of steps follows the same path.

    (Churn and time travel walk back and forth over the same levels and need independent noise each time.)
    """
    if churns:
        return seeded_noise_sampler(x, seeds)
    positive = sigmas[sigmas > 0]
    return BrownianTreeNoiseSampler(x, float(positive[-1]), float(positive[0]), seeds)
