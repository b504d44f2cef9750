"""Modules that take a condition besides their input: adaptive group normalisation, blocks and a U
of blocks.

The condition is a dict that travels through the whole network; each module takes from it the key
that it knows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.modules import forward_mode
from ..core.tensors import append_dims


class ResidualBlock(nn.Module):
    """main(x) + skip(x)."""

    def __init__(self, *main: nn.Module, skip: nn.Module | None = None) -> None:
        super().__init__()
        self.main = nn.Sequential(*main)
        self.skip = skip or nn.Identity()

    def forward(self, input: Tensor) -> Tensor:
        return self.main(input) + self.skip(input)


class ConditionedModule(nn.Module):
    """Marks a module whose forward takes (input, cond)."""


class UnconditionedModule(ConditionedModule):
    """A module that takes no condition, in a place where one is given."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, input: Tensor, cond: Mapping[str, Tensor] | None = None) -> Tensor:
        return self.module(input)


class ConditionedSequential(nn.Sequential, ConditionedModule):
    """Modules in a row; those that are conditioned get the condition."""

    # Sequential takes one
    def forward(self, input: Tensor, cond: Mapping[str, Tensor]) -> Tensor:  # type: ignore[override]
        for module in self:
            input = module(input, cond) if isinstance(module, ConditionedModule) else module(input)
        return input


class ConditionedResidualBlock(ConditionedModule):
    """main(x, cond) + skip(x), or + skip(x, cond) where the skip is conditioned."""

    def __init__(self, *main: nn.Module, skip: nn.Module | None = None) -> None:
        super().__init__()
        self.main = ConditionedSequential(*main)
        self.skip = skip or nn.Identity()

    def forward(self, input: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        skip = (
            self.skip(input, cond) if isinstance(self.skip, ConditionedModule) else self.skip(input)
        )
        return self.main(input, cond) + skip


class AdaGN(ConditionedModule):
    """Group normalisation with a scale and a shift computed from the condition: groupnorm(x) (1 +
    w) + b.

    (w, b) = mapper(cond[cond_key]), [B, feats_in] -> 2 [B, c_out]; zero at the start of training.
    """

    def __init__(
        self, feats_in: int, c_out: int, num_groups: int, eps: float = 1e-5, cond_key: str = 'cond'
    ) -> None:
        super().__init__()
        self.num_groups = num_groups
        self.eps = eps
        self.cond_key = cond_key
        self.mapper = nn.Linear(feats_in, c_out * 2)
        nn.init.zeros_(self.mapper.weight)
        nn.init.zeros_(self.mapper.bias)

    def forward(self, input: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        weight, bias = (
            append_dims(t, input.ndim) for t in self.mapper(cond[self.cond_key]).chunk(2, dim=-1)
        )
        if forward_mode():  # torch's rule for it views the input as groups
            input = input.contiguous()
        return torch.addcmul(bias, F.group_norm(input, self.num_groups, eps=self.eps), weight + 1)

    def extra_repr(self) -> str:
        return f'num_groups={self.num_groups}, eps={self.eps}, cond_key={self.cond_key!r}'


def zero_init(layer: nn.Module) -> Any:
    """The layer with all its parameters set to zero, so that its branch starts as nothing."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class UNet(ConditionedModule):
    """Runs the down blocks from number `skip_stages` on, then as many up blocks (deepest first)
    with the downs' outputs.

    Up blocks are called as block(input, cond, skip); the deepest gets no skip.
    """

    def __init__(
        self, d_blocks: Iterable[nn.Module], u_blocks: Iterable[nn.Module], skip_stages: int = 0
    ) -> None:
        super().__init__()
        self.d_blocks = nn.ModuleList(d_blocks)
        self.u_blocks = nn.ModuleList(u_blocks)
        self.skip_stages = skip_stages

    def forward(self, input: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        skips: list[Tensor | None] = []
        for block in self.d_blocks[self.skip_stages :]:
            input = block(input, cond)
            skips.append(input)
        skips[-1] = None
        for block, skip in zip(self.u_blocks, reversed(skips)):
            input = block(input, cond, skip)
        return input
