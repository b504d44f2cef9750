"""Models of the diffusers library as denoisers: the network by its class, the meaning of its
answer by its scheduler.
"""

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
    """The denoiser D(x, sigma, **cond) of a pipeline, of its folder or name, or of a model beside
    its scheduler.

    Of a folder the network and the scheduler's settings are loaded and nothing else. Pictures (or
    latents, scaled as the network knows them) go in and out; conditions have the names of the
    model's own forward, with class_cond for class labels and SDXL's text_embeds and time_ids like
    any other, all one per item (one entry serves all items), so that classifier-free guidance can
    join them. `unet_cond` is laid beside x (inpainting models, Stable Video Diffusion). The network
    is frozen, and moved where device or dtype say so.

    denoiser = K.external.from_diffusers('path/to/stable-diffusion'); sigmas =
    denoiser.get_sigmas(30)

    Args:
        source: a pipeline; the folder or the hub's name of one; or a network, also under
            torch.compile, DistributedDataParallel or PEFT.
        scheduler: the scheduler that belongs to the network; None for that of the pipeline.
        quantize: ask at the nearest of the T levels the network was trained at.
        device: where to move the network; None leaves it.
        dtype: what to cast the network to; None leaves it (float32 where it is loaded).
        variant: which weights of a folder to load, 'fp16' for example; None for those without a
            variant or, where there are none, for the only variant.
        controlnet: a ControlNet that belongs to the network, or several as diffusers'
            MultiControlNetModel; None for that of the pipeline. Its picture is the condition
            `controlnet_cond`, its weight `conditioning_scale`.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: the network's family, the ControlNet or the scheduler is not known here.
        FileNotFoundError: there is no such folder, or it lacks the weights.
    """
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(
            f'dtype must be a floating torch.dtype, torch.float16 for example; got {dtype!r}'
        )
    device = None if device is None else _read_device(device)
    if isinstance(source, (str, os.PathLike)):
        model, own, control = load_parts(str(source), dtype, variant)
    elif variant is not None:
        raise ValueError(
            f'variant must be left out where source is no folder and no name; got {variant!r} '
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
    """Return the network, the scheduler and the ControlNet of a pipeline, or a network without
    these.
    """
    if isinstance(source, type):
        raise TypeError(
            f'source must be a pipeline, its folder, or a network; got {describe(source)}: '
            f'load it first, {source.__name__}.from_pretrained(...)'
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
                f'{second}, for other noise levels: wrap each with its scheduler'
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
            f'{type(source).__name__}: give the network first, then the scheduler'
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
            f"device must be a device of torch, 'cuda:0' for example; got {device!r}"
        ) from None
