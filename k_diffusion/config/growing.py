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
    """Build the network of a config with the averaged weights of a smaller one.

    The new config may differ in skip_stages (image_v1: fewer), in the number of outer levels
    (image_transformer_v2: more), in patch_size and in input_size; the rest of the network must be
    the same.

    Args:
        config: The config.
        checkpoint: The checkpoint of the smaller network.
        old_config: The config of the smaller network, a path or a dict; by default that in the
            checkpoint.
        verify: Compare the file with its manifest.

    Returns:
        The network, and the names of its new parameters.
    """
    network = make_model(config)
    return network, inherit_weights(network, checkpoint, old_config, verify)


def inherit_weights(
    network: nn.Module,
    checkpoint: str | os.PathLike[str],
    old_config: Any = None,
    verify: bool = True,
) -> list[str]:
    """Load the averaged weights of a checkpoint of a smaller network, as `grow_model` does.

    Args:
        network: The network.
        checkpoint: The checkpoint of the smaller network.
        old_config: The config of the smaller network.
        verify: Compare the file with its manifest.

    Returns:
        The names of its new parameters.
    """
    path = find_checkpoint(checkpoint)
    weights, carried = read_weights(path, verify=verify)
    source = old_config if old_config is not None else carried
    if source is None:
        raise ValueError(f'{path} has no config; pass the one of its training as grow_config=...')
    old = make_model(load_config(source))
    load_weights(old, weights, path)
    return inherit(network, old)
