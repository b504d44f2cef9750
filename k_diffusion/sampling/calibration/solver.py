"""A solver fitted to one model for one number of model calls: levels, weights and sampler."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...core.registry import unknown
from ..definition import make_sampler
from ..loop import Steps
from ..registry import SAMPLERS, Run, SampleFn
from ..spectrum import Spectrum
from .bases import (
    BASES,
    CORRECTIONS,
    HISTORY,
    Number,
    base_rows,
    distinct,
    enter,
    feature,
    gaussian_step,
    leave,
)
from .published import Published

#: The base of a calibration that keeps a published recipe.
PUBLISHED = 'published'


@dataclass(frozen=True)
class Calibration:
    """The result of `calibrate` for a model, its guidance and a number of model calls.

    A result without a fit nearer than a published recipe has the base 'published' and no
    corrections; `published`, `options` and sigmas are then the sampler, its options and its levels.

    Attributes:
        base: 'rab', 'sei', 'eab' (bases.py) or 'published'.
        sigmas: sigma_max, n levels and 0 for n model calls; the first step is that of the Gaussian
            of the spectrum.
        corrections: The numbers added to the weights of the base, a row for each model call
            (`base_rows`).
        spectrum: The Gaussian of the data.
        scores: Distances to converged runs on held-out noise.
        model: Fingerprint of the weights it was made for.
        guidance: The guidance scale.
        guidance_interval: The noise levels with guidance; None for all.
        conditions: The names of the conditions.
        published: The name of the published sampler.
        options: Its options.
        quality: The metric of samples by which the guidance was chosen and its standard error;
            empty if it was given.

    Raises:
        ValueError: If the values do not fit each other.
    """

    base: str
    sigmas: tuple[float, ...]
    corrections: tuple[tuple[float, ...], ...]
    spectrum: Spectrum
    scores: Mapping[str, float] = field(default_factory=dict)
    model: str = ''
    guidance: float = 1.0
    guidance_interval: tuple[float, float] | None = None
    conditions: tuple[str, ...] = ()
    published: str = ''
    options: Mapping[str, Any] = field(default_factory=dict)
    quality: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.base not in (*BASES, PUBLISHED):
            raise ValueError(unknown('base of a calibration', self.base, (*BASES, PUBLISHED)))
        falling = all(high > low >= 0 for high, low in zip(self.sigmas, self.sigmas[1:]))
        if (
            len(self.sigmas) < (2 if self.recipe else 3)
            or not falling
            or self.sigmas[-1] != 0
            or not self.sigmas[0] < math.inf
        ):
            raise ValueError(
                'sigmas of a calibration must fall from sigma_max to 0, at least three levels; got '
                f'{list(self.sigmas)}'
            )
        if self.recipe is not None:
            if self.corrections or self.recipe.calls < 1:
                raise ValueError(
                    'a calibration with a published recipe must have no corrections and at least 1 '
                    'model call'
                )
            return
        rows = [
            row
            for row in self.corrections
            if len(row) == CORRECTIONS[self.base] and all(map(math.isfinite, row))
        ]
        if not len(rows) == len(self.corrections) == len(self.sigmas) - 2:
            raise ValueError(
                f'corrections must be a row of {CORRECTIONS[self.base]} finite numbers for each of '
                f'{len(self.sigmas) - 2} model calls; got {len(self.corrections)} rows, '
                f'{len(rows)} '
                'of them valid'
            )

    @property
    def steps(self) -> int:
        """Return the number of model calls."""
        return len(self.corrections) if self.recipe is None else self.recipe.calls

    @property
    def recipe(self) -> Published | None:
        """Return the published recipe; None for a fitted solver."""
        return (
            Published(self.published, self.sigmas, self.options) if self.base == PUBLISHED else None
        )

    @property
    def levels(self) -> Tensor:
        """Return the levels as a float32 tensor, like other schedules."""
        return torch.tensor(self.sigmas, dtype=torch.float32)

    def sampler(self) -> SampleFn:
        """Return a sampler with its own levels: sigmas may be omitted; x is at level sigmas[0]."""
        walk = self._walk if self.recipe is None else self._walk_recipe
        return make_sampler(
            walk,
            'calibrated',
            0,
            family='calibrated',
            levels=self.sigmas,
            unasked=len(self.sigmas) - 1 - self.steps,
        )

    def _walk_recipe(self, steps: Steps, x: Tensor) -> Run[Tensor]:
        """Run the published recipe."""
        options = dict(self.options)
        steps.watch.answer_first(options.pop('afs', None))
        body = SAMPLERS[self.published].body
        assert body is not None
        return (yield from body(steps, x, **options))

    def _walk(self, steps: Steps, x: Tensor) -> Run[Tensor]:
        """Run the fitted solver."""
        base, spectrum = self.base, self.spectrum.like(x)
        variances, which = distinct(self.spectrum)

        def ready(number: Number) -> Number:
            return number[which].to(x) if isinstance(number, Tensor) else number

        rows = [
            (ready(row.a), [ready(w) for w in row.weights])
            for row in base_rows(base, variances, self.sigmas, self.corrections)
        ]
        history: deque[Tensor] = deque(maxlen=HISTORY)
        for step in steps:
            if step.i:
                denoised = yield from step.ask(x)
            else:
                denoised = spectrum.denoise(x, step.sigma)
                step.show(x, step.sigma, denoised)
            y = enter(base, spectrum, x)
            history.appendleft(feature(base, spectrum, y, denoised, x.new_tensor(step.sigma)))
            if step.i:
                a, weights = rows[step.i - 1]
                y = a * y
                for weight, past in zip(weights, history):
                    y = y + weight * past
                x = yield leave(base, spectrum, y)
            else:
                x = yield gaussian_step(spectrum, x, step.sigma, step.sigma_next)
        return x
