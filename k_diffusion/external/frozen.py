"""Frozen foreign networks that recompute their activations: made to let gradients through to
their input.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

#: What the checkpoint function of guided-diffusion, and of the programs that took it over, is
#: called with.
_PARAMETERS = ['func', 'inputs', 'params', 'flag']


@contextmanager
def differentiable(network: Any, x: Tensor) -> Iterator[None]:
    """Within it a gradient with respect to x can be taken through a frozen network of the
    guided-diffusion family.

    Their attention always recomputes its activations, and in doing so differentiates with respect
    to the parameters too, which fails where those are frozen. While such a network is called with
    x, the function that does so is a plain call; networks with parameters that are trained, and
    calls without gradients, are left as they are.
    """
    found = _checkpointing(network) if torch.is_grad_enabled() and x.requires_grad else []
    before = [module.checkpoint for module in found]
    try:
        for module in found:
            module.checkpoint = _plain  # type: ignore[attr-defined]
        yield
    finally:
        for module, function in zip(found, before):
            module.checkpoint = function  # type: ignore[attr-defined]


def _plain(func: Callable[..., Any], inputs: tuple[Any, ...], params: Any, flag: bool) -> Any:
    return func(*inputs)


def _checkpointing(network: Any) -> list[ModuleType]:
    """The Python modules of a frozen network's parts that have a function of that kind under its
    name.
    """
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
