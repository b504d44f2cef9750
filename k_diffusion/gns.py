"""Gradient noise scale: the batch size beyond which a larger one hardly improves the gradient.

McCandlish et al. 2018, arXiv 1812.06162, appendix A.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, distributed


class DDPGradientStatsHook:
    """Takes the mean squared norms of the per-process and of the averaged gradient while DDP
    reduces them.

    `get_stats()` once after each backward pass that synchronises. Raises ValueError for a module
    that is not wrapped in DistributedDataParallel.
    """

    def __init__(self, ddp_module: Any) -> None:
        if not hasattr(ddp_module, 'register_comm_hook'):
            raise ValueError(
                f'DDPGradientStatsHook got a {type(ddp_module).__name__}; gradient statistics are '
                'taken '
                'where processes exchange gradients: wrap the module in DistributedDataParallel, '
                'running two processes or more'
            )
        self._sq_norms: list[tuple[Tensor, Tensor]] = []
        ddp_module.register_comm_hook(None, lambda state, bucket: self._reduce(bucket))

    def _reduce(self, bucket: Any) -> Any:
        gradient = bucket.buffer()
        small = gradient.square().sum()
        work = distributed.all_reduce(gradient, async_op=True)

        def average(future: Any) -> Tensor:
            mean = future.value()[0].div_(distributed.get_world_size())
            self._sq_norms.append((small, mean.square().sum()))
            return mean

        return work.get_future().then(average)

    def get_stats(self) -> tuple[float, float]:
        """(|G_b|^2 averaged over the processes, |G_B|^2) of the last backward pass."""
        if not self._sq_norms:
            raise ValueError(
                'no gradient was exchanged since the last call; '
                'call get_stats once after each backward pass that synchronises'
            )
        stats = torch.stack([torch.stack(pair) for pair in self._sq_norms]).sum(0)
        self._sq_norms.clear()
        distributed.all_reduce(stats)
        small, large = (stats / distributed.get_world_size()).tolist()
        return small, large


class SplitGradientStats:
    """The same in one process, from a batch taken in parts: one backward pass for each, of its mean
    loss divided by their number.

    `get_stats()` once after the last part, the gradients having been accumulated.
    """

    def __init__(self, module: torch.nn.Module, parts: int) -> None:
        if parts < 2:
            raise ValueError(
                f'the batch is taken in {parts} part; gradient statistics in one process compare '
                'parts of a batch with '
                'the whole: take it in two or more (grad_accum_steps=2)'
            )
        self.parts = parts
        self._small: list[Tensor] = []
        self._large: dict[int, Tensor] = {}
        for i, parameter in enumerate(module.parameters()):
            if parameter.requires_grad:
                parameter.register_hook(lambda gradient: self._small.append(_sq_norm(gradient)))
                parameter.register_post_accumulate_grad_hook(
                    lambda own, i=i: self._large.update({i: _sq_norm(own.grad)})
                )

    def get_stats(self) -> tuple[float, float]:
        """(|G_b|^2 averaged over the parts, |G_B|^2) of the last accumulated gradient."""
        if not self._large:
            raise ValueError(
                'there was no backward pass since the last call; call get_stats once after each '
                'accumulated gradient'
            )
        sums = torch.stack(
            [
                torch.stack(self._small).sum() * self.parts,
                torch.stack(list(self._large.values())).sum(),
            ]
        )
        self._small.clear()
        self._large.clear()
        small, large = sums.tolist()
        return small, large


def _sq_norm(gradient: Tensor) -> Tensor:
    return gradient.detach().float().square().sum()


class GradientNoiseScale:
    """From the squared gradient norms at a small batch b and a large batch B, averaged over steps:

    |G|^2 ~ (B |G_B|^2 - b |G_b|^2) / (B - b)
    tr(Sigma) ~ (|G_b|^2 - |G_B|^2) / (1/b - 1/B)
    gns = tr(Sigma) / |G|^2.
    """

    def __init__(self, beta: float = 0.9998, eps: float = 1e-8) -> None:
        self.beta = beta
        self.eps = eps
        self.ema_sq_norm = 0.0
        self.ema_var = 0.0
        self.beta_cumprod = 1.0
        self.gradient_noise_scale = float('nan')

    def state_dict(self) -> dict[str, Any]:
        return dict(self.__dict__)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self.__dict__.update(
            {key: value for key, value in state_dict.items() if key in self.__dict__}
        )

    def update(
        self,
        sq_norm_small_batch: float,
        sq_norm_large_batch: float,
        n_small_batch: int,
        n_large_batch: int,
    ) -> float:
        """Takes one step's squared norms and returns the noise scale so far."""
        if not 0 < n_small_batch < n_large_batch:
            raise ValueError(
                f'the small batch is {n_small_batch} and the large one {n_large_batch}; '
                'the noise scale needs 0 < small < large: run two processes or more'
            )
        difference = n_large_batch * sq_norm_large_batch - n_small_batch * sq_norm_small_batch
        sq_norm = difference / (n_large_batch - n_small_batch)
        var = (sq_norm_small_batch - sq_norm_large_batch) / (1 / n_small_batch - 1 / n_large_batch)
        self.ema_sq_norm = self.beta * self.ema_sq_norm + (1 - self.beta) * sq_norm
        self.ema_var = self.beta * self.ema_var + (1 - self.beta) * var
        self.beta_cumprod *= self.beta
        self.gradient_noise_scale = self.ema_var / max(self.ema_sq_norm, self.eps)
        return self.gradient_noise_scale

    def get_gns(self) -> float:
        return self.gradient_noise_scale

    def get_stats(self) -> tuple[float, float]:
        """The debiased averages (|G|^2, tr(Sigma)); nan before the first update."""
        if self.beta_cumprod == 1:
            return float('nan'), float('nan')
        return self.ema_sq_norm / (1 - self.beta_cumprod), self.ema_var / (1 - self.beta_cumprod)
