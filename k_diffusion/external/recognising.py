"""Whatever is given, recognised and wrapped."""
from __future__ import annotations

import inspect
import logging
import os
from typing import Any

from torch import nn

from ..denoisers.base import PreconditionedDenoiser
from .compvis import CompVisDenoiser, CompVisVDenoiser
from .diffusers import DiffusersNetwork, from_diffusers
from .edm import EDMDenoiser
from .openai import OpenAIDenoiser
from .v_diffusion import VDenoiser

logger = logging.getLogger(__name__)

_KNOWN = ('a pipeline of diffusers, its folder, or a model with its scheduler; a network of guided-diffusion with its diffusion; an '
          'object with apply_model and alphas_cumprod (CompVis); a network of EDM or EDM2 (with round_sigma); a network of '
          'v-diffusion (with a shape and forward(x, t))')


def wrap(model: Any, partner: Any = None, quantize: bool = False) -> nn.Module:
    """The denoiser D(x, sigma, **cond) of a model of another family, which is recognised by what it has.

    partner: the diffusion (guided-diffusion) or the scheduler (diffusers) that belongs to it, where there is one. What it was
    taken for stands in the result's `taken_for`, and in the log at the level INFO. A denoiser of ours is given back as it is. What
    is not recognised is refused, with a list of what would be.
    """
    if isinstance(model, (PreconditionedDenoiser, EDMDenoiser)):
        return model
    denoiser, taken_for = _recognised(model, partner, quantize)
    denoiser.taken_for = taken_for          # type: ignore[assignment]
    logger.info('%s was taken for %s', type(model).__name__, taken_for)
    return denoiser


def _recognised(model: Any, partner: Any, quantize: bool) -> tuple[nn.Module, str]:
    if isinstance(model, (str, os.PathLike)) or _is_diffusers(model):
        denoiser = from_diffusers(model, partner, quantize)
        network = denoiser.inner_model
        kind = network.kind if isinstance(network, DiffusersNetwork) else type(network).__name__
        return denoiser, f'{kind} of diffusers, whose scheduler makes it a {type(denoiser).__name__}'
    if hasattr(partner, 'alphas_cumprod'):
        learned = 'LEARNED' in str(getattr(getattr(partner, 'model_var_type', None), 'name', ''))
        wrapped = OpenAIDenoiser(model, partner, quantize, learned)
        answer = 'the clean data' if wrapped.gives_x0 else 'the noise'
        return wrapped, f'a network of guided-diffusion that gives {answer}{" and a variance" * learned}, {len(wrapped.sigmas)} levels'
    if hasattr(model, 'apply_model') and hasattr(model, 'alphas_cumprod'):
        kind = getattr(model, 'parameterization', 'eps')
        if kind not in ('eps', 'v'):
            raise ValueError(f'the model has apply_model and the parameterization {kind!r}; known are eps and v')
        wrapper = CompVisVDenoiser if kind == 'v' else CompVisDenoiser
        return wrapper(model, quantize), f'a latent diffusion model of CompVis that gives {kind}'
    if hasattr(model, 'round_sigma') and hasattr(model, 'sigma_min'):
        return EDMDenoiser(model), f'a denoiser of EDM ({type(model).__name__})'
    if isinstance(getattr(model, 'shape', None), tuple) and list(_parameters(model))[:2] in (['input', 't'], ['x', 't']):
        return VDenoiser(model), f'a network of v-diffusion ({type(model).__name__}) for {"x".join(map(str, model.shape))}'
    raise ValueError(f'{type(model).__name__}{" with " + type(partner).__name__ if partner is not None else ""} is not recognised. '
                     f'Recognised are: {_KNOWN}. For another, write a subclass of K.external.DiscreteEpsDDPMDenoiser or VDenoiser')


def _is_diffusers(model: Any) -> bool:
    return any(base.__module__.startswith('diffusers.') for base in type(model).__mro__)


def _parameters(model: Any) -> list[str]:
    call = getattr(model, 'forward', model)
    return list(inspect.signature(call).parameters) if callable(call) else []
