"""The divergence of a denoiser's noise estimate, tr d(x - D)/dx: estimated with probes of +-1, or exact."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from ...core.arguments import check_whole
from ...core.random import generator
from ...core.tensors import sum_per_item
from ..noise import item_seeds


class Divergence(Protocol):
    """(y [B, ...], x [B, ...] that it was computed from) -> P = count estimates [B, P] of the trace of dy/dx."""

    count: int

    def __call__(self, y: Tensor, x: Tensor) -> Tensor: ...


class Probes:
    """v . (dy/dx) v for P probes v of independent +-1 (Rademacher): right on average, and exact where the Jacobian is diagonal.

    Hutchinson 1990, doi:10.1080/03610919008812866. With `fresh` each call draws new probes, so that their errors average out
    over the calls; without, the first ones stay, and the estimate is a smooth function of x.
    seed: a number per item, or one for the batch; item i then depends on its own seed alone. None: torch's global generator.
    """

    def __init__(self, count: int, fresh: bool, seed: int | Sequence[int] | None = None) -> None:
        check_whole('probes', count)
        self.count, self.fresh, self.seed = count, fresh, seed
        self._sources: list[torch.Generator] | None = None
        self._kept: list[Tensor] | None = None

    def __call__(self, y: Tensor, x: Tensor) -> Tensor:
        if self.seed is not None and self._sources is None:
            self._sources = [generator(item, 'probe', device=x.device) for item in item_seeds(x, self.seed)]
        if self._kept is None or self.fresh:
            self._kept = [self._draw(x) for _ in range(self.count)]
        last = self.count - 1
        gradients = [torch.autograd.grad(y, x, probe, retain_graph=i < last)[0] for i, probe in enumerate(self._kept)]
        return torch.stack([sum_per_item(probe * gradient) for probe, gradient in zip(self._kept, gradients)], 1)

    def _draw(self, x: Tensor) -> Tensor:
        if self._sources is None:
            return torch.randint_like(x, 2) * 2 - 1
        bits = [torch.randint(2, x.shape[1:], generator=source, device=x.device, dtype=x.dtype) for source in self._sources]
        return torch.stack(bits) * 2 - 1


class ExactTrace:
    """The trace itself, from as many backward passes as an item has elements: [B, 1].

    `chunk` of them at a time by vmap, where the model's operations can be batched so, and else one by one.
    """
    count = 1

    def __init__(self, chunk: int = 64) -> None:
        check_whole('chunk', chunk)
        self.chunk = chunk

    def __call__(self, y: Tensor, x: Tensor) -> Tensor:
        size = x[0].numel()
        if self.chunk > 1:
            try:
                return self._sum(y, x, size)
            except RuntimeError as error:
                if isinstance(error, torch.OutOfMemoryError):
                    raise
                self.chunk = 1      # an operation without a batching rule
        return self._sum(y, x, size)

    def _sum(self, y: Tensor, x: Tensor, size: int) -> Tensor:
        return torch.stack([self._part(y, x, first, min(self.chunk, size - first)) for first in range(0, size, self.chunk)]).sum(0)[:, None]

    def _part(self, y: Tensor, x: Tensor, first: int, count: int) -> Tensor:
        """The sum of `count` elements of the diagonal from `first` on, [B]."""
        rows = torch.arange(count, device=x.device)
        basis = x.new_zeros(count, x[0].numel())
        basis[rows, first + rows] = 1
        outward = basis.view(count, 1, *x.shape[1:]).expand(count, *x.shape)
        batched = count > 1
        gradient, = torch.autograd.grad(y, x, outward if batched else outward[0], retain_graph=True, is_grads_batched=batched)
        return gradient.reshape(count, len(x), -1)[rows, :, first + rows].sum(0)
