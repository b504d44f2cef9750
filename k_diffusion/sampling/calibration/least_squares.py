"""Levenberg-Marquardt with a robust loss, for residuals in blocks and finite differences."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

#: A function of parameter vectors that yields blocks of residuals [P, B, D], the same number each
#: time. With `first`, the vectors after the first one differ from it in one place each.
Blocks = Callable[[Sequence[Tensor], Sequence[int] | None], Iterator[Tensor]]
#: A round that lowers the loss by less than this ends the fit.
GIVE_UP = 3e-3
#: An item whose squared derivatives are more than this many times the median's is near a border
#: between two ends, where a linear model is poor. Its weight in a step is reduced in proportion.
STEEPEST = 4.0
#: Number of times that the damping is raised when a step does not lower the loss.
TRIES = 4


@dataclass(frozen=True)
class Loss:
    """The sum over blocks q of weights_q times the mean over items of log(scales_q^2 + mse).

    An item far off has no more influence than another.

    Attributes:
        weights: The weight of each block.
        scales: The scale of the errors of each block.
    """

    weights: Sequence[float]
    scales: Sequence[float]

    def __call__(self, squares: Sequence[Tensor]) -> Tensor:
        """Return the loss [P] of mean squares [P, B]; infinite for runs that overflowed."""
        terms = [
            w * (c * c + s).log().mean(1) for w, c, s in zip(self.weights, self.scales, squares)
        ]
        return torch.nan_to_num(torch.stack(terms).sum(0), nan=math.inf, posinf=math.inf)


def mean_squares(block: Tensor) -> Tensor:
    """Return the mean squares [P, B] of residuals [P, B, D], in float64.

    Args:
        block: The residuals.
    """
    return block.square().mean(2, dtype=torch.float64)


def fit(
    blocks: Blocks,
    loss: Loss,
    theta: Tensor,
    free: Sequence[int],
    first: Sequence[int],
    rounds: int,
    difference: float,
    callback: Callable[[Tensor], None] | None = None,
) -> tuple[Tensor, float]:
    """Fit the `free` entries of theta.

    A round takes one run for each free entry and four for the length of the step. The fit ends
    early after a round that gains little.

    Args:
        blocks: The residuals.
        loss: The loss.
        theta: The start, [T].
        free: The indices of the entries to fit.
        first: The step from which each entry matters.
        rounds: Largest number of rounds.
        difference: The step of the finite differences.
        callback: Called with each iterate.

    Returns:
        theta, and its loss.
    """
    order = sorted(free, key=lambda k: first[k])
    damping, value = 1e-2, math.inf
    for _ in range(rounds):
        hessian, gradient, value = _normal_equations(
            blocks, loss, theta, order, [first[k] for k in order], difference
        )
        for _ in range(TRIES):
            dampings = [damping * 10**power for power in (-1.5, -0.5, 0.5, 1.5)]
            trials = [_take_step(theta, order, hessian, gradient, mu) for mu in dampings]
            values = loss([mean_squares(block) for block in blocks(trials, None)])
            best = int(values.argmin())
            gain = value - values[best].item()
            if gain > 0:
                break
            damping *= 30
        if not gain > 0:
            break
        theta, value, damping = (
            trials[best],
            values[best].item(),
            min(max(dampings[best], 1e-6), 1e3),
        )
        if callback is not None:
            callback(theta)
        if gain < GIVE_UP:
            break
    return theta, value


def _normal_equations(
    blocks: Blocks,
    loss: Loss,
    theta: Tensor,
    order: Sequence[int],
    first: Sequence[int],
    difference: float,
) -> tuple[Tensor, Tensor, float]:
    """Return J^T W J, J^T W r and the loss at theta, with the weights W of the robust loss."""
    thetas = [theta, *(theta.clone() for _ in order)]
    for shifted_theta, k in zip(thetas[1:], order):
        shifted_theta[k] += difference
    hessian = torch.zeros(len(order), len(order), dtype=torch.float64)
    gradient, squares = torch.zeros(len(order), dtype=torch.float64), []
    for block, weight, scale in zip(blocks(thetas, [-1, *first]), loss.weights, loss.scales):
        squares.append(mean_squares(block[:1]))
        if not weight:
            continue
        slopes = (block[1:] - block[:1]) / difference
        size = mean_squares(slopes.transpose(0, 1).flatten(1)[None])[0]
        trust = (STEEPEST * size.median() / size.clamp_min(1e-300)).clamp_max(1)
        weights = weight * trust / (scale**2 + squares[-1][0]) / block.shape[2] / block.shape[1]
        root = weights.sqrt()[:, None].to(block)
        slopes = (slopes * root).flatten(1)
        hessian += (slopes @ slopes.mT).double().cpu()
        gradient += (slopes @ (block[0] * root).flatten()).double().cpu()
    return hessian, gradient, loss(squares).item()


def _take_step(
    theta: Tensor, order: Sequence[int], hessian: Tensor, gradient: Tensor, damping: float
) -> Tensor:
    """Return theta after a damped step."""
    diagonal = hessian.diagonal()
    damped = hessian + torch.diag(damping * diagonal + 1e-9 * diagonal.max() + 1e-30)
    # The default driver, gelsy, gives different last digits depending on uninitialised memory.
    step = torch.linalg.lstsq(damped, -gradient[:, None], driver='gelsd').solution[:, 0]
    next_theta = theta.clone()
    next_theta[torch.tensor(order)] += step.nan_to_num(0.0).clamp(-1, 1)
    return next_theta
