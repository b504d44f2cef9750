"""Networks inside the wrappers of torch, accelerate, PEFT and DeepSpeed, and classes by name."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from torch import nn

#: The attribute in which a wrapper holds what it wraps, by the wrapper's class.
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
    """Return the network inside its wrappers, or the network itself where it has none.

    The class and the attributes of a network are read from the result; the wrapper is called. A
    module whose forward takes `*args`, and which holds one module, is a wrapper of that.
    """
    while True:
        names = class_names(network)
        held = next((_HELD_IN[name] for name in names if name in _HELD_IN), None)
        inner = None if held is None else getattr(network, held, None)
        if inner is None and any(
            p.kind is p.VAR_POSITIONAL for p in parameters_of(network).values()
        ):
            inner = held_module(network)
        if inner is None:
            return network
        network = inner


def held_module(network: Any) -> Any:
    """Return the one module that a module holds; None where it holds none or several."""
    held = list(network.children()) if isinstance(network, nn.Module) else []
    return held[0] if len(held) == 1 else None


def parameters_of(network: Any) -> dict[str, inspect.Parameter]:
    """Return what a network's forward takes, without its self; of `*args`, what the class that it
    is derived from takes.

    The class is asked, since accelerate puts a forward of any arguments into an instance.
    """
    kind: Any = type(network)
    return _parameters_of_class(kind)


@lru_cache(maxsize=64)
def _parameters_of_class(kind: type) -> dict[str, inspect.Parameter]:
    found: dict[str, inspect.Parameter] = {}
    for base in kind.__mro__:
        forward = None if base is nn.Module else vars(base).get('forward')
        if callable(forward):
            taken = list(inspect.signature(forward).parameters.values())[1:]
            found = found or {p.name: p for p in taken}
            if not any(p.kind is p.VAR_POSITIONAL for p in taken):
                return {p.name: p for p in taken}
    return found


def class_names(thing: Any) -> list[str]:
    """Return the names of an object's class and of the classes it is derived from."""
    return [base.__name__ for base in type(thing).__mro__]


def find_class(thing: Any, known: Iterable[str]) -> str | None:
    """Return the first class of the object's hierarchy that is among the known names."""
    known = set(known)
    return next((name for name in class_names(thing) if name in known), None)


def describe(thing: Any) -> str:
    """Return what a message calls an argument: the class itself, or an object of it."""
    return f'the class {thing.__name__}' if isinstance(thing, type) else type(thing).__name__


def check_network(name: str, network: Any) -> None:
    """Refuse what cannot be called as a network.

    Args:
        name: the name of the argument, for the message.
        network: the argument.

    Raises:
        TypeError: it is a class, or it cannot be called.
    """
    if isinstance(network, type):
        raise TypeError(
            f'{name} must be a network; got the class {network.__name__}: '
            'make an instance of it and load its weights first'
        )
    if hasattr(network, 'components') and hasattr(network, 'scheduler'):
        raise TypeError(
            f'{name} must be a network; got a pipeline, {type(network).__name__}: '
            'give it to K.external.from_diffusers'
        )
    if not callable(network):
        raise TypeError(
            f'{name} must be a network, which is called as network(x, t, **cond); '
            f'got {describe(network)}'
        )
