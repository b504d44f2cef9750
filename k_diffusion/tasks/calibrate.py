"""Fit a sampler to a model, so that few steps give the result of many."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..core.random import derive_seed, randn_items
from ..core.settings import (
    are_lists,
    at_least,
    check_settings,
    comma_list,
    one_of,
    setting,
    takes_settings,
)
from ..core.weights import fingerprint
from ..generation import SamplingConfig, choose_plan, choose_sampling
from ..sampling import BASES, Calibration
from ..sampling import calibrate as fit_sampler
from ..sampling.calibration.fitting import check_bases
from ..sampling.calibration.published import Published
from ..sampling.calibration.reference_runs import Teacher
from . import calibrations, guiding
from .conditioning import guide, requested_conditions
from .model import ModelSettings, open_model, refuse_flow_map
from .progress import show_progress
from .sample import read_classes, read_interval

_LOG = logging.getLogger(__name__)
AUTO = 'auto'
#: Held-out noises for each noise of a fit. Their converged runs are cheap beside a fit, and the few
#: that end as another picture dominate the rms.
HELD_OUT = 3
#: The shares of the work of choosing the guidance and of the converged runs.
CHOOSING, CONVERGING = 0.5, 0.15


def read_guidance(text: str) -> float | str:
    """Parse `text` of a flag: a scale, or auto."""
    try:
        return AUTO if text == AUTO else float(text)
    except ValueError:
        raise ValueError(f'it must be a number or {AUTO}; got {text!r}') from None


@dataclass(frozen=True)
class CalibrationResult:
    """The calibrated samplers, one for each number of steps, and the file that holds them."""

    calibrations: list[Calibration]
    file: Path


@dataclass(frozen=True)
class CalibrateSettings(ModelSettings):
    """Settings of `calibrate`."""

    checkpoint: str | os.PathLike[str] = setting(
        help="a .pth or .safetensors file, a run's folder (its latest checkpoint), or a URL of one"
    )
    steps: Sequence[int] = setting(
        (5, 8, 10),
        'numbers of model calls, with a sampler for each (default: 5,8,10)',
        metavar='5,8,10',
        parse=comma_list(int, 'whole numbers such as 3,5'),
    )
    noises: int = setting(
        16, f'number of noises for the fit; {HELD_OUT} times as many are held out for the choice'
    )
    sigma_min: float | None = setting(
        None,
        "the noise level before the last step, to 0, of converged runs (default: the config's)",
    )
    sigma_max: float | None = setting(None, "the noise level to start from (default: the config's)")
    classes: Sequence[int | str] | None = setting(
        None,
        'classes by name or number, used in turn (default: each class in turn)',
        metavar='3,cat',
        parse=read_classes,
    )
    guidance: float | str | None = setting(
        None,
        'classifier-free guidance scale, or auto: for each number of steps the scale and the '
        'interval whose samples are the best by '
        "`metric`, which `sample` then uses (default: the config's, else 1, which is none)",
        metavar='SCALE',
        parse=read_guidance,
    )
    guidance_interval: tuple[float, float] | None = setting(
        None,
        "the noise levels with guidance (default: the config's, else all)",
        metavar='LOW,HIGH',
        parse=read_interval,
    )
    cond: Sequence[str] = setting(
        (),
        'a condition of the model, as in `sample`; samples use several in turn',
        metavar='TYPE=VALUE',
        many='append',
    )
    metric: str = setting('fid', 'the metric that chooses guidance auto', choices=guiding.METRICS)
    samples: int = setting(2000, 'number of samples for that choice')
    extractor: Any = setting(
        None, 'the feature extractor for that choice, as in `evaluate` (default: classifier)'
    )
    bases: Sequence[str] = setting(
        tuple(BASES),
        'the methods to fit; the best is kept (default: all)',
        metavar='rab,sei,eab',
        parse=comma_list(str, 'names of methods'),
    )
    batch_size: int = setting(256, 'items per model call')
    seed: int = setting(0, 'the seed of the noises')
    out: str | os.PathLike[str] | None = setting(
        None,
        'the file to write (default: MODEL_calibrated.json beside the checkpoint, where sample '
        'finds it)',
    )

    def __post_init__(self) -> None:
        check_settings(are_lists(self, 'steps', 'classes', 'guidance_interval', 'cond', 'bases'))
        few = min(self.steps, default=0) < 1
        check_settings(
            at_least(self, 2, 'noises', 'samples'),
            at_least(self, 1, 'batch_size'),
            one_of(self, guiding.METRICS, 'metric'),
            *self._guidance_problems(),
            f'steps must be numbers of at least 1; got {list(self.steps)}' if few else None,
            _find_unknown(self.bases),
        )

    def _guidance_problems(self) -> Iterator[str]:
        if isinstance(self.guidance, str) and self.guidance != AUTO:
            yield f'guidance must be a scale or {AUTO!r}; got {self.guidance!r}'
        if self.guidance == AUTO and self.guidance_interval is not None:
            yield (
                f'guidance_interval must be left out with guidance {AUTO!r}, which chooses it; '
                f'got {self.guidance_interval}'
            )


def _find_unknown(bases: Sequence[str]) -> str | None:
    try:
        check_bases(bases)
    except ValueError as error:
        return f'bases must be names of methods: {error}'
    return None


@takes_settings(CalibrateSettings)
def calibrate(settings: CalibrateSettings) -> CalibrationResult:
    """Fit a sampler to a model for each number of steps and write them beside the checkpoint.

    Each sampler is written as soon as it is fitted; after an interruption the same call continues
    with the next one.

    Args:
        settings: The settings, or the fields of CalibrateSettings as arguments.

    Returns:
        The calibrations and their file.

    Raises:
        FileNotFoundError: The checkpoint does not exist.
        ValueError: A setting is wrong or does not fit the model, or the file cannot be written.
    """
    path = _writable_file(settings)
    work = _Work(settings, path)
    steps = list(dict.fromkeys(settings.steps))
    missing = _list_missing(steps, work.fits)
    layout = '{desc}{percentage:3.0f}% |{bar}| {elapsed}<{remaining}'
    with (
        show_progress('calibrate', 1000, '', settings.show, bar_format=layout) as bar,
        torch.no_grad(),
    ):
        for k, n in enumerate(missing):
            begins, share = sum(missing[:k]) / sum(missing), n / sum(missing)

            def report(
                part: float, words: str, begins: float = begins, share: float = share
            ) -> None:
                bar.set_description(words)
                bar.update(round(1000 * (begins + share * part)) - bar.n)

            calibration = work.fit(n, report)
            report(1.0, f'{n} calls')
            work.fits.keep(calibration)
    return CalibrationResult(work.fits.finish(steps), path)


class _Work:
    """A model with the noises and conditions of its fits, and the fits of interrupted calls."""

    def __init__(self, settings: CalibrateSettings, path: Path) -> None:
        self.settings = settings
        self.denoiser, self.experiment, self.device = open_model(settings)
        refuse_flow_map(self.denoiser, settings.checkpoint)
        self.auto = settings.guidance == AUTO
        scale = None if isinstance(settings.guidance, str) else settings.guidance
        self.sampling = choose_sampling(
            vars(self.experiment.sections.sampling),
            guidance=scale,
            guidance_interval=settings.guidance_interval,
        )
        n, model, shape = (
            (1 + HELD_OUT) * settings.noises,
            self.experiment.sections.model,
            self.experiment.shape,
        )
        cond = requested_conditions(
            self.experiment, settings.cond, settings.classes, n, self.device
        )
        self.cond = {key: value.to(self.device) for key, value in cond.items()}
        self.low, self.high = (
            getattr(model, key) if getattr(settings, key) is None else getattr(settings, key)
            for key in ('sigma_min', 'sigma_max')
        )
        self.x = (
            randn_items(
                shape, [derive_seed(settings.seed, 'calibrate', i) for i in range(n)], self.device
            )
            * self.high
        )
        self.model = fingerprint(self.denoiser.state_dict())
        self.fits = calibrations.Unfinished(path, self._determining_facts())
        self.judge = self._make_judge() if self.auto else None
        self._teachers: dict[Any, Any] = {}

    def _determining_facts(self) -> tuple[Any, ...]:
        """Return everything that determines the fits; a call with the same facts continues them."""
        settings, extractor = self.settings, self.settings.extractor
        guidance: Any = self._labels(self.sampling)
        if self.auto:
            guidance = (
                AUTO,
                settings.metric,
                settings.samples,
                getattr(extractor, 'fingerprint', getattr(extractor, '__name__', extractor)),
                self.sampling.guidance_interval,
            )
        return (
            self.model,
            guidance,
            tuple(sorted(self.cond)),
            self.low,
            self.high,
            settings.noises,
            tuple(settings.bases),
            settings.batch_size,
            settings.seed,
            self.experiment.shape,
            str(self.device),
            fingerprint(self.cond),
        )

    def _make_judge(self) -> guiding.Judge:
        settings, say = self.settings, _LOG.info if self.settings.show else lambda text: None
        return guiding.Judge.of(
            settings.checkpoint,
            self.denoiser,
            self.experiment,
            settings.metric,
            settings.extractor,
            settings.samples,
            settings.seed,
            settings.batch_size,
            self.device,
            settings.allow_code,
            say,
        )

    def _labels(self, sampling: SamplingConfig) -> dict[str, Any]:
        """Return the guidance that a calibration is stored with."""
        scale = sampling.guidance if self.cond else 1.0
        return {
            'guidance': scale,
            'guidance_interval': sampling.guidance_interval if scale != 1 else None,
        }

    def fit(self, n: int, report: Callable[[float, str], None]) -> Calibration:
        """Fit the sampler for n model calls with the requested or the best guidance."""
        sampling, begins = replace(self.sampling, steps=n, sampler=None, schedule=None), 0.0
        if self.judge is not None:
            scale, interval = guiding.choose_guidance(
                self.judge,
                n,
                self.sampling.guidance_interval,
                lambda part, words: report(CHOOSING * part, words),
            )
            sampling, begins = (
                replace(sampling, guidance=scale, guidance_interval=interval),
                CHOOSING,
            )
        report(begins, 'converged runs')
        denoise = guide(self.denoiser, self.cond, sampling, self.device)
        labels = self._labels(sampling)
        if tuple(labels.values()) not in self._teachers:
            self._teachers[tuple(labels.values())] = Teacher(
                denoise,
                self.x,
                self.low,
                self.high,
                self.cond,
                batch_size=self.settings.batch_size,
                tested=self.settings.noises,
            )
            begins += (1 - begins) * CONVERGING
        teacher = self._teachers[tuple(labels.values())]
        calibration = fit_sampler(
            denoise,
            teacher.x,
            teacher.sigma_max,
            steps=n,
            bases=self.settings.bases,
            batch_size=self.settings.batch_size,
            teacher=teacher,
            held_out=HELD_OUT * self.settings.noises,
            recipes=self._list_recommended(sampling),
            callback=lambda part, words: report(begins + (1 - begins) * part, words),
            model=self.model,
            conditions=tuple(sorted(self.cond)),
            **labels,
        )
        return (
            calibration
            if self.judge is None
            else replace(calibration, quality=self.judge.quality(calibration))
        )

    def _list_recommended(self, sampling: SamplingConfig) -> list[Published]:
        """Return the recommended sampler as a candidate, if it takes as many calls."""
        levels, sampler, options = choose_plan(
            self.denoiser, sampling, bool(self.cond) and sampling.guidance != 1, self.low, self.high
        )
        recipe = Published(sampler, tuple(levels.double().tolist()), options)
        return [recipe] if recipe.calls == sampling.steps else []


def _list_missing(steps: Sequence[int], fits: calibrations.Unfinished) -> list[int]:
    """Return the numbers of calls that are still to be fitted, and log the others."""
    fitted_steps = [n for n in steps if n in fits.calibrations]
    if fitted_steps:
        _LOG.info(
            'resuming: the samplers for %s steps are fitted already',
            ', '.join(map(str, fitted_steps)),
        )
    return [n for n in steps if n not in fitted_steps]


def _writable_file(settings: CalibrateSettings) -> Path:
    """Return the file to write to; raise a ValueError early if it cannot be written."""
    path = (
        Path(settings.out)
        if settings.out is not None
        else calibrations.file_of(settings.checkpoint)
    )
    try:
        calibrations.read(path)
    except ValueError as error:
        raise ValueError(f'{error}; delete {path}, or give another file as out') from None
    if not os.access(path.parent, os.W_OK):
        raise ValueError(f'out must be in a writable folder; got {path}')
    return path
