"""Draw images from a trained model."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from ..config import find_checkpoint
from ..core.random import derive_seed
from ..core.settings import (
    are_lists,
    at_least,
    check_settings,
    comma_list,
    one_of,
    setting,
    takes_settings,
)
from ..generation import BETWEEN, SamplingConfig, choose_plan, choose_sampling, generate
from ..sampling import SAMPLERS
from . import calibrations
from .conditioning import guide, requested_conditions
from .model import ModelSettings, find_sampler_problem, load_sampler, open_model
from .output import Samples, Target
from .progress import show_progress

#: Read the text of flags.
read_classes = comma_list(str, 'classes such as 3,cat')
read_interval = comma_list(float, 'two noise levels such as 0.2,2', 2)


@dataclass(frozen=True)
class SampleSettings(ModelSettings):
    """Settings of `sample`."""

    checkpoint: str | os.PathLike[str] = setting(
        help="a .pth or .safetensors file, a run's folder (its latest checkpoint), or a URL of one"
    )
    n: int = setting(64, 'number of images', flags=('-n',))
    out: str | os.PathLike[str] | None = setting(
        None, 'folder to write to (default: samples, samples-2, ...)'
    )
    prefix: str | None = setting(None, 'write {prefix}_00000.png ... if out is not given')
    batch_size: int = setting(64, 'images per batch; does not change the images')
    steps: int | None = setting(
        None, "number of steps of the sampler (default: the config's, else 20)"
    )
    sampler: Any = setting(
        None,
        "the sampler (default: the config's, else the recommended one for the number of steps): "
        + ', '.join(SAMPLERS)
        + ', or FILE.py:FUNCTION, one of your own (see allow_code)',
        parse=str,
    )
    schedule: str | None = setting(
        None,
        "the spacing of noise levels (default: the config's, else that of the recommended "
        'sampler): ' + ', '.join(BETWEEN),
    )
    sigma_min: float | None = setting(
        None, "the smallest noise level before 0 (default: the config's)"
    )
    sigma_max: float | None = setting(None, "the noise level to start from (default: the config's)")
    seed: int = setting(0, 'image i depends on (seed, i) alone')
    classes: Sequence[int | str] | None = setting(
        None,
        'classes by name or number, used in turn (default: each class in turn)',
        metavar='3,cat',
        parse=read_classes,
    )
    guidance: float | None = setting(
        None, "classifier-free guidance scale (default: the config's, else 1, which is none)"
    )
    guidance_interval: tuple[float, float] | None = setting(
        None,
        "the noise levels with guidance (default: the config's, else all)",
        metavar='LOW,HIGH',
        parse=read_interval,
    )
    cond: Sequence[str] = setting(
        (),
        'a condition of the model: text=WORDS, embeddings=ROW, super-resolution=PICTURE, '
        'inpainting=PICTURE[,TOP,BOTTOM,LEFT,RIGHT]; images use several in turn',
        metavar='TYPE=VALUE',
        many='append',
    )
    counter_noise: bool = setting(
        False,
        'draw the noise of a batch at once, by a counter-based generator; gives other images',
    )
    overwrite: bool = setting(False, 'replace samples that are already in the folder')

    def __post_init__(self) -> None:
        own = (
            [name for name in ('schedule', 'sigma_min') if getattr(self, name) is not None]
            if self.sampler == calibrations.WORD
            else []
        )
        check_settings(
            are_lists(self, 'classes', 'guidance_interval', 'cond'),
            at_least(self, 1, 'n', 'batch_size', 'steps'),
            find_sampler_problem(self.sampler, calibrations.WORD),
            one_of(self, BETWEEN, 'schedule'),
            *(
                f'{name} must be left out with a calibrated sampler, which has its own noise '
                f'levels; got {getattr(self, name)}'
                for name in own
            ),
        )


@takes_settings(SampleSettings)
def sample(settings: SampleSettings) -> Samples:
    """Draw images from a trained model and write them, one by one and as a grid.

    Samples of a model of tensors are written as .npy files in the units of the data, and shown in
    the grid.

    Image i depends on (seed, i) and its conditions alone. If sampler, schedule and sigma_min are
    all None, and the checkpoint has a calibrated sampler for the number of steps and the guidance,
    that sampler is used.

    Args:
        settings: The settings, or the fields of SampleSettings as arguments; `sampler` may be a
            function.

    Returns:
        The images, their classes and the files.

    Raises:
        FileNotFoundError: The checkpoint does not exist.
        ValueError: A setting is wrong or does not fit the model, or the folder already holds
            samples.
    """
    n, target = settings.n, Target.of(settings.out, settings.prefix, settings.overwrite)
    path = find_checkpoint(settings.checkpoint, settings.verify)
    settings = replace(settings, checkpoint=path)
    denoiser, experiment, device = open_model(settings)
    calibrated_only = settings.sampler == calibrations.WORD
    name, own = load_sampler(None if calibrated_only else settings.sampler, settings.allow_code)
    sampling = choose_sampling(
        vars(experiment.sections.sampling),
        sampler=name,
        steps=settings.steps,
        schedule=settings.schedule,
        guidance=settings.guidance,
        guidance_interval=settings.guidance_interval,
    )
    cond = requested_conditions(experiment, settings.cond, settings.classes, n, device)
    if settings.guidance not in (None, 1) and not cond:
        raise ValueError(
            'guidance must be left out for a model without classes and conditions; got '
            f'{settings.guidance}'
        )
    sampling, (sigmas, sampler, options) = _choose_steps(settings, denoiser, sampling, own, cond)
    denoise = guide(denoiser, cond, sampling, device)
    target.make()
    with show_progress(
        'sample', -(-n // settings.batch_size) * (len(sigmas) - 1), 'step', settings.show
    ) as bar:
        images = generate(
            denoise,
            experiment.shape,
            sigmas,
            sampler,
            [derive_seed(settings.seed, 'sample', i) for i in range(n)],
            cond,
            callback=lambda *_: bar.update(),
            batch_size=settings.batch_size,
            device=device,
            options=options,
            decode=experiment.decoder(device),
            counter_noise=settings.counter_noise,
        )
    labels = cond['class_cond'].tolist() if 'class_cond' in cond else None
    return target.write(images, labels, settings.seed, experiment.gives_pictures)


def _choose_steps(
    settings: SampleSettings,
    denoiser: nn.Module,
    sampling: SamplingConfig,
    own: Any,
    cond: dict[str, Tensor],
) -> tuple[SamplingConfig, tuple[Tensor, Any, Mapping[str, Any]]]:
    """Return the guidance, and the noise levels, sampler and options of the plan to draw by.

    A calibrated sampler is used if the settings require it, or if they leave the choice open and
    there is one.

    Args:
        settings: The settings of the task.
        denoiser: The model.
        sampling: The "sampling" section with the settings in place.
        own: A sampler of the user, or None.
        cond: The conditions of the samples by name.
    """
    plan = choose_plan(
        denoiser,
        sampling,
        bool(cond) and sampling.guidance != 1,
        settings.sigma_min,
        settings.sigma_max,
        own,
    )
    calibrated_only = settings.sampler == calibrations.WORD
    choices = (settings.sampler, settings.schedule, settings.sigma_min)
    if not calibrated_only and choices != (None, None, None):
        return sampling, plan
    calibration = calibrations.find_calibration(
        settings.checkpoint,
        denoiser,
        sampling,
        cond,
        float(plan[0][0]),
        demanded=calibrated_only,
        any_guidance=(settings.guidance, settings.guidance_interval) == (None, None),
    )
    if calibration is None:
        return sampling, plan
    sampling = replace(
        sampling,
        guidance=calibration.guidance,
        guidance_interval=calibration.guidance_interval,
    )
    return sampling, (calibration.levels, calibration.sampler(), {})
