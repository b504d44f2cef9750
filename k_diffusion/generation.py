"""Noise -> sampler -> images: `sample`, the commands, demo grids and metrics all draw by these
functions.
"""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .core.arguments import show_value
from .core.conditions import convert_tensors, is_shared, select_entries
from .core.devices import choose_device
from .core.protocols import DenoiseFn
from .core.random import derive_seed, randn_items
from .core.registry import unknown
from .core.wrapping import select_items
from .guidance import classifier_free
from .recipes import Probe, Traits, recommended
from .sampling import SAMPLERS, Request, Sampler, find_sampler, make_noise_sampler, requests
from .sampling.loop import levels
from .sampling.registry import plain_name
from .schedules import BETWEEN, DISCRETE_SCHEDULES, SCHEDULES


@dataclass
class SamplingConfig:
    """The config section "sampling": how to sample a model; it is stored in its checkpoints.

    With neither sampler nor schedule, the recommended recipe for the number of steps is used.
    """

    sampler: str | None = None
    steps: int = 20
    schedule: str | None = None
    guidance: float = 1.0  # scale of classifier-free guidance; 1: none
    guidance_interval: tuple[float, float] | None = None  # the noise levels it acts at; null: all

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f'steps must be at least 1; got {self.steps}')
        for key, known in (('sampler', SAMPLERS), ('schedule', BETWEEN)):
            if getattr(self, key) not in (None, *known):
                raise ValueError(f'{key}: {unknown(key, getattr(self, key), known)}')
        if self.sampler is not None and SAMPLERS[self.sampler].needs_pair and self.guidance > 1:
            raise ValueError(
                f'guidance must be from 0 to 1 with {self.sampler}, which takes a scale of 0 to 1 '
                'in place of '
                f'the usual weight; got {self.guidance}'
            )
        low, high = self.guidance_interval or (0.0, math.inf)
        if not 0 <= low < high:
            raise ValueError(
                'guidance_interval must be two noise levels, the lower one first; got '
                f'{self.guidance_interval}'
            )


def choose_sampling(section: Mapping[str, Any], **requested: Any) -> SamplingConfig:
    """Return the "sampling" section of a filled config with what is requested, where it is not
    None, in its place.

    A CFG++ sampler has a scale of its own, from 0 to 1 (default: 1): the section's guidance is left
    out for it.

    Args:
        section: The section. Keys that are not fields of SamplingConfig are left out.
        requested: Fields of SamplingConfig. A sampler may be a title, 'DPM++ 2M Karras', or the
            name of a function, 'sample_heun'.
    """
    sampler, named = split_title(requested.get('sampler'))
    if isinstance(sampler, str):
        sampler = sampler.removeprefix('sample_')
    schedule = named if requested.get('schedule') is None else requested['schedule']
    requested = {**requested, 'sampler': sampler, 'schedule': schedule}
    known = {field.name for field in fields(SamplingConfig)}
    own = {key: value for key, value in section.items() if key in known}
    if sampler in SAMPLERS and SAMPLERS[sampler].needs_pair:
        own = {key: value for key, value in own.items() if not key.startswith('guidance')}
    return SamplingConfig(
        **{**own, **{key: value for key, value in requested.items() if value is not None}}
    )


def choose_plan(
    denoiser: DenoiseFn,
    sampling: SamplingConfig,
    guided: bool = False,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    sampler: Any = None,
) -> tuple[Tensor, Any, Mapping[str, Any]]:
    """Return the noise levels, the sampler and its options that a model is sampled with, as
    `sample` chooses them.

    Args:
        denoiser: The denoiser before guidance; its attributes sigma_min and sigma_max are its range
            of noise levels.
        sampling: The sampler, the schedule and the number of steps. With neither sampler nor
            schedule, the recommended recipe for so many model calls is used.
        guided: Whether classifier-free guidance is applied to it.
        sigma_min: The least noise level before 0, in place of the denoiser's or the recipe's.
        sigma_max: The first noise level, in place of the denoiser's.
        sampler: A function, in place of the sampler that the section names.
    """
    scale = (
        (math.nan if sampling.guidance == 1 else sampling.guidance) if guided else 1.0
    )  # NaN: by a scale that is not known
    traits = Traits.of(denoiser, sigma_min, sigma_max, scale, sampling.guidance_interval)
    sampler = sampling.sampler if sampler is None else sampler
    return plan(
        denoiser, sampling.steps, sampler, sampling.schedule, sigma_min, sigma_max, {}, traits
    )[:3]


