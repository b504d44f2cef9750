"""Models of the diffusers library as denoisers: the network by its class, the meaning of its answer by its scheduler."""
from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.extras import require
from ..denoisers.base import PreconditionedDenoiser
from .discrete import DiscreteEpsDDPMDenoiser, DiscreteVDDPMDenoiser, DiscreteX0DDPMDenoiser, ddpm_sigmas
from .edm import KarrasTimeDenoiser
from .flow import FlowDenoiser

_KINDS: Mapping[str, Any] = {'epsilon': DiscreteEpsDDPMDenoiser, 'v_prediction': DiscreteVDDPMDenoiser, 'sample': DiscreteX0DDPMDenoiser}
#: Conditions that a UNet2DConditionModel takes in its added_cond_kwargs.
_ADDED = ('text_embeds', 'time_ids', 'image_embeds')


def from_diffusers(source: Any, scheduler: Any = None, quantize: bool = False, device: Any = None,
                   dtype: torch.dtype | None = None) -> PreconditionedDenoiser:
    """The denoiser D(x, sigma, **cond) of a pipeline, of its folder or name, or of a model beside its scheduler.

    Of a folder the network and the scheduler's settings are loaded and nothing else. Pictures (or latents, scaled as the network
    knows them) go in and out; conditions have the names of the model's own forward, with class_cond for class labels and
    SDXL's text_embeds and time_ids like any other, all one per item, so that classifier-free guidance can join them. `unet_cond`
    is laid beside x (inpainting models). quantize: ask at the nearest of the T levels it was trained at.

    denoiser = K.external.from_diffusers('path/to/stable-diffusion'); sigmas = denoiser.get_sigmas(30)
    """
    if isinstance(source, (str, os.PathLike)):
        model, own = _loaded(str(source), dtype)
    else:
        pipeline = getattr(source, 'components', None)
        model = source if pipeline is None else getattr(source, 'unet', None) or getattr(source, 'transformer', None)
        own = getattr(source, 'scheduler', None)
    scheduler = own if scheduler is None else scheduler
    if model is None or scheduler is None:
        lacks = 'a unet or transformer' if model is None else 'a scheduler, which says what its answer means: give one as scheduler='
        raise ValueError(f'{type(source).__name__} lacks {lacks}')
    denoiser = denoiser_of(DiffusersNetwork(model), scheduler, quantize)
    return denoiser.to(device).eval().requires_grad_(False) if device is not None else denoiser.eval().requires_grad_(False)


def denoiser_of(network: DiffusersNetwork, scheduler: Any, quantize: bool = False) -> PreconditionedDenoiser:
    """The network as a denoiser, of the kind that the scheduler's settings tell."""
    config, name = scheduler.config, type(scheduler).__name__
    prediction = config.get('prediction_type', 'epsilon')
    if name.startswith('FlowMatch') or prediction == 'flow_prediction' or config.get('use_flow_sigmas'):
        shift = config.get('shift', config.get('flow_shift', 1.)) or 1.
        return FlowDenoiser(network, float(shift), network.flow_time_scale)
    if name.startswith('EDM'):
        return KarrasTimeDenoiser(network, config['sigma_data'], prediction, config['sigma_min'], config['sigma_max'])
    if prediction not in _KINDS or getattr(scheduler, 'alphas_cumprod', None) is None:
        raise ValueError(f'{name} with prediction_type {prediction!r} is not known here; known are schedulers with alphas_cumprod and '
                         f'{", ".join(_KINDS)}, FlowMatch* and EDM* ones')
    return _KINDS[prediction](network, scheduler.alphas_cumprod, quantize)


