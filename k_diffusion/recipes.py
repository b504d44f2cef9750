"""How a model is sampled where nobody says how: a recipe from its noise levels, its guidance and
the number of model calls.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from .core.arguments import check_interval, check_number
from .core.files import read_json_file, write_json
from .core.protocols import DenoiseFn
from .schedules import SCHEDULES, get_sigmas_interval

#: Without a first noise level and a last one, a denoiser has these (Karras et al. 2022,
#: arXiv:2206.00364, table 1).
RANGE = (0.002, 80.0)
RHO_7: Mapping[str, float] = {'rho': 7.0}


@dataclass(frozen=True)
class Traits:
    """What is known of a model before it is asked anything.

    sigma_min, sigma_max: Its range of noise levels.
    scale: That of its guidance, 1 without; NaN where it is guided by an unknown one.
    interval: The noise levels (low, high] that guidance acts at; None for all.
    std: The standard deviation of its data.
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
        """Read the traits off a denoiser's attributes, where they are not given; a scale of 1
        gives none to a guided denoiser.
        """
        low = getattr(denoiser, 'sigma_min', RANGE[0]) if sigma_min is None else sigma_min
        high = getattr(denoiser, 'sigma_max', RANGE[1]) if sigma_max is None else sigma_max
        if scale == 1 and hasattr(denoiser, 'pair'):
            scale, interval = (
                getattr(denoiser, 'scale', math.nan),
                getattr(denoiser, 'interval', None),
            )
        if isinstance(scale, tuple):  # one for each band of frequencies: that which guides most
            scale = max(scale, key=lambda each: abs(each - 1))
        if not (isinstance(scale, float) and math.isnan(scale)):
            scale = check_number('guidance', scale, hint='1 is none')
        edges = None if interval is None else check_interval('guidance_interval', interval)
        edges = None if scale == 1 or edges == (0.0, math.inf) else edges
        std = float(getattr(denoiser, 'sigma_data', 1.0))
        return cls(float(low), float(high), scale, edges, std)

    def as_json(self) -> dict[str, Any]:
        """Return it as values that JSON has: None for an unknown scale and for an interval
        without an upper end.
        """
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
        """Return what `as_json` wrote."""
        interval, scale = values['interval'], values['scale']
        edges = (
            None
            if interval is None
            else (interval[0], math.inf if interval[1] is None else interval[1])
        )
        return cls(**{**values, 'scale': math.nan if scale is None else scale, 'interval': edges})

    @property
    def guided(self) -> bool:
        """Whether guidance is applied."""
        return self.scale != 1


@dataclass(frozen=True)
class Recipe:
    """A sampler and the schedule it walks.

    options: The sampler's. spacing: The schedule's.
    raised: The least level before 0, as a multiple of the model's own.
    why: What it was chosen for.
    """

    sampler: str
    options: Mapping[str, Any] = field(default_factory=dict)
    schedule: str = 'karras'
    spacing: Mapping[str, Any] = field(default_factory=dict)
    raised: float = 1.0
    why: str = ''

    def levels(self, steps: int, traits: Traits, options: Mapping[str, Any]) -> Tensor:
        """Return the noise levels of so many model calls; karras levels have one on either edge of
        the guidance interval.

        Args:
            steps: The number of model calls.
            traits: Those of the model.
            options: The sampler's options in use; an analytic first step (afs) adds a level.
        """
        low = (
            traits.sigma_min
            if self.raised == 1
            else min(self.raised * traits.sigma_min, traits.sigma_max)
        )
        n = steps + bool(options.get('afs'))
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


