"""The loss by noise level: where on the way from noise to data a network still errs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class LossByNoise:
    """The average loss in each of `bins` equally likely ranges of the noise density, over about the
    last 1 / (1 - decay) steps.

    S_b <- decay S_b + sum of losses in b, N_b <- decay N_b + their number; the average is S_b /
    N_b. Both stay on the device.
    """

    def __init__(self, bins: int = 8, decay: float = 0.99, device: Any = 'cpu') -> None:
        self.bins, self.decay = bins, decay
        self.sums = torch.zeros(2, bins, device=device)

    def find_ranges(self, quantiles: Tensor) -> Tensor:
        """Return the numbers of the ranges that quantiles [B] of the density lie in: int64 [B]."""
        return (quantiles * self.bins).long().clamp_(0, self.bins - 1)

    def add(self, ranges: Tensor, losses: Tensor) -> None:
        """Add the losses [B] of items in the ranges [B], both on the device; those that are not
        numbers are left out.
        """
        losses = losses.detach().float()
        finite = losses.isfinite()
        both = torch.stack([losses.nan_to_num(0.0, 0.0, 0.0), finite.to(losses.dtype)])
        self.sums.index_add_(1, ranges, both)

    def end_step(self) -> None:
        self.sums.mul_(self.decay)

    def values(self, accelerator: Any) -> list[float | None]:
        """The averages over all processes, which must all call it; None where nothing was drawn
        yet.
        """
        total, number = accelerator.reduce(self.sums, 'sum').tolist()
        return [s / n if n > 1e-6 else None for s, n in zip(total, number)]

    def state_dict(self, accelerator: Any) -> dict[str, Any]:
        """Return the sums of each process: [processes, 2, bins]. All processes must call it."""
        return {'sums': accelerator.gather(self.sums[None]).clone()}

    def load_state_dict(self, state: Mapping[str, Any], accelerator: Any) -> None:
        """Take the sums of this process, or its share of those of another number of processes.

        (Older checkpoints hold the mean over the processes.)
        """
        sums, world = state['sums'], accelerator.num_processes
        if sums.shape[-2:] != self.sums.shape:
            return
        if sums.ndim == 2:
            self.sums.copy_(sums)
        elif len(sums) == world:
            self.sums.copy_(sums[accelerator.process_index])
        else:
            self.sums.copy_(sums.sum(0) / world)
