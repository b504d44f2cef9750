"""Recognition of models of other projects."""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Mapping
from typing import Any

from torch import nn

from ..denoisers.base import PreconditionedDenoiser
from .compvis import CompVisDenoiser, CompVisVDenoiser
from .diffusers import from_diffusers
from .diffusers_network import DiffusersNetwork
from .edm import EDMDenoiser
from .openai import OpenAIDenoiser
from .published import Published
from .unwrapping import describe, unwrap_network
from .v_diffusion import VDenoiser

logger = logging.getLogger(__name__)

_MODEL_KINDS = (
    'a pipeline of diffusers, its folder, or a model with its scheduler; a network of '
    'guided-diffusion with its diffusion; an object with apply_model and alphas_cumprod (CompVis); '
    'a network of EDM (with round_sigma) or EDM2 (with sigma_data and class_labels); a network of '
    'v-diffusion (with a shape and forward(x, t))'
)


def wrap(model: Any, partner: Any = None, quantize: bool = False) -> nn.Module:
    """Recognise a model of another project, and return its denoiser D(x, sigma, **cond).

    A network is also recognised inside torch.compile, DistributedDataParallel and PEFT, and in the
    dict of a pickle of EDM or EDM2 (its 'ema'). The attribute `taken_for` of the result, and the
    log at level INFO, describe the recognised kind. A denoiser of this project is returned
    unchanged.

    Args:
        model: The model.
        partner: Its diffusion (guided-diffusion) or scheduler (diffusers).
        quantize: Round levels to the nearest of the T levels.

    Raises:
        TypeError: If it is a class, or weights without a network.
        ValueError: If it is of no known family.
    """
    model = _inner_network(model)
    network = unwrap_network(model)
    if isinstance(network, (PreconditionedDenoiser, EDMDenoiser)):
        return model if hasattr(model, 'inner_model') else network  # DDP has no noise range
    denoiser, taken_for = _recognise(model, network, partner, quantize)
    denoiser.taken_for = taken_for  # type: ignore[assignment]
    logger.info('%s was taken for %s', type(network).__name__, taken_for)
    return denoiser


def _inner_network(model: Any) -> Any:
    """Return the network in the contents of an EDM pickle, or the argument; refuse classes."""
    if isinstance(model, Mapping):
        inner = next(
            (model[key] for key in ('ema', 'net') if isinstance(model.get(key), nn.Module)), None
        )
        if inner is None:
            raise TypeError(
                f'model must be a network; got {type(model).__name__} without one. Weights alone '
                'do not tell how they are called; load them into their network first'
            )
        return inner
    if isinstance(model, Published):
        raise TypeError(
            f'model must be a network; got published weights. Make a {model.network} with their '
            'method into(...)'
        )
    if isinstance(model, type):
        raise TypeError(
            f'model must be a network; got the class {model.__name__}. Make an instance of it and '
            'load its weights first'
        )
    return model


def _recognise(model: Any, network: Any, partner: Any, quantize: bool) -> tuple[nn.Module, str]:
    """Return the denoiser and a description; network is the model without its wrappers."""
    if isinstance(model, (str, os.PathLike)) or _is_diffusers(network) or _is_scheduler(partner):
        denoiser = from_diffusers(model, partner, quantize)
        inner = denoiser.inner_model
        kind = inner.kind if isinstance(inner, DiffusersNetwork) else type(inner).__name__
        return (
            denoiser,
            f'{kind} of diffusers, whose scheduler makes it a {type(denoiser).__name__}',
        )
    if hasattr(partner, 'alphas_cumprod'):
        has_variance = 'LEARNED' in str(
            getattr(getattr(partner, 'model_var_type', None), 'name', '')
        )
        result = OpenAIDenoiser(model, partner, quantize, has_variance)
        answer = 'the clean data' if result.gives_x0 else 'the noise'
        return (
            result,
            f'a network of guided-diffusion that gives {answer}{" and a variance" * has_variance}, '
            f'{len(result.sigmas)} levels',
        )
    if hasattr(network, 'apply_model') and hasattr(network, 'alphas_cumprod'):
        kind = getattr(network, 'parameterization', 'eps')
        if kind not in ('eps', 'v'):
            raise ValueError(f'the parameterization of model must be eps or v; got {kind!r}')
        wrapper = CompVisVDenoiser if kind == 'v' else CompVisDenoiser
        return wrapper(network, quantize), f'a latent diffusion model of CompVis that gives {kind}'
    edition = _edm_edition(network)
    if edition is not None:
        return EDMDenoiser(model), f'a denoiser of {edition} ({type(network).__name__})'
    if isinstance(getattr(network, 'shape', None), tuple) and list(_parameters(network))[:2] in (
        ['input', 't'],
        ['x', 't'],
    ):
        return (
            VDenoiser(model),
            f'a network of v-diffusion ({type(network).__name__}) for '
            f'{"x".join(map(str, network.shape))}',
        )
    raise ValueError(
        f'model must be one of these: {_MODEL_KINDS}; got {describe(network)}'
        f'{" with " + type(partner).__name__ if partner is not None else ""}. For another, '
        'derive a class from K.external.DiscreteEpsDDPMDenoiser or VDenoiser'
    )


def _edm_edition(network: Any) -> str | None:
    """Return the edition of a preconditioned network, 'EDM' or 'EDM2', or None.

    EDM's networks round levels; EDM2's take x, sigma and labels.
    """
    if hasattr(network, 'round_sigma') and hasattr(network, 'sigma_min'):
        return 'EDM'
    takes = _parameters(network)
    classes = 'class_labels' in takes or hasattr(network, 'label_dim')
    return (
        'EDM2'
        if takes[:2] == ['x', 'sigma'] and classes and hasattr(network, 'sigma_data')
        else None
    )


def _is_diffusers(model: Any) -> bool:
    return any(base.__module__.startswith('diffusers.') for base in type(model).__mro__)


def _is_scheduler(partner: Any) -> bool:
    return _is_diffusers(partner) and hasattr(partner, 'set_timesteps')


def _parameters(model: Any) -> list[str]:
    call = getattr(model, 'forward', model)
    return list(inspect.signature(call).parameters) if callable(call) else []
