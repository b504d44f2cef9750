"""DPM-Solver with adaptive steps of its own for each item of a batch.

The items are evaluated together, each at its own level. An item that has reached the end waits
there for the others. Its result does not depend on them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...core.tensors import append_dims
from ..coefficients import phi
from ..registry import Run
from ..step_size import PIDStepSizeController, check_tolerances
from ..watch import Asking
from .dpm_solver import DPMSolver, Edit


class Items:
    """The steps of DPM-Solver from the times t to t_next, one number for each item.

    References:
        Lu et al. (2022), arXiv:2206.00927.
    """

    def __init__(
        self, solver: DPMSolver, x: Tensor, t: Sequence[float], t_next: Sequence[float], order: int
    ) -> None:
        self.solver, self.x, self.t, self.order = solver, x, t, order
        self.h = [end - start for start, end in zip(t, t_next)]

    def pair(self, denoised: Tensor | None = None) -> Asking[tuple[Tensor, Tensor, Tensor]]:
        """Take a step of order - 1 and one of the order, and return both with D at the start.

        Args:
            denoised: D at the start; requested from the model by default.
        """
        if denoised is None:
            denoised = yield from self._ask(self.x, 0.0)
        self.eps = (self.x - denoised) / self._each(lambda t, h: math.exp(-t))
        r = 1 / 2 if self.order == 2 else 1 / 3
        change = (yield from self._ask_eps(self._ddim(r), r)) - self.eps
        ddim, second = (
            self._ddim(1.0),
            self._each(lambda t, h: -math.exp(-t - h) * math.expm1(h) / (2 * r)) * change,
        )
        if self.order == 2:
            return ddim, ddim + second, denoised
        gain = self._each(
            lambda t, h: -math.exp(-t - 2 / 3 * h) * 2 * (2 / 3 * h) * phi(2, 2 / 3 * h)
        )
        change_3 = (yield from self._ask_eps(self._ddim(2 / 3) + gain * change, 2 / 3)) - self.eps
        third = self._each(lambda t, h: -math.exp(-t - h) * 1.5 * h * phi(2, h)) * change_3
        return ddim + second, ddim + third, denoised

    def _each(self, f: Callable[[float, float], float]) -> Tensor:
        """Return f(t, h) of every item, shaped to be multiplied with x."""
        return append_dims(
            self.x.new_tensor([f(t, h) for t, h in zip(self.t, self.h)]), self.x.ndim
        )

    def _ask(self, x: Tensor, share: float) -> Asking[Tensor]:
        solver = self.solver
        sigma = x.new_tensor([math.exp(-t - share * h) for t, h in zip(self.t, self.h)])
        denoised = yield from solver.watch.ask(x, sigma, solver.extra_args)
        if solver.eps_callback is not None:
            solver.eps_callback()
        return denoised

    def _ask_eps(self, x: Tensor, share: float) -> Asking[Tensor]:
        return (x - (yield from self._ask(x, share))) / self._each(
            lambda t, h: math.exp(-t - share * h)
        )

    def _ddim(self, share: float) -> Tensor:
        """Return x at the share of the step for a constant eps."""
        return (
            self.x
            - self._each(lambda t, h: math.exp(-t - share * h) * math.expm1(share * h)) * self.eps
        )


def adaptive_per_item(
    solver: DPMSolver,
    x: Tensor,
    t_start: float,
    t_end: float,
    order: int,
    rtol: float,
    atol: float,
    pids: Sequence[PIDStepSizeController],
    max_steps: int,
) -> Run[tuple[Tensor, dict[str, Any]]]:
    """Lead x from t_start to t_end, each item in steps of its own size.

    The method is that of DPMSolver.adaptive without noise.

    Args:
        solver: The solver with the model.
        x: Noise at the time t_start, [B, ...].
        t_start: -log of the first level.
        t_end: -log of the last level.
        order: 2 or 3.
        rtol: Relative tolerance.
        atol: Absolute tolerance.
        pids: A step size controller for each item.
        max_steps: Largest number of attempts.

    Returns:
        x at t_end, and counts: attempts, model calls of the batch, accepted and rejected steps of
            each item.

    Raises:
        ValueError: If max_steps attempts do not reach t_end, or an error is not finite.
    """
    check_tolerances(atol, rtol)
    t, x_prev = [t_start] * len(x), x
    accepts, rejects, steps = [0] * len(x), [0] * len(x), 0
    while any(t_end - time > 1e-5 for time in t):
        if steps == max_steps:
            raise ValueError(
                f'{solver.watch.name}: {max_steps} attempts only reached sigma '
                f'{math.exp(-min(t)):g}; raise rtol, atol or max_steps'
            )
        t_next = [min(t_end, time + pid.h) for time, pid in zip(t, pids)]
        solver.watch.begin(steps, math.exp(-min(t_next)))
        items = Items(solver, x, t, t_next, order)
        low, high, denoised = yield from items.pair()
        delta = (rtol * torch.maximum(low.abs(), x_prev.abs())).clamp(min=atol)
        errors = ((low - high) / delta).flatten(1).square().mean(1).sqrt().tolist()
        accept = [
            t_end - time > 1e-5 and pid.propose_step(_finite(error, solver, time))
            for error, pid, time in zip(errors, pids, t)
        ]
        is_accepted = append_dims(torch.tensor(accept, device=x.device), x.ndim)
        start, edit = x, Edit(denoised)
        x, x_prev = torch.where(is_accepted, high, x), torch.where(is_accepted, low, x_prev)
        accepts = [n + yes for n, yes in zip(accepts, accept)]
        rejects = [
            n + (not yes and t_end - time > 1e-5) for n, yes, time in zip(rejects, accept, t)
        ]
        before, t = t, [after if yes else time for time, after, yes in zip(t, t_next, accept)]
        steps += 1
        solver.watch.sigma = math.exp(-min(t))
        info = {'steps': steps, 'nfe': order * steps, 'n_accept': accepts, 'n_reject': rejects}
        times, sizes = x.new_tensor(t), x.new_tensor([pid.h for pid in pids])
        if solver.info_callback is not None:
            sigma = (-times).exp()
            solver.info_callback(
                {
                    'x': x,
                    'i': steps - 1,
                    't': times,
                    't_up': times,
                    'sigma': sigma,
                    'sigma_hat': sigma.clone(),
                    'denoised': denoised,
                    'error': x.new_tensor(errors),
                    'h': sizes,
                    **info,
                }
            )
        if edit.is_made():
            again = yield from Items(solver, start, before, t_next, order).pair(denoised)
            x = torch.where(is_accepted, again[1], x)
        x = yield x
    return x, {'steps': steps, 'nfe': order * steps, 'n_accept': accepts, 'n_reject': rejects}


def _finite(error: float, solver: DPMSolver, time: float) -> float:
    """Return the error of a step; raise a ValueError if it is not finite."""
    if not math.isfinite(error):
        raise ValueError(
            f'{solver.watch.name}: the error of a step at sigma {math.exp(-time):g} is {error}; '
            'check the model there'
        )
    return error
