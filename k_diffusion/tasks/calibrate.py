"""A sampler fitted to a model, so that few steps give what many would."""
from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..core.protocols import DenoiseFn
from ..core.random import derive_seed, randn_items
from ..core.settings import are_lists, at_least, check_settings, comma_list, setting, takes_settings
from ..core.weights import fingerprint
from ..generation import choose_sampling
from ..sampling import BASES, Calibration
from ..sampling import calibrate as fit_sampler
from ..sampling.calibration.fitting import check_bases
from ..sampling.calibration.reference_runs import Teacher
from . import calibrations
from .conditioning import guide, requested_conditions
from .model import ModelSettings, open_model
from .progress import show_progress
from .sample import read_classes, read_interval

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class CalibrationResult:
    """The calibrated samplers, one for each number of steps, and the file that holds them."""

    calibrations: list[Calibration]
    file: Path


@dataclass(frozen=True)
class CalibrateSettings(ModelSettings):
    """Settings of `calibrate`."""

    checkpoint: str | os.PathLike[str] = setting(help="a .pth or .safetensors file, or a run's folder (its latest checkpoint)")
    steps: Sequence[int] = setting((5, 8, 10), 'numbers of model calls, with a sampler for each (default: 5,8,10)', metavar='5,8,10',
                                   parse=comma_list(int, 'whole numbers such as 3,5'))
    noises: int = setting(16, 'how many noises it is fitted to; as many again are held out to choose by')
    sigma_min: float | None = setting(None, "where the converged runs take their last step, to 0 (default: the config's)")
    sigma_max: float | None = setting(None, "the noise level to start from (default: the config's)")
    classes: Sequence[int | str] | None = setting(None, 'classes in turn, as sampling takes them (default: each class in turn)',
                                                  metavar='3,cat', parse=read_classes)
    guidance: float | None = setting(None, "classifier-free guidance scale (default: the config's, else 1, which is none)")
    guidance_interval: tuple[float, float] | None = setting(
        None, "the noise levels it acts at (default: the config's, else all)", metavar='LOW,HIGH', parse=read_interval)
    cond: Sequence[str] = setting((), 'a condition of the model, as sample takes it; several are taken in turn', metavar='TYPE=VALUE',
                                  many='append')
    bases: Sequence[str] = setting(tuple(BASES), 'the methods to fit, each at a third of the cost; the best is kept (default: all)',
                                   metavar='rab,sei,eab', parse=comma_list(str, 'names of methods'))
    batch_size: int = setting(256, 'how many items the model is called on at a time')
    seed: int = setting(0, 'of the noises')
    out: str | os.PathLike[str] | None = setting(
        None, 'the file to write (default: MODEL_calibrated.json beside the checkpoint, where sample finds it)')

    def __post_init__(self) -> None:
        check_settings(are_lists(self, 'steps', 'classes', 'guidance_interval', 'cond', 'bases'))
        few = min(self.steps, default=0) < 1
        check_settings(at_least(self, 2, 'noises'), at_least(self, 1, 'batch_size'),
                       f'steps must be numbers of at least 1; got {list(self.steps)}' if few else None, _find_unknown(self.bases))


def _find_unknown(bases: Sequence[str]) -> str | None:
    try:
        check_bases(bases)
    except ValueError as error:
        return f'bases must be names of methods: {error}'
    return None


