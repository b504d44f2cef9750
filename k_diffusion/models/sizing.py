"""What a network costs, from its config alone: built and run on the meta device, where tensors
have shapes and no memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..core.modules import n_params
from .flops import flop_counter

CROSS_TOKENS = 77  # of a sequence that cross-attention looks at, where nobody says how long it is


@dataclass(frozen=True)
class Sizes:
    """The parameters of a network, and for each picture the multiply-adds of a forward pass and the
    bytes that a backward pass needs kept (in float32).
    """

    parameters: int
    multiply_adds: int
    activation_bytes: int

    def training_bytes(self, batch_size: int) -> int:
        """Memory of training with AdamW in float32: weights, gradients, two moments, the
        average, and the activations of a batch.
        """
        return 5 * 4 * self.parameters + batch_size * self.activation_bytes


def sizes(section: Any, num_classes: int = 0) -> Sizes:
    """The sizes of the network that a "model" section describes; `num_classes` counts the class
    that stands for none.
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
    """(x, sigma) and conditions of the kinds and shapes that the network of a section takes, on
    the default device.
    """
    dims = {
        name: getattr(section, f'{name}_dim', 0)
        for name in ('mapping_cond', 'unet_cond', 'cross_cond')
    }
    dims['mapping_cond'] += (
        9 if section.augment_wrapper else 0
    )  # the first of them say how the picture was augmented
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
    """The bytes that a forward pass keeps for the backward pass; a storage that several tensors
    share counts once.
    """
    own = {p.untyped_storage()._cdata for p in (*network.parameters(), *network.buffers())}
    kept: dict[int, Any] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), torch.enable_grad():
        out = network(
            *inputs, **cond
        )  # held on to: a storage that is freed would lend its address to another
    del out
    return sum(storage.nbytes() for storage in kept.values())
