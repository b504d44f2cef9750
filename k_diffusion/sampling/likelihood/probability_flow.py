"""The probability flow dx/dsigma = (x - D) / sigma, and the integral of its divergence."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor
from tqdm.auto import tqdm, trange

from ...core.arguments import check_denoiser, check_whole, expands, show_value
from ...core.protocols import DenoiseFn
from ...core.tensors import sum_per_item
from ..coefficients import to_d
from ..loop import ExtraArgs
from ..watch import Watch
from .divergence import Divergence, Probes
from .runge_kutta import RUNGE_KUTTA, Parts, dormand_prince, runge_kutta_step


class ProbabilityFlow:
    """Leads x [B, ...] along the flow of a model.

    With a `divergence` it also integrates the P estimates of it. On a fixed grid the path of
    Gaussian data with the given mean and deviation is exact; only the departure from it is
    integrated numerically.

    Args:
        model: The denoiser.
        x: The start, [B, ...].
        extra_args: Conditions of the model.
        mean: Mean of the data, a number or like an item.
        std: Standard deviation of the data, a number or like an item.
        dtype: Dtype of the integration; by default that of x, at least float32.
        name: The name of the caller in messages.
        divergence: The estimator of the divergence, or None.

    Raises:
        ValueError: If x is not a floating-point batch, or std is negative.
    """

    def __init__(
        self,
        model: DenoiseFn,
        x: Tensor,
        extra_args: ExtraArgs,
        mean: float | Tensor,
        std: float | Tensor,
        dtype: torch.dtype | None,
        name: str,
        divergence: Divergence | None = None,
    ) -> None:
        if not isinstance(x, Tensor) or not x.ndim or not x.is_floating_point():
            description = (
                f'has dtype {x.dtype} and shape {tuple(x.shape)}'
                if isinstance(x, Tensor)
                else f'is a {type(x).__name__}'
            )
            raise ValueError(
                f'{name}: x must be a batch [B, ...] in floating point, scaled as in training; x '
                f'{description}'
            )
        check_denoiser(f'{name}: model', model)
        self.watch, self.extra_args, self.divergence = (
            Watch(model, x.dtype, name),
            extra_args or {},
            divergence,
        )
        self.start = x.detach().to(dtype or torch.promote_types(x.dtype, torch.float32))
        self.mean, self.std = self._per_item('data_mean', mean), self._per_item('data_std', std)
        if not bool((self.std >= 0).all()):
            raise ValueError(f'{name}: data_std must be >= 0 in every entry; got {show_value(std)}')
        self.blocks: list[
            Tensor
        ] = []  # the share of each set of probes in the integrals over a grid, [B, P]

    def _per_item(self, name: str, value: float | Tensor) -> Tensor:
        """Return a number or a tensor like an item as a tensor."""
        try:
            tensor = torch.as_tensor(value).to(self.start)
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(
                f'{name} must be a number or a tensor like an item of x; got {show_value(value)}'
            ) from None
        if not expands(tensor.shape, self.start.shape) or not bool(tensor.isfinite().all()):
            raise ValueError(
                f'{name} must be a finite number or a tensor that broadcasts to x, '
                f'{tuple(self.start.shape)}; got {show_value(value)}'
            )
        return tensor

    def adaptive(
        self, start: float, end: float, atol: float, rtol: float, most: int, disable: bool | None
    ) -> Parts:
        """Lead x from start to end by steps in sigma that suit each item.

        Args:
            start: The first level.
            end: The last level.
            atol: Absolute tolerance.
            rtol: Relative tolerance.
            most: Largest number of model calls.
            disable: Disable the progress bar; None disables it outside a terminal.

        Returns:
            x at end, and the integral [B, P] if there is a divergence.
        """

        def slope(sigma: Tensor, parts: Parts) -> Parts:
            at = sigma.to(parts[0])
            denoised, *divergence = self._estimate(parts[0], at)
            return to_d(parts[0], at, denoised), *(value / at[:, None] for value in divergence)

        with (
            torch.no_grad(),
            tqdm(
                total=1.0, disable=disable, bar_format='{l_bar}{bar}| {elapsed}<{remaining}'
            ) as bar,
        ):
            return dormand_prince(
                slope,
                self._parts(self.start),
                start,
                end,
                atol,
                rtol,
                most,
                lambda share: bar.update(share - bar.n),
            )[0]

    def fixed(self, start: float, end: float, steps: int, disable: bool | None) -> Parts:
        """Lead x from start to end by steps even in ln sigma, of 4 calls each.

        The variable is u = (x - mean) / r with r = sqrt(sigma^2 + std^2). du/dlns = (c (x - mean) -
        (D - mean)) / r with c = std^2 / r^2; its divergence is that of x - D minus the sum of 1 -
        c.

        Args:
            start: The first level.
            end: The last level.
            steps: Number of steps.
            disable: Disable the progress bar; None disables it outside a terminal.

        Returns:
            x at end, and the integral [B, P] if there is a divergence.
        """
        check_whole('steps', steps, hint='32 is usual')
        h, calls = math.log(end / start) / steps, itertools.count()

        def slope(log_sigma: float, parts: Parts) -> Parts:
            step, stage = divmod(next(calls), len(RUNGE_KUTTA))
            # The last stage of a step and the first of the next one are at the same level and share
            # their probes, so that every turn has the same weight in the integral.
            turn = step * (len(RUNGE_KUTTA) - 1) + stage
            sigma = math.exp(log_sigma)
            r = self.spread(sigma)
            c = (self.std / r) ** 2
            offset = r * parts[0]
            denoised, *divergence = self._estimate(
                self.mean + offset, offset.new_full((len(offset),), sigma), turn
            )
            self._add_to_block(turn, [h * RUNGE_KUTTA[stage] * value for value in divergence])
            return (c * offset - (denoised - self.mean)) / r, *(
                value - self._over_item(1 - c) for value in divergence
            )

        parts = self._parts((self.start - self.mean) / self.spread(start))
        with torch.no_grad():
            for i in trange(steps, disable=disable):
                parts = runge_kutta_step(slope, parts, math.log(start) + i * h, h)
        log_growth = self._over_item((self.spread(end) / self.spread(start)).log())
        return self.mean + self.spread(end) * parts[0], *(value + log_growth for value in parts[1:])

    def _add_to_block(self, turn: int, shares: list[Tensor]) -> None:
        if isinstance(self.divergence, Probes) and self.divergence.count > 1:
            if turn // self.divergence.length == len(self.blocks):
                self.blocks.append(torch.zeros_like(shares[0]))
            self.blocks[-1] += shares[0]

    def log_prior(self, x: Tensor, sigma: float) -> Tensor:
        """Return the log density [B] of Gaussian data with this mean and deviation and added noise.

        Args:
            x: A batch [B, ...].
            sigma: The level of the noise.
        """
        return sum_per_item(
            torch.distributions.Normal(self.mean, self.spread(sigma), validate_args=False).log_prob(
                x
            )
        )

    def spread(self, sigma: float) -> Tensor:
        """Return sqrt(sigma^2 + std^2), the deviation of noisy data.

        Args:
            sigma: The level of the noise.
        """
        return (self.std**2 + sigma**2).sqrt()

    def _over_item(self, value: Tensor) -> Tensor:
        return value.expand(self.start.shape[1:]).sum()

    def _parts(self, x: Tensor) -> Parts:
        return (x,) if self.divergence is None else (x, x.new_zeros(len(x), self.divergence.count))

    def _estimate(self, x: Tensor, sigma: Tensor, turn: int = 0) -> Parts:
        """Return D, and the divergence [B, P] of x - D if there is an estimator."""
        if self.divergence is None:
            return (self.watch(x, sigma, **self.extra_args),)
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            denoised = self.watch(x, sigma, **self.extra_args)
            if not denoised.requires_grad:
                raise ValueError(
                    f'{self.watch.name}: the model output has no gradient with respect to x; '
                    'remove '
                    'torch.no_grad and torch.inference_mode from the model'
                )
            divergence = self.divergence(x - denoised, x, turn)
        return denoised.detach(), divergence.detach()
