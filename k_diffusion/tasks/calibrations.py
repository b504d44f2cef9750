"""Calibrated solvers beside their checkpoint: MODEL_calibrated.json, with an entry for each number of model calls and guidance."""
from __future__ import annotations

import hashlib
import math
import os
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

import torch
from torch import nn

from .. import __version__
from ..config import find_checkpoint
from ..core.files import MALFORMED, note_once, read_json_file, write_json
from ..core.names import escape_name
from ..core.weights import fingerprint
from ..generation import SamplingConfig
from ..sampling.calibration.files import from_dict, to_dict
from ..sampling.calibration.solver import Calibration

#: What `--sampler` is given to ask for one.
WORD = 'calibrated'


def file_of(checkpoint: str | os.PathLike[str]) -> Path:
    """Where the calibrations of a checkpoint stand; of a run's folder, those of its latest checkpoint."""
    path = Path(find_checkpoint(checkpoint))
    return path.with_name(f'{path.stem}_calibrated.json')


def read(path: Path) -> list[Calibration]:
    """The calibrations in a file, none where there is no file."""
    if not path.is_file():
        return []
    value = read_json_file(path)
    entries = value.get('calibrations') if isinstance(value, dict) else None
    if not isinstance(entries, list):
        raise ValueError(f'{path} holds no calibrations; remove it and make them anew with k-diffusion calibrate')
    return [from_dict(entry, str(path)) for entry in entries]


def add(path: Path, made: list[Calibration]) -> None:
    """Writes new calibrations; older ones stay, but for those of the same setting."""
    settings = [_setting(calibration) for calibration in made]
    kept = [calibration for calibration in read(path) if _setting(calibration) not in settings]
    write_json(path, {'calibrations': [to_dict(calibration) for calibration in sorted([*kept, *made], key=_setting)]})


class Unfinished:
    """What calls that did not end have fitted, in a file beside the calibrations.

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
            note_once(f'{escape_name(self.file)} is passed over: {error}')

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
    return (calibration.steps, calibration.guidance, calibration.guidance_interval or (), calibration.conditions)


def asked(sampler: str | None, schedule: str | None, sigma_min: float | None) -> bool:
    """Whether a calibrated sampler is to be looked for: by its name, or where nothing is said of sampler and levels."""
    if sampler != WORD:
        return (sampler, schedule, sigma_min) == (None, None, None)
    if (schedule, sigma_min) != (None, None):
        raise ValueError('a calibrated sampler has its own noise levels; leave --schedule and --sigma-min out')
    return True


def fitting(checkpoint: str | os.PathLike[str], denoiser: nn.Module, how: SamplingConfig, conditions: Collection[str],
            sigma_max: float, demanded: bool) -> Calibration | None:
    """The calibration for these weights, this number of steps, guidance and conditions; None, or an error where it is demanded."""
    path, scale = file_of(checkpoint), how.guidance if conditions else 1.
    interval = () if scale == 1 or how.guidance_interval is None else tuple(how.guidance_interval)
    wanted = (how.steps, scale, interval, tuple(sorted(conditions)))
    again = f'make one with k-diffusion calibrate --checkpoint {checkpoint} --steps {how.steps} --guidance {scale:g}' + (
        f' --guidance-interval {interval[0]:g},{interval[1]:g}' if interval else '')
    try:
        found = next((calibration for calibration in read(path) if _setting(calibration) == wanted), None)
    except (ValueError, OSError) as error:
        if demanded:
            raise
        print(f'note: {escape_name(str(error))}', file=sys.stderr)
        return None
    if found is None:
        if demanded:
            raise ValueError(f'{path} holds no calibrated sampler for {how.steps} steps at this guidance; {again}')
        return None
    if not math.isclose(found.sigmas[0], sigma_max, rel_tol=1e-6) or found.model != fingerprint(denoiser.state_dict()):
        reason = f'the calibrated sampler in {path} was made for other weights or another sigma_max; {again}'
        if demanded:
            raise ValueError(reason)
        print(f'note: {reason}', file=sys.stderr)
        return None
    print(f'note: drawn by the calibrated sampler for {found.steps} steps, from {escape_name(path)}', file=sys.stderr)
    return found
