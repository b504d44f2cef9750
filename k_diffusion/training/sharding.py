"""Networks in pieces: each process holds a share of every weight (PyTorch's fully_shard, also known
as FSDP2).

Weights are cut along their first axis, as torch.chunk cuts. Here what works on pieces alone is told
from what needs the whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..core.modules import n_params

#: Blocks of at least so many parameters are gathered one at a time.
BLOCK = 100_000


def is_sharded(x: Any) -> bool:
    """Whether a tensor lies in pieces on several processes."""
    return hasattr(x, 'to_local') and hasattr(x, 'placements')


def local(x: Any) -> Tensor:
    """This process's piece of a tensor in pieces; another tensor as it is.

    (In-place changes reach the whole.)
    """
    piece: Tensor = x.to_local() if is_sharded(x) else x
    return piece


def whole(piece: Tensor, like: Any) -> Tensor:
    """The tensor whose piece this is, put together on every process, where `like` lies in
    pieces; else the tensor itself.
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
    """The piece of a whole tensor that this process holds of `like`, where that lies in pieces;
    else the tensor itself.
    """
    if not is_sharded(like):
        return x
    pieces = x.chunk(like.device_mesh.size(), 0)
    rank = like.device_mesh.get_local_rank()
    return pieces[rank] if rank < len(pieces) else x[:0]


def cut(x: Tensor, like: Any) -> Tensor:
    """A whole tensor as one in pieces like `like`; where `like` is whole, as it is."""
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
    """Whole weights by name, cut as a model holds its own; names and shapes that do not agree
    are left for its check.
    """
    return {
        name: cut(x, own[name]) if name in own and own[name].shape == x.shape else x
        for name, x in state.items()
    }


def whole_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state with every tensor whole, on every process (all must call it where there are
    pieces).
    """
    return {name: x.full_tensor() if is_sharded(x) else x for name, x in state.items()}  # type: ignore[attr-defined]


def shard(
    networks: Iterable[nn.Module], optimizer: Optimizer, device: torch.device, block: int = BLOCK
) -> None:
    """Cuts networks into pieces over all processes; the optimizer of the first is given its
    pieces (it must not have stepped).
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for network in networks:
        # pieces are cut from plain rows alone
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
    """The entries of a network's lists of modules that have a forward of their own and at least
    so many parameters, innermost first.
    """
    containers = (nn.ModuleList, nn.Sequential)
    entries = [
        child for module in network.modules() if isinstance(module, containers) for child in module
    ]
    chosen = [m for m in entries if not isinstance(m, nn.ModuleList) and n_params(m) >= least]
    return list(dict.fromkeys(reversed(chosen)))


def group_sizes(network: nn.Module, least: int = BLOCK) -> list[int]:
    """Return the parameters of each group that is gathered at a time, those of the root last."""
    grouped: set[int] = set()
    sizes = []
    for module in [*blocks(network, least), network]:
        new = {id(p): p.numel() for p in module.parameters() if id(p) not in grouped}
        grouped |= set(new)
        sizes.append(sum(new.values()))
    return sizes


def cut_optimizer(optimizer: Optimizer) -> None:
    """Cuts loaded state as the parameters are cut."""
    for p, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == p.shape:
                state[name] = cut(value, p)
