"""From noise to samples: `sample`, commands, demo grids and metrics all draw by these functions."""

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
    """The config section "sampling": how to sample a model. It is stored in checkpoints.

    With neither sampler nor schedule, the recommended recipe for the number of steps is used.

    Attributes:
        sampler: The name of a sampler.
        steps: Number of steps.
        schedule: The name of a schedule.
        guidance: Scale of classifier-free guidance; 1 disables it.
        guidance_interval: Noise levels (low, high] with guidance; null for all.
    """

    sampler: str | None = None
    steps: int = 20
    schedule: str | None = None
    guidance: float = 1.0
    guidance_interval: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f'steps must be >= 1; got {self.steps}')
        for key, known in (('sampler', SAMPLERS), ('schedule', BETWEEN)):
            if getattr(self, key) not in (None, *known):
                raise ValueError(f'{key}: {unknown(key, getattr(self, key), known)}')
        if self.sampler is not None and SAMPLERS[self.sampler].needs_pair and self.guidance > 1:
            raise ValueError(
                f'guidance must be from 0 to 1 with {self.sampler}, whose scale differs from the '
                'usual '
                f'weight; got {self.guidance}'
            )
        low, high = self.guidance_interval or (0.0, math.inf)
        if not 0 <= low < high:
            raise ValueError(
                'guidance_interval must be two noise levels in ascending order; got '
                f'{self.guidance_interval}'
            )


def choose_sampling(section: Mapping[str, Any], **requested: Any) -> SamplingConfig:
    """Return the "sampling" section of a config, overridden by requested values other than None.

    A CFG++ sampler has its own scale, from 0 to 1 (default: 1), so the guidance of the section is
    ignored for it.

    Args:
        section: The section. Keys that are not fields of SamplingConfig are ignored.
        **requested: Fields of SamplingConfig. A sampler may be a title, 'DPM++ 2M Karras', or the
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
    """Return the noise levels, the sampler and its options for a model, as `sample` chooses them.

    Args:
        denoiser: The denoiser before guidance. Its attributes sigma_min and sigma_max are its range
            of noise levels.
        sampling: The sampler, the schedule and the number of steps. With neither sampler nor
            schedule, the recommended recipe for this number of model calls is used.
        guided: True if classifier-free guidance is applied to it.
        sigma_min: The lowest noise level above 0, in place of the denoiser's or the recipe's.
        sigma_max: The first noise level, in place of the denoiser's.
        sampler: A function, in place of the sampler of the section.
    """
    # NaN stands for guidance by an unknown scale.
    scale = (math.nan if sampling.guidance == 1 else sampling.guidance) if guided else 1.0
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
        null: The replacements for removed conditions, by name.
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
    ).to(device)


def split_title(sampler: Any) -> tuple[Any, str | None]:
    """Return a sampler and the schedule in its title: 'DPM++ 2M Karras' is ('dpmpp_2m', 'karras').

    Args:
        sampler: A name, a title, or anything else, which is returned unchanged.
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
    """Convert lists of numbers and numpy arrays in a condition of n items to tensors.

    Args:
        value: A tree of conditions.
        n: Number of items.
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
    """Raise a TypeError for pipelines and networks that are not denoisers, and for non-callables.

    Args:
        model: The candidate.
    """
    inner = _network_inside(model)
    if any(base.__module__.startswith('diffusers.') for base in type(inner).__mro__):
        raise TypeError(
            f'denoiser must be a function D(x, sigma, **cond); got a diffusers '
            f'{type(inner).__name__}. Wrap its network: '
            'K.external.from_diffusers(pipe.unet, pipe.scheduler)'
        )
    if type(inner).__module__.startswith(f'{__package__}.models.'):
        raise TypeError(
            f'denoiser must be a function D(x, sigma, **cond); got a bare network, '
            f'{type(inner).__name__}. Wrap it: '
            'K.config.make_denoiser_wrapper(config)(network)'
        )
    if hasattr(model, 'apply_model') and not hasattr(model, 'sigmas'):
        raise TypeError(
            f'denoiser must be a function D(x, sigma, **cond); got {type(model).__name__} with '
            'apply_model. Wrap it: K.external.wrap(model)'
        )
    if not callable(model):
        raise TypeError(
            f'denoiser must be a function D(x, sigma, **cond); got {type(model).__name__}'
        )
    if not _takes_two(inner):
        raise TypeError(
            f'denoiser must be a function D(x, sigma, **cond); got {type(inner).__name__}, '
            'which takes no sigma. Wrap the network as a denoiser: K.external.wrap(network) '
            'for known families'
        )


def _network_inside(model: Any) -> Any:
    """Return the network inside torch.compile and torch's parallel wrappers."""
    while isinstance(model, nn.Module) and type(model).__module__.startswith('torch.'):
        parts = dict(model.named_children())
        held = parts.get('_orig_mod', parts.get('module'))
        if held is None:
            break
        model = held
    return model


