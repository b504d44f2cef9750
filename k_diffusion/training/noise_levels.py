"""The loss by noise level: where on the way from noise to data a network still errs."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class LossByNoise:
    """The average loss in each of `bins` equally likely ranges of the noise density, over about the last 1 / (1 - decay) steps.

    S_b <- decay S_b + sum of losses in b,  N_b <- decay N_b + their number;  the average is S_b / N_b. Both stay on the device.
    """

    def __init__(self, bins: int = 8, decay: float = 0.99, device: Any = 'cpu') -> None:
        self.bins, self.decay = bins, decay
        self.sums = torch.zeros(2, bins, device=device)

    def add(self, quantiles: Tensor, losses: Tensor) -> None:
        """The losses [B] of items at the quantiles [B] of the density; those that are no numbers are left out."""
        index = (quantiles * self.bins).long().clamp_(0, self.bins - 1).to(self.sums.device)
        losses = losses.detach().float()
        finite = losses.isfinite()
        both = torch.stack([losses.nan_to_num(0., 0., 0.), finite.to(losses.dtype)])
        self.sums.index_add_(1, index, both)

    def end_step(self) -> None:
        self.sums.mul_(self.decay)

    def values(self, accelerator: Any) -> list[float | None]:
        """The averages over all processes, which must all call it; None where nothing was drawn yet."""
        total, number = accelerator.reduce(self.sums, 'sum').tolist()
        return [s / n if n > 1e-6 else None for s, n in zip(total, number)]

    def state_dict(self, accelerator: Any) -> dict[str, Any]:
        return {'sums': accelerator.reduce(self.sums, 'mean').clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state['sums'].shape == self.sums.shape:
            self.sums.copy_(state['sums'])
