"""Models of the diffusers library as denoisers: networks by class, predictions by scheduler."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import nn

from ..denoisers.base import PreconditionedDenoiser
from .diffusers_folders import load_parts
from .diffusers_network import DiffusersNetwork
from .schedulers import make_denoiser
from .unwrapping import describe


def from_diffusers(
    source: Any,
    scheduler: Any = None,
    quantize: bool = False,
    device: Any = None,
    dtype: torch.dtype | None = None,
    variant: str | None = None,
    controlnet: Any = None,
) -> PreconditionedDenoiser:
    """Make the denoiser D(x, sigma, **cond) of a pipeline, its folder or name, or a network.

    From a folder only the network and the settings of the scheduler are loaded. Input and output
    are images, or latents in the scale of the network. Conditions have the names of the forward of
    the model, with class_cond for class labels and SDXL's text_embeds and time_ids like any other.
    All have an entry per item (one entry serves all items), so that classifier-free guidance can
    join them. `unet_cond` is concatenated to x (inpainting models, Stable Video Diffusion). The
    network is frozen.

    Args:
        source: A pipeline; the folder or the hub name of one; or a network, also inside
            torch.compile, DistributedDataParallel or PEFT.
        scheduler: The scheduler of the network; None for that of the pipeline.
        quantize: Round levels to the nearest of the T levels at which the network was trained.
        device: Where to move the network; None leaves it.
        dtype: The dtype to cast the network to; None leaves it (float32 for a loaded one).
        variant: The variant of the weights in a folder, such as 'fp16'; None for those without a
            variant or, if there are none, for the only variant.
        controlnet: A ControlNet of the network, or several as diffusers' MultiControlNetModel; None
            for that of the pipeline. Its image is the condition `controlnet_cond`, its weight
            `conditioning_scale`.

    Returns:
        The denoiser, in evaluation mode.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If the family of the network, the ControlNet or the scheduler is unknown.
        FileNotFoundError: If the folder or its weights do not exist.

    Example:
        denoiser = K.external.from_diffusers('path/to/stable-diffusion')
        sigmas = denoiser.get_sigmas(30)
    """
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(
            f'dtype must be a floating-point torch.dtype, such as torch.float16; got {dtype!r}'
        )
    device = None if device is None else _read_device(device)
    if isinstance(source, (str, os.PathLike)):
        model, own, control = load_parts(str(source), dtype, variant)
    elif variant is not None:
        raise ValueError(
            f'variant must be None unless source is a folder or a name; got {variant!r} '
            f'with {describe(source)}'
        )
    else:
        model, own, control = _parts_of(source)
    scheduler = own if scheduler is None else scheduler
    controlnet = control if controlnet is None else controlnet
    if model is None or scheduler is None:
        lacks = (
            'a unet or transformer'
            if model is None
            else 'a scheduler, which says what its answer means: give one as scheduler='
        )
        raise ValueError(f'{type(source).__name__} lacks {lacks}')
    denoiser = make_denoiser(DiffusersNetwork(model, controlnet), scheduler, quantize)
    if device is not None or dtype is not None:
        denoiser = denoiser.to(device=device, dtype=dtype)
    return denoiser.eval().requires_grad_(False)


def _parts_of(source: Any) -> tuple[Any, Any, Any]:
    """Return the network, the scheduler and the ControlNet of a pipeline, or a network alone."""
    if isinstance(source, type):
        raise TypeError(
            f'source must be a pipeline, its folder, or a network; got {describe(source)}. '
            f'Load it first: {source.__name__}.from_pretrained(...)'
        )
    if getattr(source, 'components', None) is not None:
        second = next(
            (
                name
                for name in ('transformer_2', 'unet_2', 'transformer2')
                if getattr(source, name, None) is not None
            ),
            None,
        )
        if second is not None:
            raise ValueError(
                f'source must have one network; {type(source).__name__} has a second, '
                f'{second}, for other noise levels. Wrap each with its scheduler'
            )
        model = getattr(source, 'unet', None)
        return (
            getattr(source, 'transformer', None) if model is None else model,
            getattr(source, 'scheduler', None),
            getattr(source, 'controlnet', None),
        )
    if hasattr(source, 'set_timesteps'):
        raise TypeError(
            f'source must be a pipeline, its folder, or a network; got the scheduler '
            f'{type(source).__name__}. Pass the network first, then the scheduler'
        )
    if not isinstance(source, nn.Module):
        raise TypeError(
            f'source must be a pipeline, its folder, or a network; got {describe(source)}'
        )
    return source, None, None


def _read_device(device: Any) -> torch.device:
    try:
        return torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(
            f"device must be a torch device, such as 'cuda:0'; got {device!r}"
        ) from None
