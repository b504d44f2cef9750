"""Networks inside the wrappers of torch, accelerate, PEFT and DeepSpeed, and classes by name."""
from __future__ import annotations

from collections.abc import Iterable
from typing import Any

#: The attribute in which a wrapper holds what it wraps, by the wrapper's class.
_HELD_IN = {
    'OptimizedModule': '_orig_mod',                 # torch.compile
    'DataParallel': 'module',
    'DistributedDataParallel': 'module',
    'FullyShardedDataParallel': 'module',
    'AveragedModel': 'module',                      # torch.optim.swa_utils
    'DeepSpeedEngine': 'module',
    'PeftModel': 'base_model',
    'PeftMixedModel': 'base_model',
    'BaseTuner': 'model',                           # LoraModel and its kind, inside a PeftModel
}


def unwrap_network(network: Any) -> Any:
    """Return the network inside its wrappers, or the network itself where it has none.

    The class and the attributes of a network are read from the result; the wrapper is called.
    """
    while True:
        names = class_names(network)
        held = next((_HELD_IN[name] for name in names if name in _HELD_IN), None)
        inner = None if held is None else getattr(network, held, None)
        if inner is None:
            return network
        network = inner


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
        raise TypeError(f'{name} must be a network; got the class {network.__name__}: '
                        'make an instance of it and load its weights first')
    if hasattr(network, 'components') and hasattr(network, 'scheduler'):
        raise TypeError(f'{name} must be a network; got a pipeline, {type(network).__name__}: '
                        'give it to K.external.from_diffusers')
    if not callable(network):
        raise TypeError(f'{name} must be a network, which is called as network(x, t, **cond); '
                        f'got {describe(network)}')