#: The finer run that `K.probe` compares with.
FINE = Recipe('ipndm', {'order': 2}, spacing=RHO_7)
#: Distances are compared with so much added to both: an eighth of a grey level of 255 counts as
#: nothing.
FLOOR = 5e-4
#: What `K.probe` tries.
CANDIDATES: list[Recipe] = [
    Recipe('ipndm', {'order': 2, 'afs': True}, spacing=RHO_7),
    Recipe('ipndm', {'order': 3, 'afs': True}, spacing=RHO_7),
    Recipe('ipndm', {'order': 4, 'afs': True}, spacing=RHO_7),
    Recipe('zeab', {'order': 3, 'afs': True}, spacing=RHO_7),
    Recipe('zeab', {'order': 4, 'afs': True}, spacing=RHO_7),
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


#: From how many standard deviations of the data on a start is so noisy that a formula stands for
#: the first call: up to FEW model calls, whose errors hide that of the formula, and for any number
#: of them.
FAR, FARTHEST = 40.0, 500.0
FEW = 12
#: Above this log(sigma_max / sigma_min), and from so many model calls on, low levels are few, and
#: rho is larger.
WIDE, WIDE_FROM, WIDE_RHO = 12.0, 8, 9.0
#: Below this log(sigma_max / sigma_min), up to so many model calls are better taken with the second
#: order, and from so many on by UniPC.
NARROW, SHORT, LONG = 8.0, 6, 15
#: Up to so many model calls guidance at all levels bends the flow too much for the third order; in
#: an interval, up to so many.
STIFF, STIFF_IN_INTERVAL = 12, 7


def recommended(steps: int, traits: Traits) -> Recipe:
    """Return the recipe for so many model calls of a model of which no more is known than its
    traits (docs/samplers.md).

    All of them walk Karras levels to the model's own least level and then denoise: a higher least
    level would lose what is finer, and how fine the data is, the traits do not say.
    """
    wrong = not 0 < traits.sigma_min <= traits.sigma_max < math.inf  # the schedule says so
    extent = 0.0 if wrong else math.log(traits.sigma_max / traits.sigma_min)
    short = not traits.guided and extent < NARROW and steps <= SHORT
    if extent < NARROW and steps >= LONG and traits.interval is None:
        why = (
            f'{steps} calls leave short steps from {traits.sigma_max:g} to '
            f'{traits.sigma_min:g}, where a corrector is worth most'
        )
        return Recipe('uni_pc', {}, 'exponential', why=why)
    stiff = traits.guided and steps <= (STIFF if traits.interval is None else STIFF_IN_INTERVAL)
    order = 2 if short or stiff else 3
    equal = stiff or traits.interval is not None
    fewest = (
        1 if traits.interval is None else STIFF_IN_INTERVAL + 1
    )  # fewer calls leave no level to spend above an interval
    afs = steps >= fewest and traits.sigma_max >= (FAR if steps <= FEW else FARTHEST) * traits.std
    reasons = [f'levels go down to {traits.sigma_min:g}, the least of the model']
    if short:
        reasons.append(
            f'{steps} calls over a narrow range of levels are best taken with the weights of '
            'equal steps, of order 2'
        )
    elif equal:
        reasons.append(
            f'guidance bends the flow, so the weights are those of equal steps, of order {order} '
            f'for {steps} calls'
        )
    else:
        reasons.append('the noise estimate is extrapolated in log sigma')
    if traits.interval is not None:
        low, high = traits.interval
        reasons.append(
            f'levels lie on the edges of the guidance interval, {low:g} and {high:g}, and the '
            'share of a step inside is '
            'integrated'
        )
    if afs:
        reasons.append(
            f'it starts {traits.sigma_max / traits.std:.0f} standard deviations of the data away, '
            'so a formula stands for '
            'the first call'
        )
    options = {'order': order, **({'afs': True} if afs else {})}
    rho = WIDE_RHO if extent > WIDE and steps >= WIDE_FROM else 7.0
    return Recipe(
        'ipndm' if short or equal else 'zeab', options, spacing={'rho': rho}, why='; '.join(reasons)
    )


@dataclass(frozen=True)
class Probe:
    """The recipes that came nearest to a finer run of a model on a few noises, by number of model
    calls.

    `K.probe` makes one. recipes: number of model calls -> recipe. traits: Those of the model it was
    made for. distances: number of model calls -> recipe in words -> (rms, median) over the noises.
    """

    traits: Traits
    recipes: Mapping[int, Recipe]
    distances: Mapping[int, Mapping[str, tuple[float, float]]] = field(default_factory=dict)

    def recipe(self, steps: int, traits: Traits) -> Recipe | None:
        """Return the recipe of the nearest number of model calls; None where it was made under
        other guidance or levels.
        """
        if traits.as_json() != self.traits.as_json() or not self.recipes:
            return None
        return self.recipes[min(self.recipes, key=lambda n: abs(math.log(n / steps)))]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as JSON."""
        write_json(path, {**asdict(self), 'traits': self.traits.as_json()})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Probe:
        """Read what `save` wrote."""
        found = read_json_file(Path(path))
        try:
            recipes = {int(n): Recipe(**recipe) for n, recipe in found['recipes'].items()}
            distances = {
                int(n): {words: (pair[0], pair[1]) for words, pair in row.items()}
                for n, row in found['distances'].items()
            }
            return cls(Traits.from_json(found['traits']), recipes, distances)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError):
            raise ValueError(
                f'path must be a file that Probe.save wrote; got {os.fspath(path)!r}'
            ) from None
