"""Tags on parameters for the optimizer: 'wd' has weight decay, 'mapping' its own learning rate.

They are stored on the modules that own the parameters, as plain data by parameter name: deepcopy
and pickling preserve these, and lose attributes of parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from torch import nn

M = TypeVar('M', bound=nn.Module)
P = TypeVar('P', bound=nn.Parameter)


def tag_module(module: M, tag: str) -> M:
    """Tag all parameters of a module, and return it.

    Args:
        module: The module.
        tag: The tag.
    """
    return _tag(module, tag, lambda name: True)


def apply_wd(module: M) -> M:
    """Tag the parameters named `weight` for weight decay, and return the module.

    Args:
        module: The module.
    """
    return _tag(module, 'wd', lambda name: name.endswith('weight'))


def tag_param(param: P, tag: str) -> P:
    """Tag a parameter that no module owns yet, and return it.

    A deepcopy loses this tag; that of tag_module is preserved.

    Args:
        param: The parameter.
        tag: The tag.
    """
    vars(param).setdefault('_tags', set()).add(tag)
    return param


def filter_params(
    function: Callable[[set[str]], bool], module: nn.Module
) -> Iterator[nn.Parameter]:
    """Yield the parameters of a module, in order, whose tags a function accepts.

    Args:
        function: Takes the set of tags of a parameter.
        module: The module.
    """
    for owner in module.modules():
        for name, param in owner.named_parameters(recurse=False):
            if function(
                vars(owner).get('_tags', {}).get(name, set()) | getattr(param, '_tags', set())
            ):
                yield param


def param_groups(
    module: nn.Module, base_lr: float, mapping_lr_scale: float
) -> list[dict[str, Any]]:
    """Return four groups for an optimizer: with and without weight decay, for network and mapping.

    Args:
        module: The module.
        base_lr: The learning rate.
        mapping_lr_scale: The factor on it for the mapping network.
    """

    def group(decays: bool, mapping: bool) -> dict[str, Any]:
        params = filter_params(
            lambda tags: ('wd' in tags, 'mapping' in tags) == (decays, mapping), module
        )
        lr = base_lr * mapping_lr_scale if mapping else base_lr
        return {'params': list(params), 'lr': lr} | ({} if decays else {'weight_decay': 0.0})

    return [group(decays, mapping) for mapping in (False, True) for decays in (True, False)]


def _tag(module: M, tag: str, accepts: Callable[[str], bool]) -> M:
    for owner in module.modules():
        for name, _ in owner.named_parameters(recurse=False):
            if accepts(name):
                vars(owner).setdefault('_tags', {}).setdefault(name, set()).add(tag)
    return module
