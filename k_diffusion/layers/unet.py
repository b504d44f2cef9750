"""A U of blocks: down, and up again past the skips."""
from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from .conditioning import ConditionedModule


class UNet(ConditionedModule):
    """Runs the down blocks from number `skip_stages` on, then as many up blocks (deepest first) with the downs' outputs.

    Up blocks are called as block(input, cond, skip); the deepest gets no skip.
    """

    def __init__(self, d_blocks: Iterable[nn.Module], u_blocks: Iterable[nn.Module], skip_stages: int = 0) -> None:
        super().__init__()
        self.d_blocks = nn.ModuleList(d_blocks)
        self.u_blocks = nn.ModuleList(u_blocks)
        self.skip_stages = skip_stages

    def forward(self, input: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        skips: list[Tensor | None] = []
        for block in self.d_blocks[self.skip_stages:]:
            input = block(input, cond)
            skips.append(input)
        skips[-1] = None
        for block, skip in zip(self.u_blocks, reversed(skips)):
            input = block(input, cond, skip)
        return input
