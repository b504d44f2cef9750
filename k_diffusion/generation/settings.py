"""The sampling settings of a config, and how those of a call override them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from ..core.registry import unknown
from ..sampling import SAMPLERS
from ..sampling.registry import plain_name
from ..schedules import BETWEEN, DISCRETE_SCHEDULES, SCHEDULES


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
        for key, choices in (('sampler', SAMPLERS), ('schedule', BETWEEN)):
            if getattr(self, key) not in (None, *choices):
                raise ValueError(f'{key}: {unknown(key, getattr(self, key), choices)}')
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
    sampler, title_schedule = split_title(requested.get('sampler'))
    if isinstance(sampler, str):
        sampler = sampler.removeprefix('sample_')
    schedule = title_schedule if requested.get('schedule') is None else requested['schedule']
    requested = {**requested, 'sampler': sampler, 'schedule': schedule}
    names = {field.name for field in fields(SamplingConfig)}
    own = {key: value for key, value in section.items() if key in names}
    if sampler in SAMPLERS and SAMPLERS[sampler].needs_pair:
        own = {key: value for key, value in own.items() if not key.startswith('guidance')}
    return SamplingConfig(
        **{**own, **{key: value for key, value in requested.items() if value is not None}}
    )


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
