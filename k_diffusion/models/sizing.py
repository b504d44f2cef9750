"""Compute the cost of a network from its config, on the meta device without memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..core.modules import n_params
from .flops import flop_counter

CROSS_TOKENS = 77  # length of a sequence for cross-attention if it is not known


@dataclass(frozen=True)
class Sizes:
    """The cost of a network.

    Attributes:
        parameters: The number of parameters.
        multiply_adds: Those of a forward pass of one image.
        activation_bytes: The activations that a backward pass needs, per image in float32.
    """

    parameters: int
    multiply_adds: int
    activation_bytes: int

    def training_bytes(self, batch_size: int) -> int:
        """Return the memory of training with AdamW in float32.

        It is that of the weights, the gradients, two moments, the average, and the activations.

        Args:
            batch_size: The number of images.
        """
        return 5 * 4 * self.parameters + batch_size * self.activation_bytes


def sizes(section: Any, num_classes: int = 0) -> Sizes:
    """Return the cost of the network of a "model" section.

    Args:
        section: The section.
        num_classes: The number of classes, including the null class.
    """
    with torch.device('meta'):
        network = section.build(num_classes=num_classes)
        inputs, cond = example(section, num_classes)
        with flop_counter() as counter, torch.no_grad():
            network(*inputs, **cond)
        return Sizes(n_params(network), counter.flops, activation_bytes(network, inputs, cond))


def example(
    section: Any, num_classes: int = 0, batch_size: int = 1
) -> tuple[tuple[Tensor, Tensor], dict[str, Tensor]]:
    """Return x, sigma and conditions in the shapes that a network takes, on the default device.

    Args:
        section: The "model" section.
        num_classes: The number of classes, including the null class.
        batch_size: The number of items.
    """
    dims = {
        name: getattr(section, f'{name}_dim', 0)
        for name in ('mapping_cond', 'unet_cond', 'cross_cond')
    }
    dims['mapping_cond'] += (
        9 if section.augment_wrapper else 0
    )  # the first entries are the augmentation's
    shapes = {
        'mapping_cond': (dims['mapping_cond'],),
        'unet_cond': (dims['unet_cond'], *section.input_size),
        'cross_cond': (CROSS_TOKENS, dims['cross_cond']),
    }
    cond = {name: torch.zeros(batch_size, *shapes[name]) for name, dim in dims.items() if dim}
    if num_classes:
        cond['class_cond'] = torch.zeros(batch_size, dtype=torch.long)
    return (
        torch.zeros(batch_size, section.input_channels, *section.input_size),
        torch.ones(batch_size),
    ), cond


def activation_bytes(
    network: nn.Module, inputs: tuple[Tensor, ...], cond: dict[str, Tensor]
) -> int:
    """Return the bytes that a forward pass stores for the backward pass.

    A storage shared by several tensors counts once.

    Args:
        network: The network.
        inputs: Its positional arguments.
        cond: Its conditions.
    """
    own = {p.untyped_storage()._cdata for p in (*network.parameters(), *network.buffers())}
    storages: dict[int, Any] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            storages[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), torch.enable_grad():
        out = network(*inputs, **cond)  # keep the storage alive, so that its address is not reused
    del out
    return sum(storage.nbytes() for storage in storages.values())