def apply_guidance(
    denoiser: DenoiseFn, null: Mapping[str, Any], sampling: SamplingConfig
) -> DenoiseFn:
    """Return the denoiser of a conditional model with the guidance of a "sampling" section.

    Args:
        denoiser: The denoiser.
        null: The values that stand for no condition, by name.
        sampling: The section.
    """
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
) -> Tensor:
    """Draws samples [B, ...] from a denoiser in one call, float32, on its device.

    digits = K.sample(denoiser, [10, 1, 16, 16], seeds=0, cond={'class_cond': torch.arange(10)})

    Arguments:
        shape_or_x: the shape of the batch; or where to start from, x [B, ...] at the first level,
            noise included.
        steps: how many (default: 20); with neither sampler nor schedule given, the number of model
            calls. They are spent by the recipe that `K.probe` found best on this denoiser (its
            attribute `probe`), where it was asked for, else by the one recommended for its noise
            levels and guidance.
        sampler: a name, a function sample_<name>, calibration.sampler() or another of their kind;
            dpmpp_2m where only a schedule is given.
        schedule: a name of K.schedules.SCHEDULES (karras where only a sampler is given), of
            DISCRETE_SCHEDULES where the denoiser has a table of levels (`sigmas`), or the noise
            levels themselves.
        seeds: one number (item i is then drawn from it and i), or a number per item; None takes a
            number from torch's global generator. An item depends on its seed and its condition
            alone, whatever the batch size.
        sigma_min: the lowest noise level; by default the denoiser's attribute of this name, else
            0.002.
        sigma_max: the highest noise level; by default the denoiser's attribute, else 80.
        cond: a tree of conditions by name. Tensors whose leading dimension is the number of
            samples, and lists of as many strings, hold an entry for each; everything else is shared
            by all (K.share marks a tensor that is, where its leading dimension is the number of
            samples by chance).
        guidance: the scale of classifier-free guidance; 1 is none.
        null: the values that stand for no conditions, as K.guidance.classifier_free takes them.
        guidance_interval: the noise levels (low, high] at which guidance acts; by default all.
        callback: (how many samples are finished, the sampler's own dict), at each step.
        options: the sampler's own named options.
        explain: print which sampler and noise levels were taken, and why.
    """
    refuse_unwrapped(denoiser)
    x = shape_or_x if isinstance(shape_or_x, Tensor) else None
    shape = batch_shape(shape_or_x)
    if cond is not None and not isinstance(cond, Mapping):
        raise TypeError(
            f"cond must be a dict of conditions by name, {{'class_cond': labels}} for example; "
            f'got {show_value(cond)}'
        )
    sampler, named = split_title(sampler)
    schedule = named if schedule is None else schedule
    traits = Traits.of(denoiser, sigma_min, sigma_max, guidance, guidance_interval)
    sigmas, sampler, options, why = plan(
        denoiser, steps, sampler, schedule, sigma_min, sigma_max, options or {}, traits
    )
    if explain:
        print(explain_plan(sigmas, sampler, options, why))
    if guidance != 1 or null is not None:
        if null is None:
            raise ValueError(
                f'guidance={guidance} needs null, what stands for no condition; '
                "give null={'class_cond': 10} for example"
            )
        denoiser = classifier_free(denoiser, null, guidance, guidance_interval or (0.0, math.inf))
    elif guidance_interval is not None:
        raise ValueError(
            f'guidance_interval is {guidance_interval} and there is no guidance; give a guidance '
            'and null, or leave it out'
        )
    device = (
        choose_device(device)
        if device is not None
        else x.device
        if x is not None
        else device_of(denoiser)
    )
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
    ).to(device)


