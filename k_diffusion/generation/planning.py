"""Choose the noise levels, the sampler and its options: the recipe, or what the caller names."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..core.protocols import DenoiseFn
from ..recipes import Probe, Traits, map_levels, recommend
from ..sampling import Sampler, find_sampler
from ..sampling.loop import levels
from ..sampling.registry import SAMPLERS
from ..schedules import BETWEEN, DISCRETE_SCHEDULES, SCHEDULES
from .arguments import check_integer
from .settings import SamplingConfig

DISTILLED = 'distilled models'  # the family of the samplers that take flow maps


class Plan(NamedTuple):
    """The noise levels, the sampler and the options for a model, and the reason."""

    sigmas: Tensor
    sampler: Any
    options: Mapping[str, Any]
    why: str


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
    if entry is not None and getattr(denoiser, 'flow_map', False):
        _check_sampler_of_flow_map(entry)
    if isinstance(schedule, str) or (schedule is None and own is None):
        steps = 20 if steps is None else check_integer('steps', steps)
        if steps < 1:
            raise ValueError(f'steps must be >= 1; got {steps}')
        if schedule is None and getattr(denoiser, 'flow_map', False):
            result = _of_flow_map(denoiser, steps, sampler, traits, options)
        elif sampler is None and schedule is None:
            result = _plan_recommended(denoiser, steps, options, traits)
        else:
            result = _plan_by_name(
                denoiser,
                steps,
                sampler,
                schedule,
                traits,
                (sigma_min, sigma_max) == (None, None),
                options,
            )
        return result._replace(sigmas=round_levels(denoiser, result.sigmas))
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
    usual = _usual(denoiser) if sampler is None else sampler
    return Plan(sigmas, usual, options, 'the noise levels were given')


def explain_plan(sigmas: Tensor, sampler: Any, options: Mapping[str, Any], why: str) -> str:
    """Return a plan in words: the sampler, its options, the levels and the reason.

    Args:
        sigmas: The noise levels.
        sampler: The sampler.
        options: Its options.
        why: The reason.
    """
    name = find_sampler(sampler).name
    arguments = ', '.join(f'{key}={value}' for key, value in options.items())
    level_text = ' '.join(f'{level:.4g}' for level in sigmas.tolist())
    return (
        f'sampler: {name}{f" ({arguments})" if arguments else ""}\nlevels: {level_text}\nwhy: {why}'
    )


def _plan_recommended(
    denoiser: DenoiseFn, steps: int, options: Mapping[str, Any], traits: Traits
) -> Plan:
    """Return the plan of a probed model by its probe, else the recommended recipe."""
    probe = getattr(denoiser, 'probe', None)
    recipe = (probe.recipe(steps, traits) if isinstance(probe, Probe) else None) or recommend(
        steps, traits
    )
    options = {**recipe.options, **options}
    return Plan(recipe.levels(steps, traits, options), recipe.sampler, options, recipe.why)


def _usual(denoiser: DenoiseFn) -> str:
    """Return the sampler where only a schedule or noise levels are given."""
    return 'flow_map' if getattr(denoiser, 'flow_map', False) else 'dpmpp_2m'


def _check_sampler_of_flow_map(entry: Sampler) -> None:
    """Refuse a sampler of this package that needs a denoiser."""
    if entry.family == DISTILLED or SAMPLERS.get(entry.name) is not entry:
        return
    serve = sorted(name for name, each in SAMPLERS.items() if each.family == DISTILLED)
    raise ValueError(
        f'sampler must be one of {", ".join(serve)} for a flow map; got {entry.name!r}, which '
        "needs a denoiser: in Python pass the flow map's method `denoiser`"
    )


def _of_flow_map(
    denoiser: DenoiseFn, steps: int, sampler: Any, traits: Traits, options: Mapping[str, Any]
) -> Plan:
    """Return the plan of a flow map: its own steps, or those of a given sampler, on its levels."""
    why = (
        'the model is a flow map, trained for steps between any two levels; the levels are even '
        'in arctan(sigma / (2 sigma_data))'
    )
    return Plan(map_levels(steps, traits), sampler or _usual(denoiser), options, why)


def _plan_by_name(
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
    sampler = _usual(denoiser) if sampler is None else sampler
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
    make = SCHEDULES[name]
    if name in BETWEEN:
        return Plan(make(steps, low, high), sampler, {**stops_at(sampler, low), **options}, why)
    if not whole_range:
        raise ValueError(
            f'sigma_min and sigma_max must be left out with the schedule {name}, which has its own '
            f'noise levels; got {low} and {high}. Other schedules are {", ".join(BETWEEN)}'
        )
    return Plan(make(steps), sampler, options, why)


def round_levels(denoiser: DenoiseFn, sigmas: Tensor) -> Tensor:
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
