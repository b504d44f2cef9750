"""Recommended samplers and schedules by noise levels, guidance and number of model calls."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .core.arguments import check_interval, check_number, saved_calls
from .core.files import read_json_file, write_json
from .core.protocols import DenoiseFn
from .schedules import SCHEDULES, get_sigmas_interval

#: The noise levels of a denoiser that does not state its range.
#: Karras et al. (2022), arXiv:2206.00364, table 1.
RANGE = (0.002, 80.0)
RHO_7: Mapping[str, float] = {'rho': 7.0}


@dataclass(frozen=True)
class Traits:
    """The properties of a model that are known without a call.

    Attributes:
        sigma_min: The lowest noise level.
        sigma_max: The highest noise level.
        scale: The guidance scale; 1 without guidance, NaN for an unknown scale.
        interval: Noise levels (low, high] with guidance; None for all.
        std: The standard deviation of the data.
    """

    sigma_min: float
    sigma_max: float
    scale: float = 1.0
    interval: tuple[float, float] | None = None
    std: float = 1.0

    @classmethod
    def of(
        cls,
        denoiser: DenoiseFn,
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        scale: float = 1.0,
        interval: Sequence[float] | None = None,
    ) -> Traits:
        """Read the traits from the attributes of a denoiser, where they are not given.

        Args:
            denoiser: The denoiser, guided or not.
            sigma_min: The lowest noise level.
            sigma_max: The highest noise level.
            scale: The guidance scale; 1 leaves that of a guided denoiser.
            interval: Noise levels with guidance.
        """
        low = getattr(denoiser, 'sigma_min', RANGE[0]) if sigma_min is None else sigma_min
        high = getattr(denoiser, 'sigma_max', RANGE[1]) if sigma_max is None else sigma_max
        if scale == 1 and hasattr(denoiser, 'pair'):
            scale, interval = (
                getattr(denoiser, 'scale', math.nan),
                getattr(denoiser, 'interval', None),
            )
        if isinstance(scale, tuple):  # one for each band; the strongest
            scale = max(scale, key=lambda each: abs(each - 1))
        if not (isinstance(scale, float) and math.isnan(scale)):
            scale = check_number('guidance', scale, hint='1 disables guidance')
        edges = None if interval is None else check_interval('guidance_interval', interval)
        edges = None if scale == 1 or edges == (0.0, math.inf) else edges
        std = float(getattr(denoiser, 'sigma_data', 1.0))
        return cls(float(low), float(high), scale, edges, std)

    def as_json(self) -> dict[str, Any]:
        """Return the traits as JSON values: None for an unknown scale and an infinite upper end."""
        edges = (
            None
            if self.interval is None
            else [edge if math.isfinite(edge) else None for edge in self.interval]
        )
        return {
            **asdict(self),
            'scale': None if math.isnan(self.scale) else self.scale,
            'interval': edges,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Traits:
        """Return the traits from the result of `as_json`.

        Args:
            values: The JSON values.
        """
        interval, scale = values['interval'], values['scale']
        edges = (
            None
            if interval is None
            else (interval[0], math.inf if interval[1] is None else interval[1])
        )
        return cls(**{**values, 'scale': math.nan if scale is None else scale, 'interval': edges})

    @property
    def guided(self) -> bool:
        """Return True if there is guidance."""
        return self.scale != 1


@dataclass(frozen=True)
class Recipe:
    """A sampler and its schedule.

    Attributes:
        sampler: The name of the sampler.
        options: Its options.
        schedule: The name of the schedule.
        spacing: The options of the schedule.
        raised: The lowest level above 0, as a multiple of the model's.
        why: The reason for the choice.
    """

    sampler: str
    options: Mapping[str, Any] = field(default_factory=dict)
    schedule: str = 'karras'
    spacing: Mapping[str, Any] = field(default_factory=dict)
    raised: float = 1.0
    why: str = ''

    def levels(self, steps: int, traits: Traits, options: Mapping[str, Any]) -> Tensor:
        """Return the noise levels of so many model calls.

        Karras levels have one on each edge of the guidance interval.

        Args:
            steps: Number of model calls.
            traits: The traits of the model.
            options: The options of the sampler in use; a first step without a model call adds a
                level.
        """
        low = (
            traits.sigma_min
            if self.raised == 1
            else min(self.raised * traits.sigma_min, traits.sigma_max)
        )
        n = steps + saved_calls(options)
        if traits.interval is not None and self.schedule == 'karras':
            return get_sigmas_interval(n, low, traits.sigma_max, traits.interval, **self.spacing)
        return SCHEDULES[self.schedule](n, low, traits.sigma_max, **self.spacing)

    def __str__(self) -> str:
        options = ', '.join(f'{name}={value}' for name, value in self.options.items())
        spacing = ', '.join(f'{name} {value:g}' for name, value in self.spacing.items())
        raised = '' if self.raised == 1 else f'to {self.raised:g} sigma_min'
        return ' '.join(
            filter(
                None,
                [
                    self.sampler,
                    f'({options})' if options else '',
                    'on',
                    self.schedule,
                    spacing,
                    raised,
                ],
            )
        )


#: The level of the middle of `map_levels`, nearly, in units of the standard deviation of the data.
MAP_MIDDLE = 2.0


def map_levels(steps: int, traits: Traits) -> Tensor:
    """Return the levels of a flow map: even in arctan(sigma / (2 std)), from sigma_max to 0.

    Doubling the number of calls keeps the levels and adds one between each two. The 2 is
    k-diffusion's own choice: with 1, fewer samples of two calls show their class, and the distance
    of eight calls is above that of four (benchmarks/RESULTS.md, "Few calls").

    Args:
        steps: The number of model calls.
        traits: Those of the model.
    """
    middle = MAP_MIDDLE * traits.std
    angle = math.atan(traits.sigma_max / middle)
    inner = [middle * math.tan(angle * (1 - i / steps)) for i in range(1, steps)]
    return torch.tensor([traits.sigma_max, *inner, 0.0], dtype=torch.float64)


#: The finer run that `K.probe` compares with.
FINE = Recipe('ipndm', {'order': 2}, spacing=RHO_7)
#: Added to both distances in a comparison: an eighth of a grey level of 255.
FLOOR = 5e-4


#: A start this many standard deviations of the data away is so noisy that the first step needs no
#: model call of its own.
FAR = 40.0
#: This few model calls leave no level near the start for the first step to end at.
FEWEST, FEWEST_IN_INTERVAL = 2, 6
#: Above this log(sigma_max / sigma_min), and from this number of model calls, low levels are rare,
#: and rho is larger.
WIDE, WIDE_FROM, WIDE_RHO = 12.0, 8, 9.0
#: At most this number of model calls makes steps too long for order 3.
SHORT = 6
#: Below this log(sigma_max / sigma_min) steps are shorter, and at least LONG model calls are better
#: with UniPC.
NARROW, LONG = 8.0, 18
#: Up to this number of model calls guidance bends the flow too much for order 3: at all levels, and
#: in an interval.
STIFF, STIFF_IN_INTERVAL = 10, 9
#: The lowest level above 0 for n model calls is LEAST / n^4 standard deviations of the data, at
#: most HIGHEST of them, and at least the model's lowest: finer detail is lost in their error.
LEAST, HIGHEST = 50.0, 0.08


def recommend(steps: int, traits: Traits) -> Recipe:
    """Return the recipe for a number of model calls and a model's traits (docs/samplers.md).

    All of them use Karras levels, or exponential ones, and then denoise.

    Args:
        steps: Number of model calls.
        traits: The traits of the model.
    """
    wrong = not 0 < traits.sigma_min <= traits.sigma_max < math.inf  # the schedule raises then
    extent = 0.0 if wrong else math.log(traits.sigma_max / traits.sigma_min)
    if extent < NARROW and steps >= LONG and traits.interval is None:
        why = (
            f'{steps} calls make short steps from {traits.sigma_max:g} to '
            f'{traits.sigma_min:g}, where a corrector is most effective'
        )
        return Recipe('uni_pc', {}, 'exponential', why=why)
    sampler, order, reason = _choose_method(steps, traits, extent < NARROW)
    raised = 1.0 if wrong else _raise_lowest(steps, traits)
    reasons = [
        f'levels go down to {raised * traits.sigma_min:.4g}, '
        + ('the lowest of the model' if raised == 1 else 'detail below it is lost in the error'),
        reason,
    ]
    if traits.interval is not None:
        low, high = traits.interval
        reasons.append(
            f'levels are on the edges of the guidance interval, {low:g} and {high:g}, and the '
            'share of a step inside it is integrated'
        )
    options: dict[str, Any] = {'order': order}
    fewest = FEWEST if traits.interval is None else FEWEST_IN_INTERVAL
    if steps >= fewest and traits.sigma_max >= FAR * traits.std:
        options['backward_start'] = True
        reasons.append(
            f'it starts {traits.sigma_max / traits.std:.0f} standard deviations of the data away, '
            'so the first step needs no call of its own'
        )
    rho = WIDE_RHO if extent > WIDE and steps >= WIDE_FROM else 7.0
    return Recipe(sampler, options, spacing={'rho': rho}, raised=raised, why='; '.join(reasons))


def _raise_lowest(steps: int, traits: Traits) -> float:
    """Return the lowest level above 0 for a number of calls, as a multiple of the model's."""
    level = min(LEAST / steps**4, HIGHEST) * traits.std
    if traits.interval is not None and traits.interval[0] > 0:
        level = min(level, traits.interval[0])  # guidance may not end above its lower edge
    return max(1.0, min(level, traits.sigma_max) / traits.sigma_min)


