"""Models of the diffusers library as denoisers: the network by its class, the meaning of its answer by its scheduler."""
from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.conditions import expand_single
from ..denoisers.base import PreconditionedDenoiser
from .diffusers_folders import load_parts
from .schedulers import make_denoiser
from .unwrapping import (
    describe,
    find_class,
    held_module,
    parameters_of,
    unwrap_network,
)

#: Networks that are known, by class: how much of a flow's time of 0 to 1000 each is given.
_FAMILIES: Mapping[str, float] = {
    'UNet2DModel': 1.,
    'UNet2DConditionModel': 1.,
    'UNet3DConditionModel': 1.,
    'UNetSpatioTemporalConditionModel': 1.,
    'DiTTransformer2DModel': 1.,
    'PixArtTransformer2DModel': 1.,
    'SanaTransformer2DModel': 1.,
    'SD3Transformer2DModel': 1.,
    'WanTransformer3DModel': 1.,
    'FluxTransformer2DModel': 1e-3,      # it multiplies its time by 1000 itself
}
#: Conditions that a UNet2DConditionModel takes in its added_cond_kwargs.
_ADDED = ('text_embeds', 'time_ids', 'image_embeds')
#: Those that each kind of it needs, by addition_embed_type.
_ADDED_BY_TYPE: Mapping[str, tuple[str, ...]] = {
    'text_time': ('text_embeds', 'time_ids'), 'image': ('image_embeds',)}
#: Conditions that are one tensor.
_TENSORS = ('encoder_hidden_states', 'pooled_projections', 'class_labels', *_ADDED[:2])
#: Conditions without a dimension of items: places of tokens, and what attention is given as it is.
_UNBATCHED = ('img_ids', 'txt_ids', 'cross_attention_kwargs', 'attention_kwargs',
              'joint_attention_kwargs')
#: Names that DiffusersNetwork gives itself; they are no conditions of a network's forward.
_OWN = ('self', 'timestep', 'return_dict')


def from_diffusers(source: Any, scheduler: Any = None, quantize: bool = False, device: Any = None,
                   dtype: torch.dtype | None = None, variant: str | None = None) -> PreconditionedDenoiser:
    """The denoiser D(x, sigma, **cond) of a pipeline, of its folder or name, or of a model beside its scheduler.

    Of a folder the network and the scheduler's settings are loaded and nothing else. Pictures (or latents, scaled as the network
    knows them) go in and out; conditions have the names of the model's own forward, with class_cond for class labels and
    SDXL's text_embeds and time_ids like any other, all one per item (one entry serves
    all items), so that classifier-free guidance can join them. `unet_cond`
    is laid beside x (inpainting models, Stable Video Diffusion). The network is frozen, and moved where device or dtype say so.

    denoiser = K.external.from_diffusers('path/to/stable-diffusion'); sigmas = denoiser.get_sigmas(30)

    Args:
        source: a pipeline; the folder or the hub's name of one; or a network, also under
            torch.compile, DistributedDataParallel or PEFT.
        scheduler: the scheduler that belongs to the network; None for that of the pipeline.
        quantize: ask at the nearest of the T levels the network was trained at.
        device: where to move the network; None leaves it.
        dtype: what to cast the network to; None leaves it (float32 where it is loaded).
        variant: which weights of a folder to load, 'fp16' for example; None for those without a
            variant or, where there are none, for the only variant.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: the network's family or the scheduler is not known here.
        FileNotFoundError: there is no such folder, or it lacks the weights.
    """
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(f'dtype must be a floating torch.dtype, torch.float16 for example; got {dtype!r}')
    device = None if device is None else _read_device(device)
    if isinstance(source, (str, os.PathLike)):
        model, own = load_parts(str(source), dtype, variant)
    elif variant is not None:
        raise ValueError(f'variant must be left out where source is no folder and no name; got {variant!r} '
                         f'with {describe(source)}')
    else:
        model, own = _parts_of(source)
    scheduler = own if scheduler is None else scheduler
    if model is None or scheduler is None:
        lacks = 'a unet or transformer' if model is None else 'a scheduler, which says what its answer means: give one as scheduler='
        raise ValueError(f'{type(source).__name__} lacks {lacks}')
    denoiser = make_denoiser(DiffusersNetwork(model), scheduler, quantize)
    if device is not None or dtype is not None:
        denoiser = denoiser.to(device=device, dtype=dtype)
    return denoiser.eval().requires_grad_(False)


