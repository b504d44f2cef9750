"""Tags that say how parameters are trained: 'wd' takes weight decay, 'mapping' the mapping
network's learning rate.

They lie on the modules that own the parameters, as plain data by parameter name: deepcopy and
pickling keep those, and lose attributes of parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from torch import nn

M = TypeVar('M', bound=nn.Module)
P = TypeVar('P', bound=nn.Parameter)


def tag_module(module: M, tag: str) -> M:
    """The module, all its parameters tagged."""
    return _tag(module, tag, lambda name: True)


def apply_wd(module: M) -> M:
    """The module, its parameters named `weight` tagged for weight decay."""
    return _tag(module, 'wd', lambda name: name.endswith('weight'))


def tag_param(param: P, tag: str) -> P:
    """The parameter, tagged itself: for one that no module owns yet.

    A deepcopy loses this tag; tag_module's stays.
    """
    vars(param).setdefault('_tags', set()).add(tag)
    return param


def filter_params(
    function: Callable[[set[str]], bool], module: nn.Module
) -> Iterator[nn.Parameter]:
    """The parameters of a module, in order, whose set of tags the function accepts."""
    for owner in module.modules():
        for name, param in owner.named_parameters(recurse=False):
            if function(
                vars(owner).get('_tags', {}).get(name, set()) | getattr(param, '_tags', set())
            ):
                yield param


def param_groups(
    module: nn.Module, base_lr: float, mapping_lr_scale: float
) -> list[dict[str, Any]]:
    """Four groups for an optimizer: with weight decay, without it, and the mapping network's
    two, with its learning rate.
    """

    def group(decays: bool, mapping: bool) -> dict[str, Any]:
        params = filter_params(
            lambda tags: ('wd' in tags, 'mapping' in tags) == (decays, mapping), module
        )
        lr = base_lr * mapping_lr_scale if mapping else base_lr
        return {'params': list(params), 'lr': lr} | ({} if decays else {'weight_decay': 0.0})

    return [group(decays, mapping) for mapping in (False, True) for decays in (True, False)]


def _tag(module: M, tag: str, chosen: Callable[[str], bool]) -> M:
    for owner in module.modules():
        for name, _ in owner.named_parameters(recurse=False):
            if chosen(name):
                vars(owner).setdefault('_tags', {}).setdefault(name, set()).add(tag)
    return module