def _choose_method(steps: int, traits: Traits, narrow: bool) -> tuple[str, int, str]:
    """Return the sampler, its order and the reason, for a number of model calls.

    `zeab` has the weights of the steps' lengths in log sigma, `ipndm` those of equal steps.
    """
    in_interval, far = traits.interval is not None, traits.sigma_max >= FAR * traits.std
    short = steps <= SHORT and not in_interval
    if short and narrow and not traits.guided and not far:
        reason = f'{steps} calls over a narrow range of levels have the least error with the'
        return 'ipndm', 2, f'{reason} weights of equal steps, of order 2'
    if short and (traits.guided or not narrow):
        reason = f'{steps} calls make steps too long for more than order 2'
        return 'zeab', 2, f'{reason} of the noise estimate in log sigma'
    stiff = traits.guided and steps <= (STIFF_IN_INTERVAL if in_interval else STIFF)
    if stiff or in_interval:
        order = 2 if stiff else 3
        reason = 'guidance bends the flow, so the weights are those of equal steps, of order'
        return 'ipndm', order, f'{reason} {order} for {steps} calls'
    return 'zeab', 3, 'the noise estimate is extrapolated in log sigma'


#: The recipes that `list_candidates` adds to the recommended one.
CANDIDATES: list[Recipe] = [
    Recipe('ipndm', {'order': 2, 'backward_start': True}, spacing=RHO_7),
    Recipe('ipndm', {'order': 3, 'backward_start': True}, spacing=RHO_7),
    Recipe('ipndm', {'order': 4, 'backward_start': True}, spacing=RHO_7),
    Recipe('zeab', {'order': 2, 'backward_start': True}, spacing=RHO_7),
    Recipe('zeab', {'order': 3, 'backward_start': True}, spacing=RHO_7),
    Recipe('zeab', {'order': 4, 'backward_start': True}, spacing=RHO_7),
    Recipe('ipndm', {'order': 2}, spacing=RHO_7),
    Recipe('ipndm', {'order': 3}, spacing=RHO_7),
    Recipe('zeab', {'order': 3}, spacing=RHO_7),
    Recipe('zeab', {'order': 4}, spacing=RHO_7),
    Recipe('uni_pc_bh2', {'order': 3}, spacing=RHO_7),
    Recipe('dpmpp_2m', {}, 'exponential'),
    Recipe('uni_pc', {}, 'exponential'),
    Recipe('ipndm_v', {'afs': True}, 'exponential', raised=30.0),
    Recipe('ipndm_v', {'afs': True}, 'exponential', raised=10.0),
]


