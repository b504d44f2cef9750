"""Store calibrated solvers beside their checkpoint, in MODEL_calibrated.json.

The file has an entry for each number of model calls and guidance.
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

#: The sampler name that stands for a calibrated solver.
WORD = 'calibrated'
_LOG = logging.getLogger(__name__)


def file_of(checkpoint: str | os.PathLike[str]) -> Path:
    """Return the path of the calibrations of `checkpoint`.

    For the folder of a run it is that of its latest checkpoint.
    """
    path = Path(find_checkpoint(checkpoint))
    return path.with_name(f'{path.stem}_calibrated.json')


def read(path: Path) -> list[Calibration]:
    """Return the calibrations in the file `path`; an empty list if it does not exist.

    Raises:
        ValueError: The file is damaged.
    """
    if not path.is_file():
        return []
    value = read_json_file(path)
    entries = value.get('calibrations') if isinstance(value, dict) else None
    if not isinstance(entries, list):
        raise ValueError(
            f'{path} must be a file that calibrate wrote; delete it and run calibrate again'
        )
    return [from_dict(entry, str(path)) for entry in entries]


def add(path: Path, calibrations: list[Calibration]) -> None:
    """Write new calibrations to the file `path`.

    An older one is replaced if it has the same setting, or if both have the same number of steps
    and conditions and a guidance chosen by quality.

    Args:
        path: The file.
        calibrations: The new calibrations.
    """
    settings = [_setting(calibration) for calibration in calibrations]
    new_choices = [
        (calibration.steps, calibration.conditions)
        for calibration in calibrations
        if calibration.quality
    ]
    others = [
        calibration
        for calibration in read(path)
        if _setting(calibration) not in settings
        and not (calibration.quality and (calibration.steps, calibration.conditions) in new_choices)
    ]
    write_json(
        path,
        {
            'calibrations': [
                to_dict(calibration)
                for calibration in sorted([*others, *calibrations], key=_setting)
            ]
        },
    )


class Unfinished:
    """Calibrations fitted by interrupted calls, in a file beside the finished ones.

    Attributes:
        calibrations: The calibrations of the same settings, by number of model calls.
    """

    def __init__(self, path: Path, settings: object) -> None:
        """Read the file of calibrations at `path`; `settings` are all that a fit depends on."""
        self.path, self.file = path, path.with_name(f'{path.stem}_unfinished.json')
        text = repr((settings, __version__, torch.__version__))
        self.settings = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
        self.calibrations: dict[int, Calibration] = {}
        try:
            value = read_json_file(self.file)
            if value['settings'] == self.settings:
                calibrations = [from_dict(entry, str(self.file)) for entry in value['calibrations']]
                self.calibrations = {calibration.steps: calibration for calibration in calibrations}
        except FileNotFoundError:
            return
        except MALFORMED as error:
            note_once(f'{escape_name(self.file)} is passed over: {say_malformed(error)}')

    def keep(self, calibration: Calibration) -> None:
        """Store one more `calibration`."""
        self.calibrations[calibration.steps] = calibration
        self._write()

    def finish(self, steps: Sequence[int]) -> list[Calibration]:
        """Move the calibrations for some numbers of `steps` to the finished ones; return them."""
        calibrations = [self.calibrations[n] for n in steps]
        add(self.path, calibrations)
        self.calibrations = {
            n: calibration for n, calibration in self.calibrations.items() if n not in steps
        }
        if self.calibrations:
            self._write()
        else:
            self.file.unlink(missing_ok=True)
        return calibrations

    def _write(self) -> None:
        entries = [to_dict(calibration) for calibration in self.calibrations.values()]
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
        checkpoint: The checkpoint, which the file is beside.
        denoiser: The model; the calibration must be of its weights.
        sampling: The number of steps and the guidance.
        conditions: The names of the conditions of the model.
        sigma_max: The first noise level.
        demanded: Raise an error if there is none. Otherwise return None, with a warning if there is
            one that cannot be used.
        any_guidance: Prefer one whose guidance was chosen by quality, at any guidance.

    Raises:
        ValueError: One is demanded and there is none, or it is of other weights.
    """
    path, scale = file_of(checkpoint), sampling.guidance if conditions else 1.0
    interval = (
        ()
        if scale == 1 or sampling.guidance_interval is None
        else tuple(sampling.guidance_interval)
    )
    key = (sampling.steps, scale, interval, tuple(sorted(conditions)))
    setting = f'steps {sampling.steps} and guidance {scale:g}' + (
        f' from {interval[0]:g} to {interval[1]:g}' if interval else ''
    )
    try:
        entries = read(path)
        calibration = next((entry for entry in entries if _setting(entry) == key), None)
        if any_guidance:
            candidates = (
                entry
                for entry in entries
                if entry.quality and (entry.steps, entry.conditions) == (sampling.steps, key[3])
            )
            calibration = next(candidates, calibration)
        if calibration is None and demanded:
            raise ValueError(
                f'{path} has no calibrated sampler for {setting}; run calibrate for them'
            )
        if calibration is not None and not _fits(calibration, denoiser, sigma_max):
            raise ValueError(
                f'{path} was calibrated for other weights or another sigma_max; run calibrate '
                f'again for {setting}'
            )
    except (ValueError, OSError) as error:
        if demanded:
            raise
        warnings.warn(f'the calibrated sampler is not used: {error}', stacklevel=2)
        return None
    if calibration is not None:
        how = (
            f' and guidance {calibration.guidance:g}, which was chosen for it'
            if any_guidance and calibration.quality
            else ''
        )
        _LOG.info(
            'sampling with the calibrated sampler for %d steps%s, from %s',
            calibration.steps,
            how,
            path,
        )
    return calibration


def _fits(calibration: Calibration, denoiser: nn.Module, sigma_max: float) -> bool:
    return math.isclose(
        calibration.sigmas[0], sigma_max, rel_tol=1e-6
    ) and calibration.model == fingerprint(denoiser.state_dict())
