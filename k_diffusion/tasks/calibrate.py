"""k-diffusion calibrate: a sampler is fitted to a model, so that few steps give what many would."""
from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import load_model, sections_of
from ..core.devices import choose_device
from ..core.memory import keep_freed_memory
from ..core.random import derive_seed, randn_items
from ..core.weights import fingerprint
from ..sampling import BASES, Calibration, calibrate
from ..sampling.calibration.fitting import check_bases
from ..sampling.calibration.reference_runs import Teacher
from . import calibrations
from .conditioning import asked_of, conditions_of, null_of
from .encoding import encoder_of
from .progress import show_progress
from .sample import class_labels, guided, how_to_sample


def calibrate_model(
    checkpoint: str | os.PathLike[str],     # a .pth or .safetensors file, or a run's folder (its latest checkpoint)
    steps: Sequence[int] = (5, 8, 10),      # numbers of model calls, a sampler for each
    noises: int = 16,                       # how many it is fitted to; as many again are held out to choose by
    sigma_min: float | None = None,         # where the converged runs take their last step, to 0 (default: the config's)
    sigma_max: float | None = None,         # the noise level to start from (default: the config's)
    classes: Sequence[int | str] | None = None,     # classes in turn, by number or name (default: each class in turn)
    guidance: float | None = None,          # classifier-free guidance scale (default: the config's, else 1, which is none)
    guidance_interval: tuple[float, float] | None = None,   # the noise levels it acts at (default: the config's, else all)
    cond: Sequence[str] = (),               # 'type=value' for each condition of the config; several values of a type serve in turn
    bases: Sequence[str] = BASES,           # the methods to fit, each at a third of the cost; the best is kept
    config: str | None = None,              # the config, where the checkpoint carries none
    batch_size: int = 256,                  # how many items the model is called on at a time
    seed: int = 0,                          # of the noises
    device: str | None = None,              # cpu, cuda, mps (default: the fastest there is)
    ema: bool = True,                       # the averaged weights, or the raw ones of a .pth
    verify: bool = True,                    # compare the checkpoint with the manifest beside it
    out: str | os.PathLike[str] | None = None,  # the file to write (default: MODEL_calibrated.json beside the checkpoint)
    show: bool = True,                      # a progress bar
) -> tuple[list[Calibration], Path]:
    """Fit a sampler for each number of steps, write them beside the checkpoint, and return both.

    Each is kept when it is fitted, so that a call that was interrupted goes on with the next.
    """
    _check(steps, noises, batch_size)
    check_bases(bases)
    steps = list(dict.fromkeys(steps))
    path = _writable_file(checkpoint, out)
    chosen = choose_device(device)
    if chosen.type == 'cpu':
        keep_freed_memory()
    denoiser, filled = load_model(checkpoint, chosen, config, ema, verify)
    model, num_classes = filled['model'], filled['dataset']['num_classes']
    how = how_to_sample(filled, guidance=guidance, guidance_interval=guidance_interval)
    sections = sections_of(filled)
    conditions = conditions_of(sections, device=chosen)
    told: dict[str, Tensor] = asked_of(conditions, cond, 2 * noises, sections.model, encoder_of(filled, chosen))
    labels = class_labels(classes, filled['dataset'], 2 * noises)
    if labels:
        told['class_cond'] = torch.tensor(labels)
    told = {key: value.to(chosen) for key, value in told.items()}
    denoise = guided(denoiser, null_of(num_classes, conditions), how) if told else denoiser
    high = model['sigma_max'] if sigma_max is None else sigma_max
    shape = [model['input_channels'], *model['input_size']]
    x = randn_items(shape, [derive_seed(seed, 'calibrate', i) for i in range(2 * noises)], chosen) * high
    scale = how.guidance if told else 1.
    named = {'model': fingerprint(denoiser.state_dict()), 'guidance': scale, 'conditions': tuple(sorted(told)),
             'guidance_interval': how.guidance_interval if scale != 1 else None}
    low = model['sigma_min'] if sigma_min is None else sigma_min
    fits = calibrations.Unfinished(path, (named, low, high, noises, tuple(bases), batch_size, seed,
                                          shape, str(chosen), fingerprint(told)))
    missing = _list_missing(steps, fits)
    how_it_looks = '{desc}{percentage:3.0f}% |{bar}| {elapsed}<{remaining}'
    bar = show_progress('calibrate', 1000, '', show, bar_format=how_it_looks)
    with bar, torch.no_grad():
        bar.set_description('converged runs')
        teacher = Teacher(denoise, x, low, high, told, batch_size=batch_size) if missing else None
        for made in _fit(missing, denoise, teacher, bases, batch_size, named, bar):
            fits.keep(made)
    return fits.finish(steps), path


def _fit(steps: Sequence[int], denoise: Any, teacher: Any, bases: Sequence[str], batch_size: int,
         named: dict[str, Any], bar: Any) -> Iterator[Calibration]:
    """Yield a sampler for each number of calls; each has its share of the bar."""
    for k, n in enumerate(steps):
        begins, share = sum(steps[:k]) / sum(steps), n / sum(steps)

        def tell(part: float, words: str, begins: float = begins, share: float = share) -> None:
            bar.set_description(words)
            bar.update(round(1000 * (begins + share * part)) - bar.n)

        yield calibrate(denoise, teacher.x, teacher.sigma_max, steps=n, bases=bases,
                        batch_size=batch_size, teacher=teacher, callback=tell, **named)
        tell(1., f'{n} calls')


def _check(steps: Sequence[int], noises: int, batch_size: int) -> None:
    for name, value, least in (('--noises', noises, 2), ('--batch-size', batch_size, 1),
                               ('--steps', min(steps, default=0), 1)):
        if value < least:
            raise ValueError(f'{name} is {value}; it must be at least {least}')


def _list_missing(steps: Sequence[int], fits: calibrations.Unfinished) -> list[int]:
    """Return the numbers of calls that are still to be fitted, and say which are not."""
    kept = [n for n in steps if n in fits.made]
    if kept:
        print(f'note: the samplers for {", ".join(map(str, kept))} steps were fitted by an earlier '
              'call that did not end', file=sys.stderr)
    return [n for n in steps if n not in kept]


def _writable_file(checkpoint: str | os.PathLike[str], out: str | os.PathLike[str] | None) -> Path:
    """Return the file to write to; raise before the work if it or its folder is unfit."""
    path = Path(out) if out is not None else calibrations.file_of(checkpoint)
    try:
        calibrations.read(path)
    except ValueError as error:
        raise ValueError(f'{error}; remove {path}, or give another file with --out') from None
    if not os.access(path.parent, os.W_OK):
        raise ValueError(f'{path.parent} is no folder that can be written to; '
                         'give another file with --out')
    return path