def list_candidates(steps: int, traits: Traits) -> list[Recipe]:
    """Return the recipes that `K.probe` compares, the recommended one first.

    Those with a backward start end at the recommended lowest level, others at the model's or at a
    multiple of it.

    Args:
        steps: Number of model calls.
        traits: The traits of the model.
    """
    recommended = recommend(steps, traits)
    others = [
        replace(recipe, raised=recommended.raised)
        if recipe.options.get('backward_start')
        else recipe
        for recipe in CANDIDATES
    ]
    return [recommended, *(recipe for recipe in others if str(recipe) != str(recommended))]


@dataclass(frozen=True)
class Probe:
    """The recipes nearest to a finer run of a model on a few noises, by number of model calls.

    `K.probe` makes one.

    Attributes:
        traits: The traits of the model.
        recipes: The best recipe by number of model calls.
        distances: (rms, median) over the noises by number of model calls and recipe in words.
    """

    traits: Traits
    recipes: Mapping[int, Recipe]
    distances: Mapping[int, Mapping[str, tuple[float, float]]] = field(default_factory=dict)

    def recipe(self, steps: int, traits: Traits) -> Recipe | None:
        """Return the recipe of the nearest number of calls; None for other guidance or levels.

        Args:
            steps: Number of model calls.
            traits: The traits of the model.
        """
        if traits.as_json() != self.traits.as_json() or not self.recipes:
            return None
        return self.recipes[min(self.recipes, key=lambda n: abs(math.log(n / steps)))]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the probe as JSON.

        Args:
            path: The file.
        """
        write_json(path, {**asdict(self), 'traits': self.traits.as_json()})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Probe:
        """Read a probe that `save` wrote.

        Args:
            path: The file.

        Raises:
            ValueError: If it is not such a file.
        """
        values = read_json_file(Path(path))
        try:
            recipes = {int(n): Recipe(**recipe) for n, recipe in values['recipes'].items()}
            distances = {
                int(n): {words: (pair[0], pair[1]) for words, pair in row.items()}
                for n, row in values['distances'].items()
            }
            return cls(Traits.from_json(values['traits']), recipes, distances)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError):
            raise ValueError(
                f'path must be a file that Probe.save wrote; got {os.fspath(path)!r}'
            ) from None