def split_title(sampler: Any) -> tuple[Any, str | None]:
    """Return a sampler and the schedule that its title names: 'DPM++ 2M Karras' is ('dpmpp_2m',
    'karras').
    """
    if not isinstance(sampler, str) or sampler in SAMPLERS:
        return sampler, None
    plain = plain_name(sampler)
    for schedule in {**SCHEDULES, **DISCRETE_SCHEDULES}:
        name = SAMPLERS.find_name(plain.removesuffix(f'_{schedule}'))
        if name is not None:
            return name, schedule
    return sampler, None


def as_condition(value: Any, n: int) -> Any:
    """Convert lists of numbers and numpy arrays among the entries of a condition of n items to
    tensors.
    """
    if isinstance(value, Mapping):
        return {key: as_condition(entry, n) for key, entry in value.items()}
    if isinstance(value, (list, tuple)) and not all(
        isinstance(entry, (int, float)) for entry in value
    ):
        entries = [as_condition(entry, n) for entry in value]
        return type(value)(*entries) if hasattr(value, '_fields') else type(value)(entries)
    if (
        isinstance(value, Tensor)
        or not hasattr(value, '__len__')
        or isinstance(value, (str, bytes))
    ):
        return value
    return torch.as_tensor(value)


def refuse_unwrapped(model: Any) -> None:
    """Refuse what is no denoiser: pipelines and networks of other programs, and things that
    cannot be called.
    """
    inner = _network_inside(model)
    if any(base.__module__.startswith('diffusers.') for base in type(inner).__mro__):
        raise TypeError(
            f'denoiser must be a function D(x, sigma, **cond); got a {type(inner).__name__} '
            'of diffusers: '
            'wrap its network, K.external.from_diffusers(pipe.unet, pipe.scheduler)'
        )
    if type(inner).__module__.startswith(f'{__package__}.models.'):
        raise TypeError(
            f'denoiser must be a function D(x, sigma, **cond); got a bare network, '
            f'{type(inner).__name__}: '
            'wrap it, K.config.make_denoiser_wrapper(config)(network)'
        )
    if hasattr(model, 'apply_model') and not hasattr(model, 'sigmas'):
        raise TypeError(
            f'denoiser must be a function D(x, sigma, **cond); got a {type(model).__name__} with '
            'apply_model: '
            'wrap it, K.external.wrap(model)'
        )
    if not callable(model):
        raise TypeError(
            f'denoiser must be a function D(x, sigma, **cond); got a {type(model).__name__}'
        )
    if not _takes_two(inner):
        raise TypeError(
            f'denoiser must be a function D(x, sigma, **cond); got a {type(inner).__name__}, '
            'which takes no sigma: wrap the network as a denoiser, K.external.wrap(network) '
            'for those of known families'
        )


def _network_inside(model: Any) -> Any:
    """Return the network inside torch.compile and the parallel wrappers of torch."""
    while isinstance(model, nn.Module) and type(model).__module__.startswith('torch.'):
        parts = dict(model.named_children())
        held = parts.get('_orig_mod', parts.get('module'))
        if held is None:
            break
        model = held
    return model


def _takes_two(model: Any) -> bool:
    try:
        call = model.forward if isinstance(model, nn.Module) else model
        inspect.signature(call).bind_partial(None, None)
    except TypeError:
        return False
    except ValueError:  # no signature to read
        return True
    return True


class Plan(NamedTuple):
    """The noise levels, the sampler and its options that a model is sampled with, and why."""

    sigmas: Tensor
    sampler: Any
    options: Mapping[str, Any]
    why: str


