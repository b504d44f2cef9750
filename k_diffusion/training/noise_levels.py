"""The average loss by noise level."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class LossByNoise:
    """The average loss in each of `bins` equally likely ranges of the noise density.

    S_b <- decay S_b + sum of losses in b, N_b <- decay N_b + their number; the average is S_b /
    N_b, over about the last 1 / (1 - decay) steps. Both stay on the device.

    Args:
        bins: The number of ranges.
        decay: The decay of the sums at each step.
        device: The device of the losses.
    """

    def __init__(self, bins: int = 8, decay: float = 0.99, device: Any = 'cpu') -> None:
        self.bins, self.decay = bins, decay
        self.sums = torch.zeros(2, bins, device=device)

    def find_ranges(self, quantiles: Tensor) -> Tensor:
        """Return the range of each quantile of the density.

        Args:
            quantiles: [B] in (0, 1).

        Returns:
            The numbers of the ranges, int64 [B].
        """
        return (quantiles * self.bins).long().clamp_(0, self.bins - 1)

    def add(self, ranges: Tensor, losses: Tensor) -> None:
        """Add losses; those that are not finite are left out.

        Args:
            ranges: The ranges of the items, [B] on the device.
            losses: Their losses, [B] on the device.
        """
        losses = losses.detach().float()
        finite = losses.isfinite()
        both = torch.stack([losses.nan_to_num(0.0, 0.0, 0.0), finite.to(losses.dtype)])
        self.sums.index_add_(1, ranges, both)

    def end_step(self) -> None:
        """Decay the sums at the end of a step."""
        self.sums.mul_(self.decay)

    def values(self, accelerator: Any) -> list[float | None]:
        """Return the averages over all processes; None for a range without losses so far.

        All processes must call it.

        Args:
            accelerator: The accelerator.
        """
        total, number = accelerator.reduce(self.sums, 'sum').tolist()
        return [s / n if n > 1e-6 else None for s, n in zip(total, number)]

    def state_dict(self, accelerator: Any) -> dict[str, Any]:
        """Return the sums of each process: [processes, 2, bins].

        All processes must call it.

        Args:
            accelerator: The accelerator.
        """
        return {'sums': accelerator.gather(self.sums[None]).clone()}

    def load_state_dict(self, state: Mapping[str, Any], accelerator: Any) -> None:
        """Restore the sums of this process, or its share if the number of processes differs.

        Args:
            state: The result of state_dict. Older checkpoints hold the mean over the processes.
            accelerator: The accelerator.
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