@takes_settings(CalibrateSettings)
def calibrate(settings: CalibrateSettings) -> CalibrationResult:
    """Fit a sampler to a model for each number of steps and write them beside the checkpoint.

    Each is written when it is fitted, so that a call that was interrupted goes on with the next.

    Args:
        settings: The settings, or the fields of CalibrateSettings as arguments.

    Returns:
        The calibrations and their file.

    Raises:
        FileNotFoundError: There is no checkpoint.
        ValueError: A setting is wrong or does not fit the model, or the file cannot be written.
    """
    path = _writable_file(settings)
    denoise, teach, named, fits = _prepare(settings, path)
    missing = _list_missing(list(dict.fromkeys(settings.steps)), fits)
    layout = '{desc}{percentage:3.0f}% |{bar}| {elapsed}<{remaining}'
    with show_progress('calibrate', 1000, '', settings.show, bar_format=layout) as bar, torch.no_grad():
        bar.set_description('converged runs')
        teacher = teach() if missing else None
        for calibration in _fit(missing, denoise, teacher, settings.bases, settings.batch_size, named, bar):
            fits.keep(calibration)
    return CalibrationResult(fits.finish(list(dict.fromkeys(settings.steps))), path)


def _prepare(settings: CalibrateSettings, path: Path) -> tuple[DenoiseFn, Callable[[], Teacher], dict[str, Any], calibrations.Unfinished]:
    """Return the guided denoiser, what makes the converged runs, the facts of a calibration, and those of a call that did not end."""
    denoiser, experiment, device = open_model(settings)
    sampling = choose_sampling(vars(experiment.sections.sampling), guidance=settings.guidance, guidance_interval=settings.guidance_interval)
    n = 2 * settings.noises
    cond = requested_conditions(experiment, settings.cond, settings.classes, n, device)
    cond = {key: value.to(device) for key, value in cond.items()}
    denoise = guide(denoiser, cond, sampling, device)
    low, high = (getattr(experiment.sections.model, key) if getattr(settings, key) is None else getattr(settings, key)
                 for key in ('sigma_min', 'sigma_max'))
    x = randn_items(experiment.shape, [derive_seed(settings.seed, 'calibrate', i) for i in range(n)], device) * high
    scale = sampling.guidance if cond else 1.
    named = {'model': fingerprint(denoiser.state_dict()), 'guidance': scale, 'conditions': tuple(sorted(cond)),
             'guidance_interval': sampling.guidance_interval if scale != 1 else None}
    fits = calibrations.Unfinished(path, (named, low, high, settings.noises, tuple(settings.bases), settings.batch_size, settings.seed,
                                          experiment.shape, str(device), fingerprint(cond)))
    return denoise, lambda: Teacher(denoise, x, low, high, cond, batch_size=settings.batch_size), named, fits


def _fit(steps: Sequence[int], denoise: Any, teacher: Any, bases: Sequence[str], batch_size: int,
         named: dict[str, Any], bar: Any) -> Iterator[Calibration]:
    """Yield a sampler for each number of calls; each has its share of the bar."""
    for k, n in enumerate(steps):
        begins, share = sum(steps[:k]) / sum(steps), n / sum(steps)

        def report(part: float, words: str, begins: float = begins, share: float = share) -> None:
            bar.set_description(words)
            bar.update(round(1000 * (begins + share * part)) - bar.n)

        yield fit_sampler(denoise, teacher.x, teacher.sigma_max, steps=n, bases=bases,
                        batch_size=batch_size, teacher=teacher, callback=report, **named)
        report(1., f'{n} calls')


def _list_missing(steps: Sequence[int], fits: calibrations.Unfinished) -> list[int]:
    """Return the numbers of calls that are still to be fitted, and log which are not."""
    fitted = [n for n in steps if n in fits.made]
    if fitted:
        _LOG.info('the samplers for %s steps were fitted by an earlier call that did not end', ', '.join(map(str, fitted)))
    return [n for n in steps if n not in fitted]


def _writable_file(settings: CalibrateSettings) -> Path:
    """Return the file to write to; raise before the work if it or its folder is unfit."""
    path = Path(settings.out) if settings.out is not None else calibrations.file_of(settings.checkpoint)
    try:
        calibrations.read(path)
    except ValueError as error:
        raise ValueError(f'{error}; remove {path}, or give another file as out') from None
    if not os.access(path.parent, os.W_OK):
        raise ValueError(f'out must be in a folder that can be written to; got {path}')
    return path