def explain_plan(sigmas: Tensor, sampler: Any, options: Mapping[str, Any], why: str) -> str:
    """Return a plan in words: the sampler, its options, the levels and the reason."""
    name = find_sampler(sampler).name
    given = ', '.join(f'{key}={value}' for key, value in options.items())
    shown = ' '.join(f'{level:.4g}' for level in sigmas.tolist())
    return f'sampler: {name}{f" ({given})" if given else ""}\nlevels: {shown}\nwhy: {why}'


def plan(
    denoiser: DenoiseFn,
    steps: int | None,
    sampler: Any,
    schedule: Any,
    sigma_min: float | None,
    sigma_max: float | None,
    options: Mapping[str, Any],
    traits: Traits | None = None,
) -> Plan:
    """The plan of `sample`; the recommended one where neither sampler nor schedule is named."""
    traits = Traits.of(denoiser, sigma_min, sigma_max) if traits is None else traits
    entry = None if sampler is None else find_sampler(sampler)
    own = None if entry is None else entry.levels
    if isinstance(schedule, str) or (schedule is None and own is None):
        steps = 20 if steps is None else _whole('steps', steps)
        if steps < 1:
            raise ValueError(f'steps is {steps}; it must be at least 1')
        if sampler is None and schedule is None:
            made = _recommended(denoiser, steps, options, traits)
        else:
            made = _named(
                denoiser,
                steps,
                sampler,
                schedule,
                traits,
                (sigma_min, sigma_max) == (None, None),
                options,
            )
        return made._replace(sigmas=known_levels(denoiser, made.sigmas))
    walked: Any = own if schedule is None else schedule
    sigmas = torch.tensor(levels(walked), dtype=torch.float64)
    calls = len(sigmas) - 1 - (0 if entry is None else entry.unasked)
    if (
        steps not in (None, calls)
        or sigma_min is not None
        or not math.isclose(sigmas[0], sigma_max or sigmas[0], rel_tol=1e-4)
    ):
        raise ValueError(
            f'steps={steps}, sigma_min={sigma_min} and sigma_max={sigma_max} were given with '
            'noise levels that make '
            f'{calls} steps from {sigmas[0]:g}; leave them out'
        )
    return Plan(
        sigmas, 'dpmpp_2m' if sampler is None else sampler, options, 'the noise levels were given'
    )


def _recommended(
    denoiser: DenoiseFn, steps: int, options: Mapping[str, Any], traits: Traits
) -> Plan:
    """The plan of a probed model by what was found on it, else by the recommended recipe."""
    probe = getattr(denoiser, 'probe', None)
    recipe = (probe.recipe(steps, traits) if isinstance(probe, Probe) else None) or recommended(
        steps, traits
    )
    options = {**recipe.options, **options}
    return Plan(recipe.levels(steps, traits, options), recipe.sampler, options, recipe.why)


def _named(
    denoiser: DenoiseFn,
    steps: int,
    sampler: Any,
    schedule: str | None,
    traits: Traits,
    whole_range: bool,
    options: Mapping[str, Any],
) -> Plan:
    """The plan where a sampler or a schedule is named. whole_range: neither end of the noise
    levels was given.
    """
    usual, name, sampler = (
        sampler is None,
        schedule or 'karras',
        'dpmpp_2m' if sampler is None else sampler,
    )
    low, high = traits.sigma_min, traits.sigma_max
    why = f'sampler {"usual" if usual else "given"}, schedule {"given" if schedule else "usual"}'
    table = getattr(denoiser, 'sigmas', None)
    if name in DISCRETE_SCHEDULES and (
        name not in SCHEDULES or (table is not None and whole_range)
    ):
        if table is None:
            raise ValueError(
                f'schedule must not be {name!r} for a denoiser without a table of noise levels '
                '(an attribute sigmas); '
                f'take one of {", ".join(BETWEEN)}'
            )
        if not whole_range:
            raise ValueError(
                f'sigma_min and sigma_max must be left out with the schedule {name!r}, which '
                'takes levels from the '
                f"denoiser's table; got {low} and {high}"
            )
        return Plan(
            DISCRETE_SCHEDULES[name](steps, table),
            sampler,
            {**stops_at(sampler, low), **options},
            why,
        )
    made = SCHEDULES[name]
    if name in BETWEEN:
        return Plan(made(steps, low, high), sampler, {**stops_at(sampler, low), **options}, why)
    if not whole_range:
        raise ValueError(
            f'the schedule {name} has noise levels of its own and sigma_min={low}, '
            f'sigma_max={high} were given; '
            f'leave them out, or take one of {", ".join(BETWEEN)}'
        )
    return Plan(made(steps), sampler, options, why)


