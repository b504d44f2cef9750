"""Gradients through frozen networks of other projects that recompute their activations."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

#: The parameters of the checkpoint function of guided-diffusion and of programs that copied it.
_PARAMETERS = ['func', 'inputs', 'params', 'flag']


@contextmanager
def differentiable(network: Any, x: Tensor) -> Iterator[None]:
    """Allow gradients with respect to x through a frozen network of the guided-diffusion family.

    The attention of these networks always recomputes its activations and differentiates with
    respect to the parameters too, which fails for frozen ones. Within this context that function is
    a plain call. Networks with trainable parameters, and calls without gradients, are unchanged.

    Args:
        network: The network.
        x: Its input.
    """
    modules = _checkpointing(network) if torch.is_grad_enabled() and x.requires_grad else []
    before = [module.checkpoint for module in modules]
    try:
        for module in modules:
            module.checkpoint = _plain  # type: ignore[attr-defined]
        yield
    finally:
        for module, function in zip(modules, before):
            module.checkpoint = function  # type: ignore[attr-defined]


def _plain(func: Callable[..., Any], inputs: tuple[Any, ...], params: Any, flag: bool) -> Any:
    return func(*inputs)


def _checkpointing(network: Any) -> list[ModuleType]:
    """Return the Python modules of a frozen network's parts that define such a function."""
    parts = [
        part
        for part in (network, *getattr(network, '__dict__', {}).values())
        if isinstance(part, nn.Module)
    ]
    modules = [module for part in parts for module in part.modules()]
    if all(p.requires_grad for module in modules for p in module.parameters(recurse=False)):
        return []
    files = {type(module).__module__: None for module in modules}
    return [
        file
        for name in files
        if (file := sys.modules.get(name)) is not None
        and _is_theirs(getattr(file, 'checkpoint', None))
    ]


def _is_theirs(function: Any) -> bool:
    return (
        inspect.isfunction(function) and list(inspect.signature(function).parameters) == _PARAMETERS
    )
