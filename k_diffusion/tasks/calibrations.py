"""Calibrated solvers beside their checkpoint: MODEL_calibrated.json, with an entry for each
number of model calls and guidance.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import warnings
from collections.abc import Collection, Sequence
from pathlib import Path

import torch
from torch import nn

from .. import __version__
from ..config import find_checkpoint
from ..core.files import MALFORMED, note_once, read_json_file, say_malformed, write_json
from ..core.names import escape_name
from ..core.weights import fingerprint
from ..generation import SamplingConfig
from ..sampling.calibration.files import from_dict, to_dict
from ..sampling.calibration.solver import Calibration

#: The name of a sampler that stands for one.
WORD = 'calibrated'
_LOG = logging.getLogger(__name__)


def file_of(checkpoint: str | os.PathLike[str]) -> Path:
    """Where the calibrations of a checkpoint stand; of a run's folder, those of its latest
    checkpoint.
    """
    path = Path(find_checkpoint(checkpoint))
    return path.with_name(f'{path.stem}_calibrated.json')


def read(path: Path) -> list[Calibration]:
    """The calibrations in a file, none where there is no file."""
    if not path.is_file():
        return []
    value = read_json_file(path)
    entries = value.get('calibrations') if isinstance(value, dict) else None
    if not isinstance(entries, list):
        raise ValueError(
            f'{path} holds no calibrations; remove it and make them again with calibrate'
        )
    return [from_dict(entry, str(path)) for entry in entries]


def add(path: Path, made: list[Calibration]) -> None:
    """Writes new calibrations; older ones stay, but for those of the same setting, and those of
    a guidance that is chosen anew.
    """
    settings = [_setting(calibration) for calibration in made]
    chosen = [
        (calibration.steps, calibration.conditions) for calibration in made if calibration.quality
    ]
    kept = [
        calibration
        for calibration in read(path)
        if _setting(calibration) not in settings
        and not (calibration.quality and (calibration.steps, calibration.conditions) in chosen)
    ]
    write_json(
        path,
        {
            'calibrations': [
                to_dict(calibration) for calibration in sorted([*kept, *made], key=_setting)
            ]
        },
    )


class Unfinished:
    """Calibrations fitted by interrupted calls, in a file beside the finished ones.

    Attributes:
        made: The calibrations by number of model calls, those of the same settings alone.
    """

    def __init__(self, path: Path, settings: object) -> None:
        """Read the file of calibrations at `path`; `settings` are all that a fit depends on."""
        self.path, self.file = path, path.with_name(f'{path.stem}_unfinished.json')
        text = repr((settings, __version__, torch.__version__))
        self.settings = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
        self.made: dict[int, Calibration] = {}
        try:
            value = read_json_file(self.file)
            if value['settings'] == self.settings:
                made = [from_dict(entry, str(self.file)) for entry in value['calibrations']]
                self.made = {calibration.steps: calibration for calibration in made}
        except FileNotFoundError:
            return
        except MALFORMED as error:
            note_once(f'{escape_name(self.file)} is passed over: {say_malformed(error)}')

    def keep(self, calibration: Calibration) -> None:
        """Write down one more."""
        self.made[calibration.steps] = calibration
        self._write()

    def finish(self, steps: Sequence[int]) -> list[Calibration]:
        """Add those for these numbers of calls to the model's calibrations and return them."""
        made = [self.made[n] for n in steps]
        add(self.path, made)
        self.made = {n: calibration for n, calibration in self.made.items() if n not in steps}
        if self.made:
            self._write()
        else:
            self.file.unlink(missing_ok=True)
        return made

    def _write(self) -> None:
        entries = [to_dict(calibration) for calibration in self.made.values()]
        write_json(self.file, {'settings': self.settings, 'calibrations': entries})


def _setting(calibration: Calibration) -> tuple[object, ...]:
    return (
        calibration.steps,
        calibration.guidance,
        calibration.guidance_interval or (),
        calibration.conditions,
    )


def find_calibration(
    checkpoint: str | os.PathLike[str],
    denoiser: nn.Module,
    sampling: SamplingConfig,
    conditions: Collection[str],
    sigma_max: float,
    demanded: bool,
    any_guidance: bool = False,
) -> Calibration | None:
    """Return the calibration of a model for a number of steps, a guidance and conditions.

    Args:
        checkpoint: The checkpoint, beside which the file is.
        denoiser: The model; the calibration must be of its weights.
        sampling: The number of steps and the guidance.
        conditions: The names of the conditions that the model is given.
        sigma_max: The first noise level.
        demanded: Whether to raise where there is none; else None is returned, with a warning where
            there is one that cannot be used.
        any_guidance: Prefer one whose guidance was chosen for its samples, whatever it is.

    Raises:
        ValueError: One is demanded and there is none, or it is of other weights.
    """
    path, scale = file_of(checkpoint), sampling.guidance if conditions else 1.0
    interval = (
        ()
        if scale == 1 or sampling.guidance_interval is None
        else tuple(sampling.guidance_interval)
    )
    wanted = (sampling.steps, scale, interval, tuple(sorted(conditions)))
    setting = f'steps {sampling.steps} and guidance {scale:g}' + (
        f' from {interval[0]:g} to {interval[1]:g}' if interval else ''
    )
    try:
        entries = read(path)
        calibration = next((entry for entry in entries if _setting(entry) == wanted), None)
        if any_guidance:
            chosen = (
                entry
                for entry in entries
                if entry.quality and (entry.steps, entry.conditions) == (sampling.steps, wanted[3])
            )
            calibration = next(chosen, calibration)
        if calibration is None and demanded:
            raise ValueError(
                f'{path} holds no calibrated sampler for {setting}; make one with calibrate'
            )
        if calibration is not None and not _fits(calibration, denoiser, sigma_max):
            raise ValueError(
                f'the calibrated sampler in {path} was made for other weights or another '
                'sigma_max; '
                f'make one for {setting} with calibrate'
            )
    except (ValueError, OSError) as error:
        if demanded:
            raise
        warnings.warn(f'{error}; it is not used', stacklevel=2)
        return None
    if calibration is not None:
        how = (
            f' and guidance {calibration.guidance:g}, which was chosen for it'
            if any_guidance and calibration.quality
            else ''
        )
        _LOG.info(
            'drawn by the calibrated sampler for %d steps%s, from %s', calibration.steps, how, path
        )
    return calibration


def _fits(calibration: Calibration, denoiser: nn.Module, sigma_max: float) -> bool:
    return math.isclose(
        calibration.sigmas[0], sigma_max, rel_tol=1e-6
    ) and calibration.model == fingerprint(denoiser.state_dict())
