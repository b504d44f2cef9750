"""Draw samples: run a sampler batch by batch, or list its model calls."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..core.arguments import show_value
from ..core.conditions import convert_tensors, select_entries
from ..core.devices import choose_device
from ..core.protocols import DenoiseFn
from ..core.random import derive_seed, draw_items
from ..core.wrapping import select_items
from ..guidance import classifier_free, guide_flow_map
from ..recipes import Traits
from ..sampling import Request, Sampler, find_sampler, make_noise_sampler, requests
from .arguments import (
    as_condition,
    batch_shape,
    check_entries,
    device_of,
    make_seeds,
    refuse_unwrapped,
)
from .planning import explain_plan, plan
from .settings import SamplingConfig, split_title


def apply_guidance(
    denoiser: DenoiseFn, null: Mapping[str, Any], sampling: SamplingConfig
) -> DenoiseFn:
    """Return the denoiser of a conditional model with the guidance of a "sampling" section.

    Args:
        denoiser: The denoiser.
        null: The replacements for removed conditions, by name.
        sampling: The section.

    Raises:
        ValueError: If there is guidance and the model is a flow map without such an input.
    """
    if getattr(denoiser, 'flow_map', False):
        return guide_flow_map(denoiser, sampling.guidance)
    return classifier_free(
        denoiser, null, sampling.guidance, sampling.guidance_interval or (0.0, math.inf)
    )


def sample(
    denoiser: DenoiseFn,
    shape_or_x: Sequence[int] | Tensor,
    steps: int | None = None,
    sampler: Any = None,
    schedule: str | Tensor | Sequence[float] | None = None,
    seeds: int | Sequence[int] | None = None,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    cond: Mapping[str, Any] | None = None,
    guidance: float = 1.0,
    null: Mapping[str, Any] | None = None,
    guidance_interval: tuple[float, float] | None = None,
    callback: Callable[[int, dict[str, Any]], None] | None = None,
    batch_size: int = 64,
    device: Any = None,
    options: Mapping[str, Any] | None = None,
    explain: bool = False,
    counter_noise: bool = False,
) -> Tensor:
    """Draw samples [B, ...] from a denoiser, float32, on its device.

    Args:
        denoiser: D(x, sigma, **cond).
        shape_or_x: The shape of the batch; or x [B, ...] at the first level, including noise, to
            start from.
        steps: Number of steps (default: 20); with neither sampler nor schedule the number of model
            calls. The recipe is then the one that `K.probe` found best for this denoiser (its
            attribute `probe`), else the one recommended for its noise levels and guidance.
        sampler: A name, a function sample_<name>, or calibration.sampler(); dpmpp_2m if only a
            schedule is given.
        schedule: A name in K.schedules.SCHEDULES (karras if only a sampler is given), in
            DISCRETE_SCHEDULES for a denoiser with a table of levels (`sigmas`), or the noise levels
            themselves.
        seeds: One number (the seed of item i is derived from it and i), or a number for each item;
            None draws a number from torch's global generator. An item depends on its seed and its
            condition only, for any batch size.
        sigma_min: The lowest noise level above 0; by default the attribute of the denoiser, else
            0.002.
        sigma_max: The highest noise level; by default the attribute of the denoiser, else 80.
        cond: A tree of conditions by name. Tensors whose leading dimension is the number of
            samples, and lists of as many strings, hold an entry for each; everything else is shared
            by all. (K.share marks a shared tensor whose leading dimension happens to be the number
            of samples.)
        guidance: Scale of classifier-free guidance; 1 disables it.
        null: Replacements for the conditions that guidance removes, as in
            K.guidance.classifier_free.
        guidance_interval: Noise levels (low, high] with guidance; by default all.
        callback: Called at each step with the number of finished samples and the dict of the
            sampler.
        batch_size: Number of samples drawn at once.
        device: Where to draw; by default the device of x or of the denoiser.
        options: The options of the sampler by name.
        explain: Print the chosen sampler and noise levels, and the reason.
        counter_noise: Draw the noise of all items at once by a counter-based generator, which gives
            a seed the same noise on every device (to rounding); False: each item's by a generator
            of torch for the device.

    Returns:
        The samples.

    Raises:
        TypeError: If denoiser is not a denoiser, or cond is not a dict.
        ValueError: If an argument is out of its range.

    Example:
        digits = K.sample(denoiser, [10, 1, 16, 16], seeds=0, cond={'class_cond': torch.arange(10)})
    """
    refuse_unwrapped(denoiser)
    x = shape_or_x if isinstance(shape_or_x, Tensor) else None
    shape = batch_shape(shape_or_x)
    if cond is not None and not isinstance(cond, Mapping):
        raise TypeError(
            "cond must be a dict of conditions by name, such as {'class_cond': labels}; got "
            f'{show_value(cond)}'
        )
    sampler, title_schedule = split_title(sampler)
    schedule = title_schedule if schedule is None else schedule
    traits = Traits.of(denoiser, sigma_min, sigma_max, guidance, guidance_interval)
    sigmas, sampler, options, why = plan(
        denoiser, steps, sampler, schedule, sigma_min, sigma_max, options or {}, traits
    )
    if explain:
        print(explain_plan(sigmas, sampler, options, why))
    if getattr(denoiser, 'flow_map', False):
        denoiser = guide_flow_map(denoiser, guidance)
    elif guidance != 1 or null is not None:
        if null is None:
            raise ValueError(
                f'null must be given for guidance={guidance}: the replacements for removed '
                "conditions, such as null={'class_cond': 10}"
            )
        denoiser = classifier_free(denoiser, null, guidance, guidance_interval or (0.0, math.inf))
    elif guidance_interval is not None:
        raise ValueError(
            f'guidance_interval must be None without guidance; got {guidance_interval}. Pass '
            'guidance and null, or omit it'
        )
    if device is not None:
        device = choose_device(device)
    else:
        device = device_of(denoiser) if x is None else x.device
    conditions = {key: as_condition(value, shape[0]) for key, value in (cond or {}).items()}
    return generate(
        denoiser,
        shape[1:],
        sigmas,
        sampler,
        make_seeds(seeds, shape[0]),
        conditions,
        None,
        callback,
        batch_size,
        device,
        options,
        x,
        counter_noise,
    ).to(device)


@torch.no_grad()
def generate(
    denoise: DenoiseFn,
    shape: Sequence[int],
    sigmas: Tensor,
    sampler: Any = 'dpmpp_2m',
    seeds: Sequence[int] = (0,),
    cond: Mapping[str, Any] | None = None,
    decode: Callable[[Tensor], Tensor] | None = None,
    callback: Callable[[int, dict[str, Any]], None] | None = None,
    batch_size: int = 64,
    device: Any = 'cpu',
    options: Mapping[str, Any] | None = None,
    x: Tensor | None = None,
    counter_noise: bool = False,
) -> Tensor:
    """Draw one sample per seed: [len(seeds), *shape] on the CPU, float32.

    A sample depends on its seed and its condition only, not on its neighbours or the batch size:
    the start noise and the noise of every step come from its own seed.

    Args:
        denoise: The denoiser.
        shape: The shape of an item, [C, H, W].
        sigmas: The descending noise levels, as get_sigmas_* return them.
        sampler: A registered name, with or without `sample_`, or another argument of find_sampler.
        seeds: A seed for each sample.
        cond: A tree of conditions by name, as in `sample`; tensors with an entry for each seed are
            passed batch by batch.
        decode: Converts a batch of samples to images; None in pixel space.
        callback: Called at each step with the number of finished samples and the dict of the
            sampler.
        batch_size: Number of samples drawn at once.
        device: Where to draw.
        options: The options of the sampler by name, such as {'eta': 0.}.
        x: [len(seeds), *shape] at the first level, in place of the start noise.
        counter_noise: As `sample` takes it.

    Raises:
        ValueError: If an argument is out of its range.
    """
    cond, entry = cond or {}, find_sampler(sampler)
    for key, value in cond.items():
        check_entries(key, value, len(seeds))
    if batch_size < 1:
        raise ValueError(f'batch_size must be >= 1; got {batch_size}')
    options = dict(options or {})
    for key in options.keys() & {'seed', 'generator', 'noise_sampler'}:
        raise ValueError(
            f'options must not hold {key!r}, which would give different batches the same noise; '
            'pass seeds instead'
        )
    if entry.couples_batch:  # the steps of an item must not depend on its neighbours
        options = {'per_item': not options.get('eta'), **options}
        batch_size = 1 if options.get('eta') else batch_size
    batches = []
    for start in range(0, len(seeds), batch_size):
        part = slice(start, start + batch_size)
        items = torch.arange(len(seeds))[part]
        here = convert_tensors(
            select_entries(dict(cond), items, len(seeds)), lambda value: value.to(device)
        )
        model = select_items(denoise, items, [len(seeds), *shape])
        report = None if callback is None else lambda info, start=start: callback(start, info)
        part_start = None if x is None else x[part].to(device)
        samples = sample_batch(
            model,
            shape,
            sigmas,
            entry,
            seeds[part],
            here,
            report,
            device,
            options,
            part_start,
            counter_noise,
        )
        batches.append((decode(samples) if decode else samples).float().cpu())
    return torch.cat(batches) if batches else torch.empty(0, *shape)


def sample_batch(
    denoise: DenoiseFn,
    shape: Sequence[int],
    sigmas: Tensor,
    entry: Sampler,
    seeds: Sequence[int],
    cond: Mapping[str, Any],
    callback: Callable[[dict[str, Any]], None] | None,
    device: Any,
    options: Mapping[str, Any],
    x: Tensor | None = None,
    counter_noise: bool = False,
) -> Tensor:
    """Draw one batch of `generate`, each item with its own noise.

    Args:
        denoise: The denoiser.
        shape: The shape of an item.
        sigmas: The noise levels.
        entry: The sampler.
        seeds: A seed for each item.
        cond: The conditions of the batch.
        callback: Called at each step with the dict of the sampler.
        device: Where to draw.
        options: The options of the sampler.
        x: The start at the first level, in place of noise.
        counter_noise: As `sample` takes it.
    """
    takes = list(inspect.signature(entry.function).parameters)
    odd = sorted(options.keys() - set(takes))
    if odd:
        raise ValueError(
            f'options must be options of sample_{entry.name}, {", ".join(takes[3:])}; got '
            f'{odd[0]!r}'
        )
    if x is None:
        noise = draw_items(shape, seeds, ('start',), device, counter=counter_noise)
        x = noise * float(sigmas[0])
    arguments: dict[str, Any] = {
        'extra_args': dict(cond),
        'callback': callback,
        'disable': True,
        **options,
    }
    if 'noise_sampler' in takes:
        arguments['noise_sampler'] = make_noise_sampler(
            x,
            entry.noise or 'independent',
            [derive_seed(seed, 'steps') for seed in seeds],
            counter=counter_noise,
        )
    arguments = {key: value for key, value in arguments.items() if key in takes}
    if 'sigmas' in takes:
        # A sampler of this package reads the levels: on a GPU that would be a wait.
        levels = sigmas if entry.body is not None else sigmas.to(device)
        return entry.function(denoise, x, levels, **arguments)
    arguments = {**_ends_of(entry, sigmas), **arguments}
    result = entry.function(denoise, x, **arguments)
    # with return_info dpm_adaptive returns a pair
    x = result[0] if isinstance(result, tuple) else result
    return denoise(x, x.new_full([len(x)], arguments['sigma_min']), **cond)


def request_batch(
    entry: Sampler,
    x: Tensor,
    sigmas: Tensor,
    seeds: Sequence[int] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Generator[Request, Any, Tensor]:
    """Run a batch as `sample` does, with the model called outside (K.sampling.requests).

    Args:
        entry: The sampler.
        x: The noise at the first level, [B, ...].
        sigmas: The descending noise levels.
        seeds: One for each item, for the noise of the steps; None uses torch's global generator.
        options: The options of the sampler.

    Returns:
        A generator of requests that returns the samples.
    """
    seed = None if seeds is None else [derive_seed(seed, 'steps') for seed in seeds]
    if 'sigmas' in entry.takes:
        return (yield from requests(entry, x, sigmas, seed=seed, **(options or {})))
    arguments = {**_ends_of(entry, sigmas), **(options or {})}
    x = yield from requests(entry, x, seed=seed, **arguments)
    low = arguments['sigma_min']
    return (yield Request(x, x.new_full([len(x)], low), low, len(sigmas) - 1, None, False, {}, x))


def list_calls(
    entry: Sampler,
    sigmas: Tensor,
    options: Mapping[str, Any] | None = None,
    shape: Sequence[int] = (1,),
) -> tuple[list[float], bool]:
    """List the levels at which a sampler calls its model, by a run on zeros.

    Args:
        entry: A sampler whose calls do not depend on the answers (those of dpm_adaptive do).
        sigmas: The descending noise levels.
        options: The options of the sampler.
        shape: The shape of an item, if the options hold something of its shape.

    Returns:
        The levels, one for each call, and True if the first call is at the x of the start.
    """
    x = torch.zeros([1, *shape], dtype=torch.float64)  # the dtype that every run keeps its x in
    run = request_batch(entry, x, sigmas, [0], options)
    calls: list[float] = []
    at_start = False
    try:
        request = next(run)
        at_start = request.live is x
        while True:
            calls.append(request.level)
            request = run.send((x, x) if request.pair else x)
    except StopIteration:
        return calls, at_start


def resume_calls(
    entry: Sampler,
    levels: Tensor,
    calls: Sequence[float],
    begin: int,
    options: Mapping[str, Any] | None = None,
    shape: Sequence[int] = (1,),
) -> tuple[Tensor, list[float], int]:
    """Plan a run that starts at one of the model calls of a longer run, as image to image does.

    Args:
        entry: The sampler.
        levels: The noise levels of the longer run.
        calls: The levels of its model calls.
        begin: The index of the call.
        options: The options of the sampler.
        shape: See `list_calls`.

    Returns:
        The levels of the shorter run, the levels of its calls, which are as many as remained, and
        the number of calls before those of the sampler. Calls after the sampler's last repeat its
        level.

    Raises:
        ValueError: If the sampler has no run with the remaining number of calls.
    """
    start, remaining = calls[begin], len(calls) - begin
    lower = levels[levels < start * (1 - 1e-9)]
    if 'n' in entry.takes:  # its number of calls follows from n
        lower = levels[len(levels) - max(1, remaining - (len(calls) - len(levels) + 1)) :]
    levels = torch.cat([levels.new_tensor([start]), lower])
    if 'sigma_min' in entry.takes and 'n' not in entry.takes:  # its calls follow from the answers
        return levels, list(calls[begin:]), 0
    own, at_start = list_calls(entry, levels, options, shape)
    unused = max(remaining - len(own), int(not at_start))
    planned = [start] * unused + own
    if (
        unused <= 1
        and len(planned) == remaining
        and all(math.isclose(a, b, rel_tol=1e-5) for a, b in zip(planned, calls[begin:]))
    ):
        return levels, list(calls[begin:]), unused
    planned = [start] * (not at_start) + own
    inside = start > min(calls[: begin + 1]) * (1 + 1e-9)
    if inside or entry.levels is not None or len(planned) > remaining:
        raise ValueError(
            f'strength must let {entry.name} start with a whole step; got time {begin} of '
            f'{len(calls)}, inside one. Use another strength, or a sampler with one model call in '
            'each step and without churn'
        )
    return levels, planned + planned[-1:] * (remaining - len(planned)), int(not at_start)


def _ends_of(entry: Sampler, sigmas: Tensor) -> dict[str, Any]:
    """Return the arguments of a sampler that takes two ends in place of levels."""
    positive = sigmas[sigmas > 0]
    ends = {'sigma_min': float(positive[-1]), 'sigma_max': float(positive[0])}
    return {**ends, 'n': len(sigmas) - 1} if 'n' in entry.takes else ends