def _takes_two(model: Any) -> bool:
    """Return True if a model can be called with two positional arguments."""
    try:
        call = model.forward if isinstance(model, nn.Module) else model
        inspect.signature(call).bind_partial(None, None)
    except TypeError:
        return False
    except ValueError:  # no signature to read
        return True
    return True


class Plan(NamedTuple):
    """The noise levels, the sampler and the options for a model, and the reason."""

    sigmas: Tensor
    sampler: Any
    options: Mapping[str, Any]
    why: str


def explain_plan(sigmas: Tensor, sampler: Any, options: Mapping[str, Any], why: str) -> str:
    """Return a plan in words: the sampler, its options, the levels and the reason.

    Args:
        sigmas: The noise levels.
        sampler: The sampler.
        options: Its options.
        why: The reason.
    """
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
    """Return the plan of `sample`: the recommended one if neither sampler nor schedule is given.

    Args:
        denoiser: The denoiser before guidance.
        steps: Number of steps; 20 by default.
        sampler: See `sample`.
        schedule: See `sample`.
        sigma_min: See `sample`.
        sigma_max: See `sample`.
        options: The options of the sampler.
        traits: The range of levels and the guidance; by default those of the denoiser.

    Raises:
        ValueError: If the arguments do not fit each other.
    """
    traits = Traits.of(denoiser, sigma_min, sigma_max) if traits is None else traits
    entry = None if sampler is None else find_sampler(sampler)
    own = None if entry is None else entry.levels
    if isinstance(schedule, str) or (schedule is None and own is None):
        steps = 20 if steps is None else _whole('steps', steps)
        if steps < 1:
            raise ValueError(f'steps must be >= 1; got {steps}')
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
            'steps, sigma_min and sigma_max must be left out where the noise levels are given, '
            f'which make {calls} steps from {sigmas[0]:g}; got steps={steps}, '
            f'sigma_min={sigma_min} and sigma_max={sigma_max}'
        )
    return Plan(
        sigmas, 'dpmpp_2m' if sampler is None else sampler, options, 'the noise levels were given'
    )


def _recommended(
    denoiser: DenoiseFn, steps: int, options: Mapping[str, Any], traits: Traits
) -> Plan:
    """Return the plan of a probed model by its probe, else the recommended recipe."""
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
    """Return the plan for a given sampler or schedule.

    whole_range: True if neither end of the noise levels was given.
    """
    usual, name = sampler is None, schedule or 'karras'
    sampler = 'dpmpp_2m' if sampler is None else sampler
    low, high = traits.sigma_min, traits.sigma_max
    why = f'sampler {"usual" if usual else "given"}, schedule {"given" if schedule else "usual"}'
    table = getattr(denoiser, 'sigmas', None)
    if name in DISCRETE_SCHEDULES and (
        name not in SCHEDULES or (table is not None and whole_range)
    ):
        if table is None:
            raise ValueError(
                f'schedule must not be {name!r} for a denoiser without a table of noise levels '
                f'(an attribute sigmas); use one of {", ".join(BETWEEN)}'
            )
        if not whole_range:
            raise ValueError(
                f'sigma_min and sigma_max must be left out with the schedule {name!r}, which takes '
                f'levels from the table of the denoiser; got {low} and {high}'
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
            f'sigma_min and sigma_max must be left out with the schedule {name}, which has its own '
            f'noise levels; got {low} and {high}. Other schedules are {", ".join(BETWEEN)}'
        )
    return Plan(made(steps), sampler, options, why)


