"""k-diffusion clip: images from a trained model, drawn towards texts and pictures by a CLIP model."""
from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import load_model
from ..core.devices import choose_device
from ..core.images import from_bytes, make_grid, save_image
from ..core.memory import keep_freed_memory
from ..core.pretrained import ClipModel
from ..core.random import derive_seed, randn_items
from ..data import UnreadablePicture, load_picture
from ..encoders import LatentEncoder
from ..generation import BETWEEN, generate
from ..guidance import clip_guidance, time_travel
from ..sampling import SAMPLERS
from .encoding import encoder_of
from .output import Samples, Target
from .progress import show_progress


def clip(
    prompts: Sequence[str],                 # texts, each with its weight after a colon if it has one
    checkpoint: str | os.PathLike[str],     # a .pth or .safetensors file, or a run's folder
    n: int = 64,                            # how many
    out: str | os.PathLike[str] | None = None,  # folder to write to (default: samples, samples-2, ...)
    prefix: str | None = None,              # instead of a folder: {prefix}_00000.png ... and {prefix}_grid.png
    config: str | None = None,              # the config, where the checkpoint carries none
    batch_size: int = 16,                   # how many at a time; changes no image
    steps: int = 100,
    clip_guidance_scale: float = 500.,      # nats per unit of spherical distance; with `normalise` standard deviations, 0.1 to 1
    clip_model: str = 'ViT-B/16',           # a folder, a name on the hub, or OpenAI's name
    images: Sequence[str] = (),             # pictures as prompts, each with its weight after a colon
    cutn: int = 1,                          # views of the picture that CLIP sees at each step
    cut_pow: float = 1.,                    # larger: smaller cutouts
    clamp: bool = True,                     # keep guided estimates in [-1, 1], as the original does
    normalise: bool = False,                # the scale counts standard deviations of what is still unknown at each noise level
    init: str | None = None,                # a picture to begin with
    sigma_start: float | None = None,       # the noise laid over it (default: the whole schedule's)
    seed: int = 0,                          # image i is drawn from (seed, i) alone
    sampler: str = 'dpmpp_2s_ancestral',
    schedule: str = 'karras',
    sigma_min: float | None = None,         # the least noise level before 0 (default: the config's)
    sigma_max: float | None = None,         # the noise level to start from (default: the config's)
    time_travel_steps: int = 1,             # how often each step within the interval is taken
    time_travel_interval: tuple[float, float] = (0.3, 10.),
    preview: str | os.PathLike[str] | None = None,  # a picture of the estimates so far, written anew as they change
    device: str | None = None,              # cpu, cuda, mps (default: the fastest there is)
    verify: bool = True,                    # compare the checkpoint with the manifest beside it
    overwrite: bool = False,                # replace what an earlier call left in `out`
    show: bool = True,                      # progress on stderr
) -> Samples:
    """Draws n images from a trained model towards prompts and writes them, one by one and as a grid."""
    for name, value in ('-n', n), ('--batch-size', batch_size), ('--steps', steps), ('--cutn', cutn):
        if value < 1:
            raise ValueError(f'{name} is {value}; it must be at least 1')
    target = Target.of(out, prefix, overwrite)
    chosen = choose_device(device)
    if chosen.type == 'cpu':
        keep_freed_memory()
    denoiser, filled = load_model(checkpoint, chosen, config, verify=verify)
    model = filled['model']
    shape = [model['input_channels'], *model['input_size']]
    encoder = encoder_of(filled, chosen)
    decode = None if encoder is None else encoder.decode
    judge = ClipModel(clip_model, chosen)
    targets, weights = embedded(judge, prompts, images)
    guided = clip_guidance(denoiser, judge.encode_images, targets, weights, clip_guidance_scale, judge.size, cutn, cut_pow, seed,
                           (-1., 1.) if clamp and encoder is None else None, model['sigma_data'] if normalise else None,
                           decode=decode)
    sigmas = BETWEEN[schedule](steps, model['sigma_min'] if sigma_min is None else sigma_min,
                               model['sigma_max'] if sigma_max is None else sigma_max)
    seeds = [derive_seed(seed, 'sample', i) for i in range(n)]
    sigmas, x = _begun(sigmas, init, sigma_start, shape, seeds, encoder)
    travelling = _travelling(sampler, time_travel_steps, time_travel_interval)
    target.make()
    total = -(-n // batch_size) * (len(sigmas) - 1)
    with show_progress('clip', total if time_travel_steps == 1 else None, 'step', show) as bar:
        drawn = generate(guided, shape, sigmas, travelling, seeds, decode=decode, callback=_shown(bar, preview, decode),
                         batch_size=batch_size, device=chosen, x=x)
    return target.write(drawn, None)


def embedded(judge: ClipModel, texts: Sequence[str], pictures: Sequence[str]) -> tuple[Tensor, Tensor]:
    """The embeddings [P, E] and weights [P] of prompts written as text:weight and picture:weight."""
    if not texts and not pictures:
        raise ValueError('no prompt was given; give a text, or a picture with --image')
    said, seen = [weighted(text) for text in texts], [weighted(picture) for picture in pictures]
    found = [judge.encode_texts([text for text, _ in said])] if said else []
    if seen:
        loaded = torch.stack([_picture(path, (judge.size, judge.size), judge.channels) for path, _ in seen])
        with torch.no_grad():
            found.append(judge.encode_images(loaded.to(judge.mean.device)))
    return torch.cat(found), torch.tensor([weight for _, weight in (*said, *seen)])


def weighted(prompt: str) -> tuple[str, float]:
    """A prompt and the weight after its last colon, or 1."""
    text, colon, weight = prompt.rpartition(':')
    try:
        return (text, float(weight)) if colon and text else (prompt, 1.)
    except ValueError:
        return prompt, 1.


def _picture(path: str, size: tuple[int, int], channels: int) -> Tensor:
    """A picture file as [C, h, w] in [-1, 1], scaled and cropped like those of a data set."""
    if not Path(path).is_file():
        raise FileNotFoundError(f'there is no picture {path}; give the path of a picture file')
    try:
        return from_bytes(load_picture(path, size, channels))
    except UnreadablePicture as error:
        raise ValueError(f'{path} cannot be read as a picture ({error}); give a PNG or JPEG file') from None


def _begun(sigmas: Tensor, init: str | None, sigma_start: float | None, shape: Sequence[int],
           seeds: Sequence[int], encoder: LatentEncoder | None) -> tuple[Tensor, Tensor | None]:
    """The levels that are walked, and the init picture with noise of the first of them (None: noise alone)."""
    if init is None:
        if sigma_start is not None:
            raise ValueError(f'--sigma-start is {sigma_start} and there is no --init picture to lay the noise over; '
                             'name one, or take --sigma-max')
        return sigmas, None
    if sigma_start is not None:
        if not sigmas[-2] < sigma_start <= sigmas[0]:
            raise ValueError(f'--sigma-start is {sigma_start}; it must lie within the schedule, above {sigmas[-2]:g} and '
                             f'at most {sigmas[0]:g}')
        sigmas = torch.cat([sigmas.new_tensor([sigma_start]), sigmas[sigmas < sigma_start]])
    if encoder is None:
        picture = _picture(init, (shape[1], shape[2]), shape[0])
    else:
        pixels = _picture(init, (shape[1] * encoder.factor, shape[2] * encoder.factor), encoder.input_channels)
        picture = encoder.encode(pixels[None].to(encoder.mean.device))[0].cpu()
    return sigmas, picture + randn_items(shape, [derive_seed(seed, 'start') for seed in seeds]) * sigmas[0]


def _travelling(sampler: str, times: int, interval: tuple[float, float]) -> Any:
    """The sampler by its name, made to travel in time if asked; its noise then is new at each visit of a level."""
    entry = SAMPLERS[sampler.removeprefix('sample_')]
    if times == 1:
        return entry
    if 'sigmas' not in entry.takes:
        raise ValueError(f'{entry.name} chooses its own steps, so none can be taken again; take another sampler for --time-travel')
    return replace(entry, function=time_travel(entry.function, times, interval), noise='independent')


def _shown(bar: Any, preview: str | os.PathLike[str] | None,
           decode: Callable[[Tensor], Tensor] | None) -> Callable[[int, dict[str, Any]], None]:
    """What is shown after each step: the bar, and the grid of the batch's estimates, every fifth step."""
    def show(done: int, info: dict[str, Any]) -> None:
        bar.update()
        if preview is not None and info['i'] % 5 == 0:
            denoised = info['denoised'].detach()
            save_image(preview, make_grid((denoised if decode is None else decode(denoised)).float().cpu()))
    return show
