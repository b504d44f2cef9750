"""Modules that take a condition besides their input: adaptive group norm, blocks and a U of blocks.

The condition is a dict that passes through the whole network; each module reads from it the key
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
    """main(x) + skip(x).

    Args:
        *main: Modules that run one after the other.
        skip: The module beside them; the identity by default.
    """

    def __init__(self, *main: nn.Module, skip: nn.Module | None = None) -> None:
        super().__init__()
        self.main = nn.Sequential(*main)
        self.skip = skip or nn.Identity()

    def forward(self, input: Tensor) -> Tensor:
        """Return main(input) + skip(input).

        Args:
            input: [B, ...].
        """
        return self.main(input) + self.skip(input)


class ConditionedModule(nn.Module):
    """The base class of modules whose forward takes (input, cond)."""


class UnconditionedModule(ConditionedModule):
    """A module without a condition, called with one.

    Args:
        module: The module.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, input: Tensor, cond: Mapping[str, Tensor] | None = None) -> Tensor:
        """Call the module without the condition.

        Args:
            input: Its input.
            cond: Not used.
        """
        return self.module(input)


class ConditionedSequential(nn.Sequential, ConditionedModule):
    """Modules in sequence; the conditioned ones are called with the condition."""

    def forward(  # type: ignore[override]  # Sequential takes one
        self, input: Tensor, cond: Mapping[str, Tensor]
    ) -> Tensor:
        """Run the modules.

        Args:
            input: The input of the first one.
            cond: The condition.
        """
        for module in self:
            input = module(input, cond) if isinstance(module, ConditionedModule) else module(input)
        return input


class ConditionedResidualBlock(ConditionedModule):
    """main(x, cond) + skip(x), or + skip(x, cond) if the skip is conditioned.

    Args:
        *main: Modules that run one after the other.
        skip: The module beside them; the identity by default.
    """

    def __init__(self, *main: nn.Module, skip: nn.Module | None = None) -> None:
        super().__init__()
        self.main = ConditionedSequential(*main)
        self.skip = skip or nn.Identity()

    def forward(self, input: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        """Return the sum of both branches.

        Args:
            input: [B, ...].
            cond: The condition.
        """
        skip = (
            self.skip(input, cond) if isinstance(self.skip, ConditionedModule) else self.skip(input)
        )
        return self.main(input, cond) + skip


class AdaGN(ConditionedModule):
    """Group normalisation with a scale and a shift from the condition: groupnorm(x) (1 + w) + b.

    (w, b) = mapper(cond[cond_key]), [B, feats_in] -> 2 [B, c_out]; zero at the start of training.

    Args:
        feats_in: The features of the condition.
        c_out: The channels of x.
        num_groups: The groups of channels.
        eps: Added to the variance.
        cond_key: The key of the condition.

    References:
        Wu & He (2018), arXiv:1803.08494 (group normalisation); Dhariwal & Nichol (2021),
        arXiv:2105.05233, section 3.1 (adaptive).
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
        """Return the normalised, scaled and shifted input.

        Args:
            input: [B, c_out, ...].
            cond: The condition, with cond_key [B, feats_in].
        """
        weight, bias = (
            append_dims(t, input.ndim) for t in self.mapper(cond[self.cond_key]).chunk(2, dim=-1)
        )
        if forward_mode():  # torch's forward-mode rule needs a contiguous input
            input = input.contiguous()
        return torch.addcmul(bias, F.group_norm(input, self.num_groups, eps=self.eps), weight + 1)

    def extra_repr(self) -> str:
        return f'num_groups={self.num_groups}, eps={self.eps}, cond_key={self.cond_key!r}'


def zero_init(layer: nn.Module) -> Any:
    """Set all parameters of a layer to zero, so that its branch adds zero at first, and return it.

    Args:
        layer: The layer.
    """
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class UNet(ConditionedModule):
    """Down blocks, then as many up blocks (deepest first), joined by skip connections.

    Up blocks are called as block(input, cond, skip); the deepest one gets no skip.

    Args:
        d_blocks: The down blocks, finest first.
        u_blocks: The up blocks, coarsest first.
        skip_stages: The number of the finest down and up blocks that are not used.

    References:
        Ronneberger et al. (2015), arXiv:1505.04597.
    """

    def __init__(
        self, d_blocks: Iterable[nn.Module], u_blocks: Iterable[nn.Module], skip_stages: int = 0
    ) -> None:
        super().__init__()
        self.d_blocks = nn.ModuleList(d_blocks)
        self.u_blocks = nn.ModuleList(u_blocks)
        self.skip_stages = skip_stages

    def forward(self, input: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        """Run the down and the up blocks.

        Args:
            input: The features at the first level in use, [B, C, ...].
            cond: The condition.
        """
        skips: list[Tensor | None] = []
        for block in self.d_blocks[self.skip_stages :]:
            input = block(input, cond)
            skips.append(input)
        skips[-1] = None
        for block, skip in zip(self.u_blocks, reversed(skips)):
            input = block(input, cond, skip)
        return input
