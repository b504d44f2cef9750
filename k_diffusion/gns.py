"""Gradient noise scale: the batch size above which a larger one hardly improves the gradient.

References:
    McCandlish et al. (2018), arXiv:1812.06162, appendix A.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, distributed


class DDPGradientStatsHook:
    """Measures the mean squared norms of per-process and averaged gradients in DDP's reduction.

    Call `get_stats()` once after each backward pass that synchronises.

    Args:
        ddp_module: A module wrapped in DistributedDataParallel.

    Raises:
        ValueError: If it is not.
    """

    def __init__(self, ddp_module: Any) -> None:
        if not hasattr(ddp_module, 'register_comm_hook'):
            raise ValueError(
                'ddp_module must be wrapped in DistributedDataParallel, because gradient '
                f'statistics need two processes or more; got {type(ddp_module).__name__}'
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
        """Return |G_b|^2 averaged over the processes and |G_B|^2 of the last backward pass."""
        if not self._sq_norms:
            raise ValueError(
                'get_stats must be called once after each backward pass that synchronises; no '
                'gradient was exchanged since the last call'
            )
        stats = torch.stack([torch.stack(pair) for pair in self._sq_norms]).sum(0)
        self._sq_norms.clear()
        distributed.all_reduce(stats)
        small, large = (stats / distributed.get_world_size()).tolist()
        return small, large


class SplitGradientStats:
    """Measures the same in one process, from a batch taken in parts.

    There is one backward pass for each part, of its mean loss divided by the number of parts. Call
    `get_stats()` once after the last part.

    Args:
        module: The network.
        parts: Number of parts, >= 2.

    Raises:
        ValueError: If parts is below 2.
    """

    def __init__(self, module: torch.nn.Module, parts: int) -> None:
        if parts < 2:
            raise ValueError(
                'parts must be >= 2, because gradient statistics in one process compare parts '
                f'with the whole batch; got {parts}. Pass grad_accum_steps=2'
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
        """Return |G_b|^2 averaged over the parts and |G_B|^2 of the last accumulated gradient."""
        if not self._large:
            raise ValueError(
                'get_stats must be called once after each accumulated gradient; there was no '
                'backward pass since the last call'
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
    """Estimates the noise scale from squared gradient norms at a small batch b and a large batch B.

    Averaged over steps:

        |G|^2 ~ (B |G_B|^2 - b |G_b|^2) / (B - b)
        tr(Sigma) ~ (|G_b|^2 - |G_B|^2) / (1/b - 1/B)
        gns = tr(Sigma) / |G|^2.

    Args:
        beta: Decay of the averages.
        eps: Least |G|^2 in the division.
    """

    def __init__(self, beta: float = 0.9998, eps: float = 1e-8) -> None:
        self.beta = beta
        self.eps = eps
        self.ema_sq_norm = 0.0
        self.ema_var = 0.0
        self.beta_cumprod = 1.0
        self.gradient_noise_scale = float('nan')

    def state_dict(self) -> dict[str, Any]:
        """Return the averages."""
        return dict(self.__dict__)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore the averages.

        Args:
            state_dict: The result of `state_dict`.
        """
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
        """Add the squared norms of one step, and return the noise scale so far.

        Args:
            sq_norm_small_batch: |G_b|^2.
            sq_norm_large_batch: |G_B|^2.
            n_small_batch: b.
            n_large_batch: B.

        Raises:
            ValueError: Unless 0 < b < B.
        """
        if not 0 < n_small_batch < n_large_batch:
            raise ValueError(
                'n_small_batch and n_large_batch must satisfy 0 < small < large; got '
                f'{n_small_batch} and {n_large_batch}. Run two processes or more'
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
        """Return the noise scale; NaN before the first update."""
        return self.gradient_noise_scale

    def get_stats(self) -> tuple[float, float]:
        """Return the debiased averages |G|^2 and tr(Sigma); NaN before the first update."""
        if self.beta_cumprod == 1:
            return float('nan'), float('nan')
        return self.ema_sq_norm / (1 - self.beta_cumprod), self.ema_var / (1 - self.beta_cumprod)
