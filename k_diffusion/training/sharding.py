"""Sharded networks: each process holds a shard of every weight (PyTorch's fully_shard, FSDP2).

Weights are cut along their first axis, as torch.chunk cuts. The functions here convert between
shards and whole tensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..core.modules import n_params

#: The least number of parameters of a block that is gathered by itself.
BLOCK = 100_000


def is_sharded(x: Any) -> bool:
    """Return True if a tensor is sharded over several processes.

    Args:
        x: The tensor.
    """
    return hasattr(x, 'to_local') and hasattr(x, 'placements')


def local(x: Any) -> Tensor:
    """Return the shard of this process, or the tensor itself if it is not sharded.

    In-place changes of the shard change the sharded tensor.

    Args:
        x: The tensor.
    """
    piece: Tensor = x.to_local() if is_sharded(x) else x
    return piece


def whole(piece: Tensor, like: Any) -> Tensor:
    """Gather a tensor from its shards on every process, if `like` is sharded.

    Args:
        piece: The shard of this process, or a whole tensor.
        like: A tensor that is sharded in the same way, or whole.
    """
    if not is_sharded(like):
        return piece
    from torch.distributed.tensor import DTensor

    together: Tensor = DTensor.from_local(
        piece.contiguous(),
        like.device_mesh,
        like.placements,
        shape=like.shape,
        stride=torch.empty(like.shape, device='meta').stride(),
    ).full_tensor()
    return together


def piece_of(x: Tensor, like: Any) -> Tensor:
    """Return the part of a whole tensor that this process holds of `like`, if that is sharded.

    Args:
        x: The whole tensor.
        like: A tensor of the same shape, sharded or whole.
    """
    if not is_sharded(like):
        return x
    pieces = x.chunk(like.device_mesh.size(), 0)
    rank = like.device_mesh.get_local_rank()
    return pieces[rank] if rank < len(pieces) else x[:0]


def shard_like(x: Tensor, like: Any) -> Tensor:
    """Shard a whole tensor like another one; a whole `like` leaves it unchanged.

    Args:
        x: The whole tensor.
        like: A tensor of the same shape, sharded or whole.
    """
    if not is_sharded(like) or is_sharded(x):
        return x
    from torch.distributed.tensor import DTensor

    piece = piece_of(x.to(like.device), like).contiguous().clone()
    return DTensor.from_local(
        piece,
        like.device_mesh,
        like.placements,
        shape=like.shape,
        stride=torch.empty(like.shape, device='meta').stride(),
    )


def cut_state(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Shard whole weights as a model holds its own.

    Weights whose name or shape differs stay whole; the check of the model reports them.

    Args:
        state: The whole weights by name.
        own: The weights of the model by name.
    """
    return {
        name: shard_like(x, own[name]) if name in own and own[name].shape == x.shape else x
        for name, x in state.items()
    }


def whole_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gather all sharded tensors of a state, on every process.

    All processes must call it if there are sharded tensors.

    Args:
        state: The tensors by name.
    """
    values: dict[str, Any] = dict(state)
    return {name: x.full_tensor() if is_sharded(x) else x for name, x in values.items()}


def shard(
    networks: Iterable[nn.Module], optimizer: Optimizer, device: torch.device, block: int = BLOCK
) -> None:
    """Shard networks over all processes, and give the optimizer of the first one its shards.

    Args:
        networks: The networks.
        optimizer: The optimizer of the first network, before its first step.
        device: The device.
        block: The least number of parameters of a block that is gathered by itself.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for network in networks:
        # shards can only be cut from contiguous rows
        network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        names = {id(p): name for name, p in network.named_parameters()}
        for module in blocks(network, block):
            fully_shard(module, mesh=mesh)
        fully_shard(network, mesh=mesh)
        pieces = dict(network.named_parameters())
        for group in optimizer.param_groups:
            group['params'] = [
                pieces[names[id(p)]] if id(p) in names else p for p in group['params']
            ]


def blocks(network: nn.Module, least: int) -> list[nn.Module]:
    """Return the blocks that are gathered by themselves, innermost first.

    They are the entries of a network's lists of modules that have a forward method.

    Args:
        network: The network.
        least: The least number of parameters of a block.
    """
    containers = (nn.ModuleList, nn.Sequential)
    entries = [
        child for module in network.modules() if isinstance(module, containers) for child in module
    ]
    large = [m for m in entries if not isinstance(m, nn.ModuleList) and n_params(m) >= least]
    return list(dict.fromkeys(reversed(large)))


def group_sizes(network: nn.Module, least: int = BLOCK) -> list[int]:
    """Return the number of parameters of each group that is gathered by itself, the root last.

    Args:
        network: The network.
        least: The least number of parameters of a block.
    """
    grouped: set[int] = set()
    sizes = []
    for module in [*blocks(network, least), network]:
        new = {id(p): p.numel() for p in module.parameters() if id(p) not in grouped}
        grouped |= set(new)
        sizes.append(sum(new.values()))
    return sizes


def cut_optimizer(optimizer: Optimizer) -> None:
    """Shard loaded optimizer state like the parameters.

    Args:
        optimizer: The optimizer.
    """
    for p, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == p.shape:
                state[name] = shard_like(value, p)
