"""Networks inside the wrappers of torch, accelerate, PEFT and DeepSpeed, and classes by name."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from torch import nn

#: The attribute of a wrapper that holds the wrapped network, by the class of the wrapper.
_HELD_IN = {
    'OptimizedModule': '_orig_mod',  # torch.compile
    'DataParallel': 'module',
    'DistributedDataParallel': 'module',
    'FullyShardedDataParallel': 'module',
    'AveragedModel': 'module',  # torch.optim.swa_utils
    'DeepSpeedEngine': 'module',
    'PeftModel': 'base_model',
    'PeftMixedModel': 'base_model',
    'BaseTuner': 'model',  # LoraModel and its kind, inside a PeftModel
}


def unwrap_network(network: Any) -> Any:
    """Return the network inside its wrappers, or the network itself.

    The class and the attributes of a network are read from the result; the wrapper is called. A
    module whose forward takes `*args` and which holds one module is a wrapper of it.

    Args:
        network: The network.
    """
    while True:
        names = class_names(network)
        attribute = next((_HELD_IN[name] for name in names if name in _HELD_IN), None)
        inner = None if attribute is None else getattr(network, attribute, None)
        if inner is None and any(
            p.kind is p.VAR_POSITIONAL for p in parameters_of(network).values()
        ):
            inner = inner_module(network)
        if inner is None:
            return network
        network = inner


def inner_module(network: Any) -> Any:
    """Return the only module that a module holds; None if it holds none or several.

    Args:
        network: The module.
    """
    children = list(network.children()) if isinstance(network, nn.Module) else []
    return children[0] if len(children) == 1 else None


def parameters_of(network: Any) -> dict[str, inspect.Parameter]:
    """Return the parameters of a network's forward without self.

    For `*args` they are those of the base class. The class is inspected, because accelerate
    replaces the forward of an instance by one with any arguments.

    Args:
        network: The network.
    """
    kind: Any = type(network)
    return _parameters_of_class(kind)


@lru_cache(maxsize=64)
def _parameters_of_class(kind: type) -> dict[str, inspect.Parameter]:
    result: dict[str, inspect.Parameter] = {}
    for base in kind.__mro__:
        forward = None if base is nn.Module else vars(base).get('forward')
        if callable(forward):
            parameters = list(inspect.signature(forward).parameters.values())[1:]
            result = result or {p.name: p for p in parameters}
            if not any(p.kind is p.VAR_POSITIONAL for p in parameters):
                return {p.name: p for p in parameters}
    return result


def class_names(thing: Any) -> list[str]:
    """Return the names of an object's class and its base classes.

    Args:
        thing: The object.
    """
    return [base.__name__ for base in type(thing).__mro__]


def find_class(thing: Any, names: Iterable[str]) -> str | None:
    """Return the first class in the hierarchy of an object that is among the known names.

    Args:
        thing: The object.
        names: The names.
    """
    names = set(names)
    return next((name for name in class_names(thing) if name in names), None)


def describe(thing: Any) -> str:
    """Return the description of an argument in messages: a class, or the type of an object.

    Args:
        thing: The argument.
    """
    return f'the class {thing.__name__}' if isinstance(thing, type) else type(thing).__name__


def check_network(name: str, network: Any) -> None:
    """Raise a TypeError for an argument that cannot be called as a network.

    Args:
        name: The name of the argument in messages.
        network: The argument.
    """
    if isinstance(network, type):
        raise TypeError(
            f'{name} must be a network; got the class {network.__name__}. Make an instance of '
            'it and load its weights first'
        )
    if hasattr(network, 'components') and hasattr(network, 'scheduler'):
        raise TypeError(
            f'{name} must be a network; got a pipeline, {type(network).__name__}. Pass it to '
            'K.external.from_diffusers'
        )
    if not callable(network):
        raise TypeError(
            f'{name} must be a network, called as network(x, t, **cond); got {describe(network)}'
        )
