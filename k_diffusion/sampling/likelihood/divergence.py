"""The divergence tr d(x - D)/dx of a noise estimate: exact, or estimated with probes of +-1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from ...core.arguments import check_whole
from ...core.random import generator
from ...core.tensors import sum_per_item
from ..noise import item_seeds

#: Largest number of probes that are orthogonal in turn. More probes reduce the error little, and
#: the error of each set is one of the few from which a standard error is computed.
LONGEST = 64


class Divergence(Protocol):
    """A function that estimates the trace of dy/dx.

    It is called with y [B, ...], the x [B, ...] from which y was computed, and a turn, and returns
    P = count estimates [B, P]. Calls of one turn use the same probes.
    """

    count: int

    def __call__(self, y: Tensor, x: Tensor, turn: int = 0) -> Tensor: ...


class Probes:
    """Estimate the trace of J = dy/dx by v . J v for P probes v of +-1, orthogonal in turn.

    v_p = s_p h_k with random signs s_p (P independent estimates) and row k of a Walsh-Hadamard
    matrix in turn k. Each estimate is unbiased, and exact for a diagonal J. Over 2^m turns in a row
    the entries J_ij of pairs i, j that differ in their last m bits cancel, as far as J stays the
    same. The bits of the index of an element are taken from all axes alternately, so that
    neighbours in an image cancel first. New signs are drawn after as many turns as an item has
    elements (rounded up to a power of 2), at most 64.

    Args:
        count: P, the number of estimates.
        seed: A number for each item, or one for the batch; the probes of an item depend on its own
            seed only. None draws one from torch's global generator.

    References:
        Hutchinson (1990), doi:10.1080/03610919008812866.
        Stathopoulos, Laeuchli & Orginos (2013), arXiv:1302.4018 (hierarchical probing).
    """

    def __init__(self, count: int, seed: int | Sequence[int] | None = None) -> None:
        check_whole('probes', count)
        self.count, self.seed = count, seed
        self.length = 0  # number of turns that share their signs; set at the first call
        self._seeds: list[int] = []
        self._places: Tensor | None = None
        self._block_signs: tuple[int, Tensor] | None = None

    def __call__(self, y: Tensor, x: Tensor, turn: int = 0) -> Tensor:
        if self._places is None:
            self._seeds = item_seeds(x, self.seed)
            places, bits = _interleaved_places(x.shape[1:])
            self._places, self.length = places.to(x.device), min(1 << bits, LONGEST)
        block, row = divmod(turn, self.length)
        if self._block_signs is None or self._block_signs[0] != block:
            self._block_signs = block, self._signs(x, block)
        walsh = (1 - 2 * _parity(self._places & row)).to(x.dtype)
        estimates = []
        for i, signs in enumerate(self._block_signs[1]):
            probe = signs * walsh
            (gradient,) = torch.autograd.grad(y, x, probe, retain_graph=i < self.count - 1)
            estimates.append(sum_per_item(probe * gradient))
        return torch.stack(estimates, 1)

    def _signs(self, x: Tensor, block: int) -> Tensor:
        """Draw signs [P, B, ...]."""
        sources = [generator(seed, 'probe', block, device=x.device) for seed in self._seeds]
        bits = [
            torch.randint(
                2, (self.count, *x.shape[1:]), generator=source, device=x.device, dtype=x.dtype
            )
            for source in sources
        ]
        return torch.stack(bits, 1) * 2 - 1


def _interleaved_places(shape: Sequence[int]) -> tuple[Tensor, int]:
    """Return the index of each element of an item, and its number of bits.

    The lowest bits are the lowest bit of each axis, the last axis first: the order of a Z-curve.
    """
    places, bits = torch.zeros(tuple(shape), dtype=torch.long), 0
    axes = torch.meshgrid(*[torch.arange(n) for n in shape], indexing='ij') if len(shape) else ()
    for level in range(max(((n - 1).bit_length() for n in shape), default=0)):
        for axis, n in reversed(list(zip(axes, shape))):
            if n > 1 << level:
                places |= (axis >> level & 1) << bits
                bits += 1
    return places, bits


def _parity(numbers: Tensor) -> Tensor:
    """Return 1 where an integer below 64 has an odd number of bits set, else 0."""
    for shift in 4, 2, 1:
        numbers = numbers ^ (numbers >> shift)
    return numbers & 1


class ExactTrace:
    """Compute the trace [B, 1] with as many backward passes as an item has elements.

    Args:
        chunk: Number of passes computed at a time by vmap; 1 if an operation of the model has no
            batching rule.
    """

    count = 1

    def __init__(self, chunk: int = 64) -> None:
        check_whole('chunk', chunk)
        self.chunk = chunk

    def __call__(self, y: Tensor, x: Tensor, turn: int = 0) -> Tensor:
        size = x[0].numel()
        if self.chunk > 1:
            try:
                return self._sum(y, x, size)
            except RuntimeError as error:
                if isinstance(error, torch.OutOfMemoryError):
                    raise
                self.chunk = 1  # an operation without a batching rule
        return self._sum(y, x, size)

    def _sum(self, y: Tensor, x: Tensor, size: int) -> Tensor:
        return torch.stack(
            [
                self._part(y, x, first, min(self.chunk, size - first))
                for first in range(0, size, self.chunk)
            ]
        ).sum(0)[:, None]

    def _part(self, y: Tensor, x: Tensor, first: int, count: int) -> Tensor:
        """Return the sum [B] of `count` elements of the diagonal from `first` on."""
        rows = torch.arange(count, device=x.device)
        basis = x.new_zeros(count, x[0].numel())
        basis[rows, first + rows] = 1
        outward = basis.view(count, 1, *x.shape[1:]).expand(count, *x.shape)
        batched = count > 1
        (gradient,) = torch.autograd.grad(
            y, x, outward if batched else outward[0], retain_graph=True, is_grads_batched=batched
        )
        return gradient.reshape(count, len(x), -1)[rows, :, first + rows].sum(0)