def known_levels(denoiser: DenoiseFn, sigmas: Tensor) -> Tensor:
    """Return the nearest levels that the denoiser's network knows, where it knows only some."""
    round_sigma = getattr(denoiser, 'round_sigma', None)
    if round_sigma is None:
        return sigmas
    return torch.where(sigmas > 0, torch.as_tensor(round_sigma(sigmas)).to(sigmas), 0)


def stops_at(sampler: Any, sigma_min: float) -> dict[str, float]:
    """The option of samplers that take the two ends in place of a list of levels: where they
    stop.
    """
    return {'sigma_min': sigma_min} if 'sigma_min' in find_sampler(sampler).takes else {}


def device_of(denoiser: Any) -> Any:
    parameters = getattr(denoiser, 'parameters', None)
    return (
        next((parameter.device for parameter in parameters()), torch.device('cpu'))
        if callable(parameters)
        else torch.device('cpu')
    )


def _whole(name: str, value: Any) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise ValueError(f'{name} is {value!r}; it must be a whole number') from None


def batch_shape(shape_or_x: Any) -> list[int]:
    """Return the shape [B, ...] of a batch that is given, or whose shape is."""
    shape = shape_or_x.shape if isinstance(shape_or_x, Tensor) else shape_or_x
    try:
        sides = [operator.index(side) for side in shape]
    except (TypeError, RuntimeError):
        sides = []
    if len(sides) < 2 or min(sides[1:]) < 1 or sides[0] < 0:
        raise ValueError(
            'shape_or_x must be the shape of a batch, [4, 3, 64, 64] for example, or a batch; '
            f'got {show_value(shape)}'
        )
    return sides


def make_seeds(seeds: Any, n: int) -> list[int]:
    """Return a seed for each of n samples: those given, or n that are derived from one number or
    from torch's global generator.
    """
    if seeds is None:
        seeds = torch.randint(0, 2**63 - 1, [])
    if not hasattr(seeds, '__len__') or getattr(seeds, 'ndim', 1) == 0:
        seed = _whole('seeds', seeds)
        return [derive_seed(seed, 'sample', i) for i in range(n)]
    if len(seeds) != n:
        raise ValueError(
            f'{len(seeds)} seeds were given for {n} samples; give one number, or a seed for each'
        )
    return [_whole('a seed', seed) for seed in seeds]


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
) -> Tensor:
    """Draws one sample per seed: [len(seeds), *shape] on the CPU, float32.

    A sample depends on its seed and its condition alone, not on its neighbours or the batch size:
    the start noise and the noise of every step come from the item's own seed.

    Arguments:
        shape: of one item, [C, H, W].
        sigmas: the descending noise levels, as get_sigmas_* give them.
        sampler: a registered name, with or without `sample_`, or anything else that find_sampler
            takes.
        cond: a tree of conditions by name, as `sample` takes it; tensors with an entry per seed are
            passed batch by batch.
        decode: what turns a batch of samples into images (nothing, in pixel space).
        callback: (how many samples are finished, the sampler's own dict), at each step.
        options: the sampler's own named options, {'eta': 0.} say.
        x: [len(seeds), *shape] at the first level, in place of the start noise.
    """
    cond, entry = cond or {}, find_sampler(sampler)
    for key, value in cond.items():
        _check_entries(key, value, len(seeds))
    if batch_size < 1:
        raise ValueError(f'batch_size is {batch_size}; it must be at least 1')
    options = dict(options or {})
    for key in options.keys() & {'seed', 'generator', 'noise_sampler'}:
        raise ValueError(
            f'options holds {key!r}, which would give the items of different batches one noise; '
            'give seeds instead'
        )
    if entry.couples_batch:  # an item's steps must not depend on its neighbours
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
        given = None if x is None else x[part].to(device)
        drawn = sample_batch(
            model, shape, sigmas, entry, seeds[part], here, report, device, options, given
        )
        batches.append((decode(drawn) if decode else drawn).float().cpu())
    return torch.cat(batches) if batches else torch.empty(0, *shape)


