"""k-diffusion sample: images from a trained model."""
from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..config import load_model, sections_of
from ..core.devices import choose_device
from ..core.memory import keep_freed_memory
from ..core.protocols import DenoiseFn
from ..core.random import derive_seed
from ..core.registry import nearest
from ..generation import BETWEEN, SamplingConfig, generate, split_title, stops_at
from ..guidance import classifier_free
from ..sampling import SAMPLERS
from . import calibrations
from .conditioning import asked_of, conditions_of, null_of
from .encoding import encoder_of
from .output import Samples, Target
from .progress import show_progress


def sample(
    checkpoint: str | os.PathLike[str],     # a .pth or .safetensors file, or a run's folder (its latest checkpoint)
    n: int = 64,                            # how many
    out: str | os.PathLike[str] | None = None,  # folder to write to: images/, grid.png, labels.txt (default: samples, samples-2, ...)
    prefix: str | None = None,              # instead of a folder: {prefix}_00000.png ... and {prefix}_grid.png
    config: str | None = None,              # the config, where the checkpoint carries none
    batch_size: int = 64,                   # how many at a time; changes no image
    steps: int | None = None,               # how many steps the sampler takes (default: the config's, else 20)
    sampler: str | None = None,             # one of K.sampling.SAMPLERS (default: the config's, else dpmpp_2m)
    schedule: str | None = None,            # how the noise levels are spaced: karras, ... (the config's, else karras)
    sigma_min: float | None = None,         # the least noise level before 0 (default: the config's)
    sigma_max: float | None = None,         # the noise level to start from (default: the config's)
    seed: int = 0,                          # image i is drawn from (seed, i) alone
    classes: Sequence[int | str] | None = None,     # classes in turn, by number or name (default: each class in turn)
    guidance: float | None = None,          # classifier-free guidance scale (default: the config's, else 1, which is none)
    guidance_interval: tuple[float, float] | None = None,   # the noise levels it acts at (default: the config's, else all)
    cond: Sequence[str] = (),               # 'type=value' for each condition of the config; several values of a type serve in turn
    device: str | None = None,              # cpu, cuda, mps (default: the fastest there is)
    ema: bool = True,                       # the averaged weights, or the raw ones of a .pth
    verify: bool = True,                    # compare the checkpoint with the manifest beside it
    overwrite: bool = False,                # replace what an earlier call left in `out`
    show: bool = True,                      # progress on stderr
) -> Samples:
    """Draws n images from a trained model and writes them, one by one and as a grid."""
    for name, value in ('-n', n), ('--batch-size', batch_size):
        if value < 1:
            raise ValueError(f'{name} is {value}; it must be at least 1')
    target = Target.of(out, prefix, overwrite)
    chosen = choose_device(device)
    if chosen.type == 'cpu':
        keep_freed_memory()
    denoiser, filled = load_model(checkpoint, chosen, config, ema, verify)
    model, num_classes = filled['model'], filled['dataset']['num_classes']
    named = None if sampler is None or sampler == calibrations.WORD else sampler.removeprefix('sample_')
    how = how_to_sample(filled, sampler=named, steps=steps, schedule=schedule, guidance=guidance, guidance_interval=guidance_interval)
    labels = class_labels(classes, filled['dataset'], n)
    sections, encoder = sections_of(filled), encoder_of(filled, chosen)
    conditions = conditions_of(sections, device=chosen)
    told = asked_of(conditions, cond, n, sections.model, encoder)
    if guidance not in (None, 1) and not labels and not told:
        raise ValueError(f'--guidance is {guidance} and the model knows no classes and no conditions to guide towards; leave it out')
    low, high = (model[key] if value is None else value for key, value in (('sigma_min', sigma_min), ('sigma_max', sigma_max)))
    sigmas = BETWEEN[how.schedule](how.steps, low, high)
    if labels:
        told['class_cond'] = torch.tensor(labels)
    denoise = guided(denoiser, null_of(num_classes, conditions), how) if told else denoiser
    walked: Any = how.sampler
    if calibrations.asked(sampler, schedule, sigma_min):
        fitted = calibrations.fitting(checkpoint, denoiser, how, told, float(sigmas[0]), sampler is not None)
        if fitted is not None:
            sigmas, walked = fitted.levels, fitted.sampler()
    target.make()
    with show_progress('sample', -(-n // batch_size) * (len(sigmas) - 1), 'step', show) as bar:
        images = generate(denoise, [model['input_channels'], *model['input_size']], sigmas, walked,
                          [derive_seed(seed, 'sample', i) for i in range(n)],
                          told, callback=lambda *_: bar.update(), batch_size=batch_size, device=chosen, options=stops_at(walked, low),
                          decode=None if encoder is None else encoder.decode)
    return target.write(images, labels)


def guided(denoiser: DenoiseFn, null: Mapping[str, Any], how: SamplingConfig) -> DenoiseFn:
    """The denoiser of a conditional model with the guidance of a "sampling" section; `null` stands for conditions not told."""
    return classifier_free(denoiser, null, how.guidance, how.guidance_interval or (0., math.inf))


def how_to_sample(config: Mapping[str, Any], **asked: Any) -> SamplingConfig:
    """The "sampling" section of a filled config, with what was asked for (and is not None) in its place.

    The config's scale of plain guidance is none for a CFG++ sampler, whose own goes from 0 to 1 (default: 1).
    """
    asked['sampler'], named = split_title(asked.get('sampler'))
    asked['schedule'] = named if asked.get('schedule') is None else asked['schedule']
    known = {field.name for field in dataclasses.fields(SamplingConfig)}
    kept = {key: value for key, value in config['sampling'].items() if key in known}
    if asked.get('sampler') in SAMPLERS and SAMPLERS[asked['sampler']].needs_pair:
        kept = {key: value for key, value in kept.items() if not key.startswith('guidance')}
    return SamplingConfig(**{**kept, **{key: value for key, value in asked.items() if value is not None}})


def class_labels(classes: Sequence[int | str] | None, dataset: Mapping[str, Any], n: int) -> list[int] | None:
    """Return the classes of n images, those asked for in turn; None for a model without classes.

    Args:
        classes: Numbers, or names that the "dataset" section knows. None: each class in turn.
        dataset: The "dataset" section of a filled config.
        n: How many images.

    Raises:
        ValueError: The model does not know a class.
    """
    num_classes, names = dataset['num_classes'], dataset.get('class_names') or []
    if not num_classes:
        if classes:
            raise ValueError('the model was trained without classes; leave --classes out')
        return None
    chosen = [_class_number(name, num_classes, names) for name in classes or range(num_classes)]
    return [chosen[i % len(chosen)] for i in range(n)]


def _class_number(name: int | str, num_classes: int, names: Sequence[str]) -> int:
    if isinstance(name, int) and 0 <= name < num_classes:
        return name
    if name in names:
        return names.index(str(name))
    near = nearest(str(name), names)
    known = f'0 to {num_classes - 1}' + (f', called {", ".join(names[:10])}{", ..." if len(names) > 10 else ""}' if names else '')
    raise ValueError(f'--classes must name classes of the model, which are {known}; got {name}'
                     + (f': did you mean {near!r}?' if near else ''))