def _parts_of(source: Any) -> tuple[Any, Any]:
    """Return the network and the scheduler of a pipeline, or a network without a scheduler."""
    if isinstance(source, type):
        raise TypeError(f'source must be a pipeline, its folder, or a network; got {describe(source)}: '
                        f'load it first, {source.__name__}.from_pretrained(...)')
    if getattr(source, 'components', None) is not None:
        second = next((name for name in ('transformer_2', 'unet_2', 'transformer2')
                       if getattr(source, name, None) is not None), None)
        if second is not None:
            raise ValueError(f'source must have one network; {type(source).__name__} has a second, '
                             f'{second}, for other noise levels: wrap each with its scheduler')
        model = getattr(source, 'unet', None)
        return (getattr(source, 'transformer', None) if model is None else model,
                getattr(source, 'scheduler', None))
    if hasattr(source, 'set_timesteps'):
        raise TypeError(f'source must be a pipeline, its folder, or a network; got the scheduler '
                        f'{type(source).__name__}: give the network first, then the scheduler')
    if not isinstance(source, nn.Module):
        raise TypeError(f'source must be a pipeline, its folder, or a network; got {describe(source)}')
    return source, None


def _read_device(device: Any) -> torch.device:
    try:
        return torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(f"device must be a device of torch, 'cuda:0' for example; got {device!r}") from None