def scheduler_sigmas(scheduler: Any, sigma_max: float = 1e4) -> Tensor:
    """The noise levels that a scheduler (after its set_timesteps) walks through, as the samplers here take them, in float64."""
    name = type(scheduler).__name__
    if name.startswith('FlowMatch'):
        t = scheduler.sigmas.double()
        return (t / (1 - t)).clamp(max=sigma_max)
    if getattr(scheduler, 'sigmas', None) is not None:
        return scheduler.sigmas.double()
    table = ddpm_sigmas(scheduler.alphas_cumprod.double())
    final = getattr(scheduler, 'final_alpha_cumprod', torch.tensor(1.)).double()
    return torch.cat([table[scheduler.timesteps.long().cpu()], ((1 - final) / final).sqrt()[None]])


class DiffusersNetwork(nn.Module):
    """A diffusers model as a function (x, t, **cond) -> its answer, without what it says of variance."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.kind = type(model).__name__
        #: Flux multiplies its time by 1000 itself.
        self.flow_time_scale = 1. if self.kind.startswith('Flux') else 1000.

    def forward(self, x: Tensor, t: Tensor, unet_cond: Tensor | None = None, class_cond: Tensor | None = None, **cond: Any) -> Tensor:
        channels = x.shape[1]
        if unet_cond is not None:
            x = torch.cat([x, unet_cond], 1)
        if class_cond is not None:
            cond['class_labels'] = class_cond
        if self.kind.startswith('Flux'):
            return self._flux(x, t, **cond)
        added = {key: cond.pop(key) for key in _ADDED if key in cond}
        if added:
            cond['added_cond_kwargs'] = {**cond.get('added_cond_kwargs', {}), **added}
        if self.kind.startswith('SD3'):
            return self.model(hidden_states=x, timestep=t, return_dict=False, **cond)[0]
        return self.model(x, t, return_dict=False, **cond)[0][:, :channels]

    def _flux(self, x: Tensor, t: Tensor, guidance: Tensor | float | None = None, **cond: Any) -> Tensor:
        """Patches of 2x2 as tokens, with their places; the guidance scale that a distilled one was told (3.5) if none is given."""
        h, w = x.shape[2] // 2, x.shape[3] // 2
        rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing='ij')
        places = torch.stack([torch.zeros_like(rows), rows, columns], -1).view(-1, 3).to(x)
        words = x.new_zeros(cond['encoder_hidden_states'].shape[1], 3)
        if self.model.config.get('guidance_embeds'):
            cond['guidance'] = torch.as_tensor(3.5 if guidance is None else guidance, device=x.device, dtype=torch.float32).expand(len(x))
        out = self.model(hidden_states=F.pixel_unshuffle(x, 2).flatten(2).mT, timestep=t.to(x.dtype), img_ids=places, txt_ids=words,
                         return_dict=False, **cond)[0]
        return F.pixel_shuffle(out.mT.unflatten(2, (h, w)), 2)


def _loaded(source: str, dtype: torch.dtype | None) -> tuple[Any, Any]:
    """The network and the scheduler in a pipeline's folder, or one of that name on the hub."""
    diffusers = require('diffusers', 'diffusers', 'loading a diffusers model')
    try:
        index: Mapping[str, Any] = diffusers.DiffusionPipeline.load_config(source)
    except (OSError, ValueError):
        folder = Path(source).is_dir()
        where = 'is a folder without model_index.json' if folder else 'is no folder here, and no model of that name can be had'
        raise FileNotFoundError(f'{source} {where}; give the folder of a diffusers pipeline, or a model and its scheduler') from None
    parts = {key: index[key] for key in ('unet', 'transformer', 'scheduler') if index.get(key) not in (None, [None, None])}
    loaded: dict[str, Any] = {}
    for key, (library, name) in parts.items():
        if library != 'diffusers' or not hasattr(diffusers, name):
            raise ValueError(f'{source} wants {name} of {library} as its {key}; only classes of diffusers itself are loaded, since others '
                             'are code that comes with the weights')
        options = {} if key == 'scheduler' or dtype is None else {'torch_dtype': dtype}
        loaded[key] = getattr(diffusers, name).from_pretrained(source, subfolder=key, **options)
    return loaded.get('unet', loaded.get('transformer')), loaded.get('scheduler')
