"""A network that starts from one trained at a lower resolution."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from torch import nn

from ..models.growing import inherit
from ..training import load_weights
from .build import make_model
from .load import load_config
from .weights import find_checkpoint, read_weights


def grow_model(
    config: Mapping[str, Any],
    checkpoint: str | os.PathLike[str],
    old_config: Any = None,
    verify: bool = True,
) -> tuple[nn.Module, list[str]]:
    """The network of a config with the averaged weights of a checkpoint of a smaller one, and the
    names of its new parameters.

    The checkpoint's own config, or `old_config` (a path or a dict), says what the old network was.
    The new config may differ in skip_stages (image_v1: fewer), in the number of outer levels
    (image_transformer_v2: more), in patch_size and in input_size; the rest of the network must be
    the same.
    """
    network = make_model(config)
    return network, inherit_weights(network, checkpoint, old_config, verify)


def inherit_weights(
    network: nn.Module,
    checkpoint: str | os.PathLike[str],
    old_config: Any = None,
    verify: bool = True,
) -> list[str]:
    """Give a network the averaged weights of a checkpoint of a smaller one, as `grow_model` does.

    Returns:
        The names of its new parameters.
    """
    path = find_checkpoint(checkpoint)
    weights, carried = read_weights(path, verify=verify)
    source = old_config if old_config is not None else carried
    if source is None:
        raise ValueError(
            f'{path} carries no config; pass the one that it was trained with as grow_config=...'
        )
    old = make_model(load_config(source))
    load_weights(old, weights, path)
    return inherit(network, old)