def known_levels(denoiser: DenoiseFn, sigmas: Tensor) -> Tensor:
    """Return the nearest levels that the network of the denoiser knows, if it has `round_sigma`.

    Args:
        denoiser: The denoiser.
        sigmas: The noise levels.
    """
    round_sigma = getattr(denoiser, 'round_sigma', None)
    if round_sigma is None:
        return sigmas
    return torch.where(sigmas > 0, torch.as_tensor(round_sigma(sigmas)).to(sigmas), 0)


def stops_at(sampler: Any, sigma_min: float) -> dict[str, float]:
    """Return the option of the last level, for samplers that take two ends in place of levels.

    Args:
        sampler: The sampler.
        sigma_min: The last level.
    """
    return {'sigma_min': sigma_min} if 'sigma_min' in find_sampler(sampler).takes else {}


def device_of(denoiser: Any) -> Any:
    """Return the device of the parameters of a denoiser, or the CPU.

    Args:
        denoiser: The denoiser.
    """
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
        raise ValueError(f'{name} must be an integer; got {value!r}') from None


def batch_shape(shape_or_x: Any) -> list[int]:
    """Return the shape [B, ...] of a batch that is given, or whose shape is given.

    Args:
        shape_or_x: A shape or a tensor.

    Raises:
        ValueError: If it is not the shape of a batch.
    """
    shape = shape_or_x.shape if isinstance(shape_or_x, Tensor) else shape_or_x
    try:
        sides = [operator.index(side) for side in shape]
    except (TypeError, RuntimeError):
        sides = []
    if len(sides) < 2 or min(sides[1:]) < 1 or sides[0] < 0:
        raise ValueError(
            'shape_or_x must be a batch, or the shape of one, such as [4, 3, 64, 64]; got '
            f'{show_value(shape)}'
        )
    return sides


def make_seeds(seeds: Any, n: int) -> list[int]:
    """Return a seed for each of n samples.

    Args:
        seeds: A seed for each; one number, from which they are derived; or None for a number from
            torch's global generator.
        n: Number of samples.

    Raises:
        ValueError: If there is another number of seeds.
    """
    if seeds is None:
        seeds = torch.randint(0, 2**63 - 1, [])
    if not hasattr(seeds, '__len__') or getattr(seeds, 'ndim', 1) == 0:
        seed = _whole('seeds', seeds)
        return [derive_seed(seed, 'sample', i) for i in range(n)]
    if len(seeds) != n:
        raise ValueError(
            f'seeds must be one number, or one for each of {n} samples; got {len(seeds)}'
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

    Raises:
        ValueError: If an argument is out of its range.
    """
    cond, entry = cond or {}, find_sampler(sampler)
    for key, value in cond.items():
        _check_entries(key, value, len(seeds))
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
        given = None if x is None else x[part].to(device)
        drawn = sample_batch(
            model, shape, sigmas, entry, seeds[part], here, report, device, options, given
        )
        batches.append((decode(drawn) if decode else drawn).float().cpu())
    return torch.cat(batches) if batches else torch.empty(0, *shape)


def _check_entries(key: str, value: Any, n: int) -> None:
    """Raise a ValueError for a list with one value per item of another length than the items."""
    if (
        isinstance(value, Tensor)
        and value.ndim == 1
        and len(value) not in (1, n)
        and not is_shared(value)
    ):
        raise ValueError(
            f'the condition {key!r} must have one entry for each of {n} seeds; got {len(value)}. '
            'Wrap a vector that all samples share in K.share(...)'
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
    """
    takes = list(inspect.signature(entry.function).parameters)
    odd = sorted(options.keys() - set(takes))
    if odd:
        raise ValueError(
            f'options must be options of sample_{entry.name}, {", ".join(takes[3:])}; got '
            f'{odd[0]!r}'
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
    # with return_info dpm_adaptive returns a pair
    x = found[0] if isinstance(found, tuple) else found
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


def _ends_of(entry: Sampler, sigmas: Tensor) -> dict[str, Any]:
    """Return the arguments of a sampler that takes two ends in place of levels."""
    positive = sigmas[sigmas > 0]
    ends = {'sigma_min': float(positive[-1]), 'sigma_max': float(positive[0])}
    return {**ends, 'n': len(sigmas) - 1} if 'n' in entry.takes else ends
