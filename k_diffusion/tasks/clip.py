"""Draw images from a trained model, guided by a CLIP model towards texts and pictures."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.images import from_bytes, make_grid, save_image
from ..core.pretrained import ClipModel
from ..core.random import derive_seed, randn_items
from ..core.settings import are_lists, at_least, check_settings, one_of, setting, takes_settings
from ..data import UnreadablePicture, load_picture
from ..encoders import LatentEncoder
from ..generation import BETWEEN, generate
from ..guidance import clip_guidance, time_travel
from ..sampling import SAMPLERS, Sampler, find_sampler
from .model import ModelSettings, find_sampler_problem, load_sampler, open_model
from .output import Samples, Target
from .progress import show_progress


@dataclass(frozen=True)
class ClipSettings(ModelSettings):
    """Settings of `clip`."""

    prompts: Sequence[str] = setting(
        help='a text, optionally with its weight after a colon',
        flags=('prompts',),
        metavar='prompt',
        many='*',
    )
    checkpoint: str | os.PathLike[str] = setting(
        help="a .pth or .safetensors file, a run's folder (its latest checkpoint), or a URL of one"
    )
    n: int = setting(64, 'number of images', flags=('-n',))
    out: str | os.PathLike[str] | None = setting(
        None, 'folder to write to (default: samples, samples-2, ...)'
    )
    prefix: str | None = setting(None, 'write {prefix}_00000.png ... if out is not given')
    batch_size: int = setting(16, 'images per batch; does not change the images')
    steps: int = setting(100, 'number of steps of the sampler')
    clip_guidance_scale: float = setting(
        500.0, 'the strength of the guidance', flags=('--clip-guidance-scale', '-cgs')
    )
    clip_model: str | os.PathLike[str] = setting(
        'ViT-B/16', "a folder, a name on the hub, or OpenAI's name"
    )
    images: Sequence[str] = setting(
        (),
        'a picture as a prompt, optionally with its weight after a colon',
        flags=('--image',),
        metavar='FILE',
        many='append',
    )
    cutn: int = setting(1, 'number of cutouts of the picture for CLIP')
    cut_pow: float = setting(1.0, 'larger values give smaller cutouts')
    clamp: bool = setting(True, 'do not clamp estimates to [-1, 1]; follows prompts more closely')
    normalise: bool = setting(
        False,
        'measure the scale in standard deviations of the estimate at each level (use 0.1 to 1)',
    )
    init: str | None = setting(None, 'a picture to start from', metavar='FILE')
    sigma_start: float | None = setting(
        None, "the noise level added to init (default: the schedule's first level)"
    )
    seed: int = setting(0, 'image i depends on (seed, i) alone')
    sampler: Any = setting(
        'dpmpp_2s_ancestral',
        'the sampler: '
        + ', '.join(SAMPLERS)
        + ', or FILE.py:FUNCTION, one of your own (see allow_code)',
        parse=str,
    )
    schedule: str = setting('karras', 'the spacing of noise levels: ' + ', '.join(BETWEEN))
    sigma_min: float | None = setting(
        None, "the smallest noise level before 0 (default: the config's)"
    )
    sigma_max: float | None = setting(None, "the noise level to start from (default: the config's)")
    time_travel_steps: int = setting(
        1,
        'repetitions of each step between the levels 0.3 and 10, with fresh noise in between',
        flags=('--time-travel',),
        metavar='TIMES',
    )
    time_travel_interval: tuple[float, float] = setting((0.3, 10.0))
    preview: str | os.PathLike[str] | None = setting(
        None, 'write a grid of the estimates so far to this file as they change', metavar='FILE'
    )
    overwrite: bool = setting(False, 'replace samples that are already in the folder')

    def __post_init__(self) -> None:
        none = (
            None
            if self.prompts or self.images
            else 'prompts must hold a text, or images a picture; got none'
        )
        floating = self.sigma_start is not None and self.init is None
        check_settings(
            none,
            are_lists(self, 'prompts', 'images', 'time_travel_interval'),
            at_least(self, 1, 'n', 'batch_size', 'steps', 'cutn', 'time_travel_steps'),
            one_of(self, BETWEEN, 'schedule'),
            'sigma_start must be left out without init, the picture that noise is added to; '
            f'got {self.sigma_start}'
            if floating
            else None,
            find_sampler_problem(self.sampler)
            or (
                (
                    self.sampler in SAMPLERS
                    and self.time_travel_steps > 1
                    and _find_own_steps(SAMPLERS[self.sampler])
                )
                or None
            ),
        )


def _find_own_steps(entry: Sampler) -> str | None:
    if 'sigmas' in entry.takes:
        return None
    return (
        f'sampler must take given steps for time_travel_steps above 1; {entry.name} chooses its own'
    )


@takes_settings(ClipSettings)
def clip(settings: ClipSettings) -> Samples:
    """Draw images from a trained model towards prompts and write them, one by one and as a grid.

    Args:
        settings: The settings, or the fields of ClipSettings as arguments. `clamp` False does not
            clamp guided estimates to [-1, 1]; `time_travel_interval` holds the noise levels between
            which steps are repeated `time_travel_steps` times; `sampler` may be a function.

    Returns:
        The images and the files.

    Raises:
        FileNotFoundError: The checkpoint, the CLIP model or a picture does not exist.
        ValueError: A setting is wrong or does not fit the model, or the folder already holds
            samples.
    """
    target = Target.of(settings.out, settings.prefix, settings.overwrite)
    denoiser, experiment, device = open_model(settings)
    model, shape, encoder = experiment.sections.model, experiment.shape, experiment.encoder(device)
    decode = experiment.decoder(device)
    judge = ClipModel(settings.clip_model, device)
    targets, weights = embed_prompts(judge, settings.prompts, settings.images)
    denoise = clip_guidance(
        denoiser,
        judge.encode_images,
        targets,
        weights,
        settings.clip_guidance_scale,
        judge.size,
        settings.cutn,
        settings.cut_pow,
        settings.seed,
        (-1.0, 1.0) if settings.clamp and encoder is None else None,
        model.sigma_data if settings.normalise else None,
        decode=decode,
    )
    low, high = (
        getattr(model, key) if getattr(settings, key) is None else getattr(settings, key)
        for key in ('sigma_min', 'sigma_max')
    )
    seeds = [derive_seed(settings.seed, 'sample', i) for i in range(settings.n)]
    sigmas, x = _choose_start(
        settings, BETWEEN[settings.schedule](settings.steps, low, high), shape, seeds, encoder
    )
    name, own = load_sampler(settings.sampler, settings.allow_code)
    sampler = _add_time_travel(
        find_sampler(own or str(name)), settings.time_travel_steps, settings.time_travel_interval
    )
    target.make()
    total = -(-settings.n // settings.batch_size) * (len(sigmas) - 1)
    with show_progress(
        'clip', total if settings.time_travel_steps == 1 else None, 'step', settings.show
    ) as bar:
        images = generate(
            denoise,
            shape,
            sigmas,
            sampler,
            seeds,
            decode=decode,
            callback=_report_steps(bar, settings.preview, decode),
            batch_size=settings.batch_size,
            device=device,
            x=x,
        )
    return target.write(images, None, settings.seed)


def embed_prompts(
    judge: ClipModel, texts: Sequence[str], pictures: Sequence[str]
) -> tuple[Tensor, Tensor]:
    """Return the embeddings [P, E] and the weights [P] of prompts.

    Args:
        judge: The CLIP model.
        texts: Prompts as text or text:weight.
        pictures: Prompts as picture or picture:weight.
    """
    split_texts, split_pictures = (
        [split_weight(text) for text in texts],
        [split_weight(picture) for picture in pictures],
    )
    rows = [judge.encode_texts([text for text, _ in split_texts])] if split_texts else []
    if split_pictures:
        batch = torch.stack(
            [
                _load_picture(path, (judge.size, judge.size), judge.channels)
                for path, _ in split_pictures
            ]
        )
        with torch.no_grad():
            rows.append(judge.encode_images(batch.to(judge.mean.device)))
    return torch.cat(rows), torch.tensor([weight for _, weight in (*split_texts, *split_pictures)])


def split_weight(prompt: str) -> tuple[str, float]:
    """Return the text of `prompt` and the weight after its last colon, or 1."""
    text, colon, weight = prompt.rpartition(':')
    try:
        return (text, float(weight)) if colon and text else (prompt, 1.0)
    except ValueError:
        return prompt, 1.0


def _load_picture(path: str, size: tuple[int, int], channels: int) -> Tensor:
    """Return a picture file as [C, h, w] in [-1, 1], scaled and cropped like training data."""
    if not Path(path).is_file():
        raise FileNotFoundError(f'picture {path} does not exist; give the path of a picture file')
    try:
        return from_bytes(load_picture(path, size, channels))
    except UnreadablePicture as error:
        raise ValueError(
            f'{path} cannot be read as a picture ({error}); give a PNG or JPEG file'
        ) from None


def _choose_start(
    settings: ClipSettings,
    sigmas: Tensor,
    shape: Sequence[int],
    seeds: Sequence[int],
    encoder: LatentEncoder | None,
) -> tuple[Tensor, Tensor | None]:
    """Return the noise levels, and the init picture with noise of the first; None without one."""
    init, sigma_start = settings.init, settings.sigma_start
    if init is None:
        return sigmas, None
    if sigma_start is not None:
        if not sigmas[-2] < sigma_start <= sigmas[0]:
            raise ValueError(
                f'sigma_start must be within the schedule, above {sigmas[-2]:g} and at most '
                f'{sigmas[0]:g}; got {sigma_start}'
            )
        sigmas = torch.cat([sigmas.new_tensor([sigma_start]), sigmas[sigmas < sigma_start]])
    if encoder is None:
        picture = _load_picture(init, (shape[1], shape[2]), shape[0])
    else:
        pixels = _load_picture(
            init, (shape[1] * encoder.factor, shape[2] * encoder.factor), encoder.input_channels
        )
        picture = encoder.encode(pixels[None].to(encoder.mean.device))[0].cpu()
    return sigmas, picture + randn_items(
        shape, [derive_seed(seed, 'start') for seed in seeds]
    ) * sigmas[0]


def _add_time_travel(entry: Sampler, times: int, interval: tuple[float, float]) -> Any:
    """Return a sampler that repeats each step within an interval, with new noise each time."""
    if times == 1:
        return entry
    check_settings(_find_own_steps(entry))
    return replace(
        entry, function=time_travel(entry.function, times, interval), noise='independent'
    )


def _report_steps(
    bar: Any, preview: str | os.PathLike[str] | None, decode: Callable[[Tensor], Tensor] | None
) -> Callable[[int, dict[str, Any]], None]:
    """Return a callback that moves the bar and writes a grid of estimates every fifth step."""

    def show(step: int, info: dict[str, Any]) -> None:
        bar.update()
        if preview is not None and info['i'] % 5 == 0:
            denoised = info['denoised'].detach()
            save_image(
                preview, make_grid((denoised if decode is None else decode(denoised)).float().cpu())
            )

    return show