def _check_entries(key: str, value: Any, n: int) -> None:
    """Refuse a list of values, one per item as it seems, of another length than there are items."""
    if (
        isinstance(value, Tensor)
        and value.ndim == 1
        and len(value) not in (1, n)
        and not is_shared(value)
    ):
        raise ValueError(
            f'the condition {key!r} has {len(value)} entries for {n} seeds; '
            'give one each, or K.share(...) for a vector that all samples share'
        )


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
) -> Tensor:
    """One batch of `generate`: start noise of the largest sigma, then the sampler, each item
    with its own noise.
    """
    takes = list(inspect.signature(entry.function).parameters)
    odd = sorted(options.keys() - set(takes))
    if odd:
        raise ValueError(
            f'sample_{entry.name} has no option {odd[0]!r}; its options are {", ".join(takes[3:])}'
        )
    if x is None:
        x = randn_items(shape, [derive_seed(seed, 'start') for seed in seeds], device) * float(
            sigmas[0]
        )
    arguments: dict[str, Any] = {
        'extra_args': dict(cond),
        'callback': callback,
        'disable': True,
        **options,
    }
    if 'noise_sampler' in takes:
        arguments['noise_sampler'] = make_noise_sampler(
            x, entry.noise or 'independent', [derive_seed(seed, 'steps') for seed in seeds]
        )
    arguments = {key: value for key, value in arguments.items() if key in takes}
    if 'sigmas' in takes:
        return entry.function(denoise, x, sigmas.to(device), **arguments)
    arguments = {**_ends_of(entry, sigmas), **arguments}
    found = entry.function(denoise, x, **arguments)
    x = (
        found[0] if isinstance(found, tuple) else found
    )  # dpm_adaptive gives its info as well where that is asked for
    return denoise(x, x.new_full([len(x)], arguments['sigma_min']), **cond)


def request_batch(
    entry: Sampler,
    x: Tensor,
    sigmas: Tensor,
    seeds: Sequence[int] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Generator[Request, Any, Tensor]:
    """Run a batch as `sample` does with the model outside (K.sampling.requests), from x [B, ...] at
    the first level.

    Args:
        entry: The sampler.
        x: The noise, [B, ...].
        sigmas: The descending noise levels.
        seeds: One for each item, from which the noise of the steps is drawn; None leaves it to
            torch's global generator.
        options: The sampler's own.

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
    """List the levels at which a sampler asks its model, by a run on zeros.

    Args:
        entry: A sampler whose calls do not depend on the answers (dpm_adaptive's do).
        sigmas: The descending noise levels.
        options: The sampler's own.
        shape: Of one item, where the options hold something of its shape.

    Returns:
        The levels, one for each call, and whether the first call is at the x that the run begins
            with.
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


def _ends_of(entry: Sampler, sigmas: Tensor) -> dict[str, Any]:
    """Return the arguments of a sampler that takes the two ends in place of a list of levels."""
    positive = sigmas[sigmas > 0]
    ends = {'sigma_min': float(positive[-1]), 'sigma_max': float(positive[0])}
    return {**ends, 'n': len(sigmas) - 1} if 'n' in entry.takes else ends
