"""Check and convert the arguments of sampling: denoisers, batches, seeds and conditions."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..core.arguments import show_value
from ..core.conditions import is_shared
from ..core.random import derive_seed

#: The name of this package, under which its networks are.
ROOT = __name__.rpartition('.generation.')[0]


def as_condition(value: Any, n: int) -> Any:
    """Convert lists of numbers and numpy arrays in a condition of n items to tensors.

    Args:
        value: A tree of conditions.
        n: Number of items.
    """
    if isinstance(value, Mapping):
        return {key: as_condition(entry, n) for key, entry in value.items()}
    if isinstance(value, (list, tuple)) and not all(
        isinstance(entry, (int, float)) for entry in value
    ):
        entries = [as_condition(entry, n) for entry in value]
        return type(value)(*entries) if hasattr(value, '_fields') else type(value)(entries)
    if (
        isinstance(value, Tensor)
        or not hasattr(value, '__len__')
        or isinstance(value, (str, bytes))
    ):
        return value
    return torch.as_tensor(value)


def refuse_unwrapped(model: Any) -> None:
    """Raise a TypeError for pipelines and networks that are not denoisers, and for non-callables.

    Args:
        model: The candidate.
    """
    inner = _network_inside(model)
    if any(base.__module__.startswith('diffusers.') for base in type(inner).__mro__):
        raise TypeError(
            f'denoiser must be a function D(x, sigma, **cond); got a diffusers '
            f'{type(inner).__name__}. Wrap its network: '
            'K.external.from_diffusers(pipe.unet, pipe.scheduler)'
        )
    if type(inner).__module__.startswith(f'{ROOT}.models.'):
        raise TypeError(
            f'denoiser must be a function D(x, sigma, **cond); got a bare network, '
            f'{type(inner).__name__}. Wrap it: '
            'K.config.make_denoiser_wrapper(config)(network)'
        )
    if hasattr(model, 'apply_model') and not hasattr(model, 'sigmas'):
        raise TypeError(
            f'denoiser must be a function D(x, sigma, **cond); got {type(model).__name__} with '
            'apply_model. Wrap it: K.external.wrap(model)'
        )
    if not callable(model):
        raise TypeError(
            f'denoiser must be a function D(x, sigma, **cond); got {type(model).__name__}'
        )
    if not _takes_two(inner):
        raise TypeError(
            f'denoiser must be a function D(x, sigma, **cond); got {type(inner).__name__}, '
            'which takes no sigma. Wrap the network as a denoiser: K.external.wrap(network) '
            'for known families'
        )


def _network_inside(model: Any) -> Any:
    """Return the network inside torch.compile and torch's parallel wrappers."""
    while isinstance(model, nn.Module) and type(model).__module__.startswith('torch.'):
        parts = dict(model.named_children())
        inner = parts.get('_orig_mod', parts.get('module'))
        if inner is None:
            break
        model = inner
    return model


def _takes_two(model: Any) -> bool:
    """Return True if a model can be called with two positional arguments."""
    try:
        call = model.forward if isinstance(model, nn.Module) else model
        inspect.signature(call).bind_partial(None, None)
    except TypeError:
        return False
    except ValueError:  # no signature to read
        return True
    return True


def device_of(denoiser: Any) -> Any:
    """Return the device of the parameters of a denoiser, or the CPU.

    Args:
        denoiser: The denoiser.
    """
    parameters = getattr(denoiser, 'parameters', None)
    return (
        next((parameter.device for parameter in parameters()), torch.device('cpu'))
        if callable(parameters)
        else torch.device('cpu')
    )


def check_integer(name: str, value: Any) -> int:
    """Return a value as an int.

    Args:
        name: Its name, for messages.
        value: The value.

    Raises:
        ValueError: If it is not an integer.
    """
    try:
        if not isinstance(value, bool):
            return operator.index(value)
    except TypeError:
        pass
    raise ValueError(f'{name} must be an integer; got {value!r}')


def batch_shape(shape_or_x: Any) -> list[int]:
    """Return the shape [B, ...] of a batch that is given, or whose shape is given.

    Args:
        shape_or_x: A shape or a tensor.

    Raises:
        ValueError: If it is not the shape of a batch.
    """
    shape = shape_or_x.shape if isinstance(shape_or_x, Tensor) else shape_or_x
    try:
        sides = [operator.index(side) for side in shape]
    except (TypeError, RuntimeError):
        sides = []
    if len(sides) < 2 or min(sides[1:]) < 1 or sides[0] < 0:
        raise ValueError(
            'shape_or_x must be a batch, or the shape of one, such as [4, 3, 64, 64]; got '
            f'{show_value(shape)}'
        )
    return sides


def make_seeds(seeds: Any, n: int) -> list[int]:
    """Return a seed for each of n samples.

    Args:
        seeds: A seed for each; one number, from which they are derived; or None for a number from
            torch's global generator.
        n: Number of samples.

    Raises:
        ValueError: If there is another number of seeds.
    """
    if seeds is None:
        seeds = torch.randint(0, 2**63 - 1, [])
    if not hasattr(seeds, '__len__') or getattr(seeds, 'ndim', 1) == 0:
        seed = check_integer('seeds', seeds)
        return [derive_seed(seed, 'sample', i) for i in range(n)]
    if len(seeds) != n:
        raise ValueError(
            f'seeds must be one number, or one for each of {n} samples; got {len(seeds)}'
        )
    return [check_integer('a seed', seed) for seed in seeds]


def check_entries(key: str, value: Any, n: int) -> None:
    """Raise a ValueError for a vector of values per item whose length differs from the items.

    Args:
        key: The condition.
        value: Its value.
        n: The number of items.
    """
    if (
        isinstance(value, Tensor)
        and value.ndim == 1
        and len(value) not in (1, n)
        and not is_shared(value)
    ):
        raise ValueError(
            f'the condition {key!r} must have one entry for each of {n} seeds; got {len(value)}. '
            'Wrap a vector that all samples share in K.share(...)'
        )