class DiffusersNetwork(nn.Module):
    """A diffusers model as a function (x, t, **cond) -> its answer, without what it says of variance.

    The family is that of the network inside torch.compile, DistributedDataParallel or PEFT, and of
    the class that the network's class is derived from.

    Args:
        model: a network of diffusers, or one that is called like one.

    Raises:
        ValueError: its family is not known here.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        network = unwrap_network(model)
        held = unwrap_network(held_module(network))     # (a wrapper of one's own has the family of its one network)
        self.kind = find_class(network, _FAMILIES) or _refuse_unknown(network)
        if self.kind not in _FAMILIES and held is not None:
            self.kind = find_class(held, _FAMILIES) or self.kind
        configs = (getattr(part, 'config', None) for part in (network, held))
        self.config: Mapping[str, Any] = next((config for config in configs if isinstance(config, Mapping)), {})
        self.is_flux = self.kind == 'FluxTransformer2DModel'
        self.takes_added = self.kind == 'UNet2DConditionModel'
        self.channels = 2 if self.kind == 'UNetSpatioTemporalConditionModel' else 1
        #: What a time of the flow in [0, 1] is multiplied by.
        self.flow_time_scale = 1000. * _FAMILIES.get(self.kind, 1.)
        if self.kind == 'SanaTransformer2DModel':
            self.flow_time_scale *= float(self.config.get('timestep_scale', 1.))
        self._read_signature(parameters_of(network))
        if self.is_flux:
            self.needed += ['encoder_hidden_states', 'pooled_projections']

    def _read_signature(self, parameters: Mapping[str, inspect.Parameter]) -> None:
        """Read what the network's forward calls x and t, and which conditions it takes and needs."""
        self.input, second = list(parameters)[:2]
        self.time = 'timestep' if 'timestep' in parameters else second
        conditions = {name: p for name, p in parameters.items() if name not in (*_OWN, self.input, self.time)}
        named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        any_name = any(p.kind is p.VAR_KEYWORD for p in conditions.values())
        self.known = None if any_name else set(conditions)
        self.needed = [name for name, p in conditions.items() if p.kind in named and p.default is p.empty]

    def forward(self, x: Tensor, t: Tensor, unet_cond: Tensor | None = None, class_cond: Tensor | None = None, **cond: Any) -> Tensor:
        width = x.shape[self.channels] if x.ndim > self.channels else 0
        if unet_cond is not None:
            x = torch.cat([x, expand_single(unet_cond, len(x))], self.channels)
        if class_cond is not None:
            labels = torch.as_tensor(class_cond, device=x.device)
            cond['class_labels'] = labels.expand(len(x)) if labels.ndim == 0 else labels
        self._check_channels(x)
        self._check_conditions(cond, len(x))
        added = {key: cond.pop(key) for key in _ADDED if self.takes_added and key in cond}
        if added:
            cond['added_cond_kwargs'] = {**(cond.get('added_cond_kwargs') or {}), **added}
        cond = {name: value if name in _UNBATCHED else expand_single(value, len(x))
                for name, value in cond.items()}
        if self.is_flux:
            return self._flux(x, t, **cond)
        answer = self.model(**{self.input: x, self.time: t}, return_dict=False, **cond)
        if not isinstance(answer, Tensor):
            answer = next(iter(answer.values() if isinstance(answer, Mapping) else answer))
        return answer.narrow(self.channels, 0, width) if answer.shape[self.channels] > width else answer

    def _check_channels(self, x: Tensor) -> None:
        wanted = None if self.is_flux else self.config.get('in_channels')
        if isinstance(wanted, int) and x.ndim > self.channels and x.shape[self.channels] != wanted:
            raise ValueError(f'x must have {wanted} channels for this {self.kind}, those of unet_cond counted; '
                             f'got {x.shape[self.channels]}')

    def _check_conditions(self, cond: Mapping[str, Any], n: int) -> None:
        added = _ADDED_BY_TYPE.get(str(self.config.get('addition_embed_type')), ()) if self.takes_added else ()
        given = {**cond, **(cond.get('added_cond_kwargs') or {})}
        missing = [name for name in (*self.needed, *added) if name not in given]
        if missing:
            raise TypeError(f'{self.kind} must be given the condition {missing[0]!r}; got '
                            f'{", ".join(map(repr, cond)) or "none"}')
        for name in (name for name in _TENSORS if given.get(name) is not None):
            if not isinstance(given[name], Tensor):
                raise TypeError(f'{name} must be a tensor with an entry for each item; got {describe(given[name])}')
            if given[name].ndim < 1 or len(given[name]) not in (1, n):
                raise ValueError(f'{name} must have 1 entry or one for each of the {n} items; '
                                 f'got the shape {list(given[name].shape)}')
        own = () if not self.takes_added else _ADDED
        unknown = [] if self.known is None else [name for name in cond if name not in (*self.known, *own)]
        if unknown:
            raise TypeError(f'{self.kind} takes no condition {unknown[0]!r}; it takes '
                            f'{", ".join(sorted(self.known or ()))}')

    def _flux(self, x: Tensor, t: Tensor, guidance: Tensor | float | None = None, **cond: Any) -> Tensor:
        """Patches of 2x2 as tokens, with their places; the guidance scale that a distilled one was told (3.5) if none is given."""
        if x.ndim != 4 or x.shape[2] % 2 or x.shape[3] % 2:
            raise ValueError(f'x must be latents [B, C, H, W] with even H and W for Flux; got {list(x.shape)}')
        h, w = x.shape[2] // 2, x.shape[3] // 2
        rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing='ij')
        cond.setdefault('img_ids', torch.stack([torch.zeros_like(rows), rows, columns], -1).view(-1, 3).to(x))
        cond.setdefault('txt_ids', x.new_zeros(cond['encoder_hidden_states'].shape[1], 3))
        if self.config.get('guidance_embeds'):
            cond['guidance'] = torch.as_tensor(3.5 if guidance is None else guidance, device=x.device, dtype=torch.float32).expand(len(x))
        out = self.model(hidden_states=F.pixel_unshuffle(x, 2).flatten(2).mT, timestep=t.to(x.dtype), return_dict=False, **cond)[0]
        return F.pixel_shuffle(out.mT.unflatten(2, (h, w)), 2)


def _refuse_unknown(network: Any) -> str:
    """Return the class of a network that is called like one of diffusers, or refuse it by name."""
    name = type(network).__name__
    parameters = parameters_of(network)
    named = [p for p in parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    of_diffusers = any(base.__module__.startswith('diffusers.') for base in type(network).__mro__)
    takes = any(p.name == 'return_dict' or p.kind is p.VAR_KEYWORD for p in parameters.values())
    if of_diffusers or not takes or len(named) < 2:
        what = 'a network of diffusers that is not known here' if of_diffusers else \
            'not called as forward(sample, timestep, ..., return_dict) as networks of diffusers are'
        raise ValueError(f'{name} is {what}; known are {", ".join(_FAMILIES)} and classes derived from them')
    return name
