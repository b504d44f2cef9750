"""DPM-Solver (Lu et al.

2022, arXiv:2206.00927): exponential Runge-Kutta steps in eps = (x - D) / sigma and t = -log sigma.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from ...core.arguments import is_whole
from ...core.protocols import DenoiseFn, NoiseSampler
from ..coefficients import get_ancestral_step, phi
from ..loop import Asking, Callback, ExtraArgs, Watch
from ..noise import default_noise_sampler
from ..registry import Run, drain
from ..step_size import PIDStepSizeController, check_tolerances

Cache: TypeAlias = dict[str, Tensor]
R = TypeVar('R')


def _answered(asking: Callable[..., Run[R]]) -> Callable[..., R]:
    """Make a method that runs a generator of requests and states to its end by the solver's own
    model.
    """

    @functools.wraps(asking)
    def method(self: DPMSolver, *args: Any, **kwargs: Any) -> R:
        return drain(asking(self, *args, **kwargs), self.watch)

    return method


class DPMSolver(nn.Module):
    """The steps of DPM-Solver-1, -2 and -3 from time t to t_next (numbers or 0-d tensors), and the
    two ways to chain them.

    They are generators of requests and states: `fast` is run to its end by dpm_solver_fast,
    `step_1` by dpm_solver_1_step. eps_callback() is called after each model call,
    info_callback(dict) once in each step.
    """

    def __init__(
        self,
        model: DenoiseFn,
        extra_args: ExtraArgs = None,
        eps_callback: Callable[[], Any] | None = None,
        info_callback: Callback = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.watch = model if isinstance(model, Watch) else Watch(model, name='DPMSolver')
        self.extra_args = extra_args or {}
        self.eps_callback = eps_callback
        self.info_callback = info_callback

    def t(self, sigma: Any) -> float:
        """-log sigma."""
        return -math.log(sigma)

    def sigma(self, t: Any) -> float:
        """e^-t."""
        return math.exp(-t)

    def ask(self, x: Tensor, t: Any, *args: Any, **kwargs: Any) -> Asking[Tensor]:
        """Ask for D at time t."""
        sigma = self.sigma(t)
        denoised = yield from self.watch.ask(
            x, x.new_full((x.shape[0],), sigma), {**self.extra_args, **kwargs}, sigma, args=args
        )
        if self.eps_callback is not None:
            self.eps_callback()
        return denoised

    def ask_eps(
        self, eps_cache: Cache, key: str, x: Tensor, t: Any, *args: Any, **kwargs: Any
    ) -> Asking[tuple[Tensor, Cache]]:
        """(x - D) / sigma at time t, and the cache with it under the key; taken from the cache
        where it is there already.
        """
        if key in eps_cache:
            return eps_cache[key], eps_cache
        eps = (x - (yield from self.ask(x, t, *args, **kwargs))) / self.sigma(t)
        return eps, {key: eps, **eps_cache}

    def step_1(
        self, x: Tensor, t: Any, t_next: Any, eps_cache: Cache | None = None
    ) -> Asking[tuple[Tensor, Cache]]:
        """First order: DDIM."""
        eps, cache = yield from self.ask_eps(eps_cache or {}, 'eps', x, t)
        return self._transfer(x, t, t_next, eps), cache

    def step_2(
        self, x: Tensor, t: Any, t_next: Any, r1: float = 1 / 2, eps_cache: Cache | None = None
    ) -> Asking[tuple[Tensor, Cache]]:
        """Second order, with a stage at the share r1 of the step."""
        h = float(t_next - t)
        eps, cache = yield from self.ask_eps(eps_cache or {}, 'eps', x, t)
        s1 = t + r1 * h
        eps_r1, cache = yield from self.ask_eps(cache, 'eps_r1', self._transfer(x, t, s1, eps), s1)
        gain = self.sigma(t_next) * math.expm1(h) / (2 * r1)
        return torch.add(self._transfer(x, t, t_next, eps), eps_r1 - eps, alpha=-gain), cache

    def step_3(
        self,
        x: Tensor,
        t: Any,
        t_next: Any,
        r1: float = 1 / 3,
        r2: float = 2 / 3,
        eps_cache: Cache | None = None,
    ) -> Asking[tuple[Tensor, Cache]]:
        """Third order, with stages at the shares r1 and r2 of the step."""
        h = float(t_next - t)
        eps, cache = yield from self.ask_eps(eps_cache or {}, 'eps', x, t)
        s1, s2 = t + r1 * h, t + r2 * h
        eps_r1, cache = yield from self.ask_eps(cache, 'eps_r1', self._transfer(x, t, s1, eps), s1)
        gain = self.sigma(s2) * r2 / r1 * r2 * h * phi(2, r2 * h)
        u2 = torch.add(self._transfer(x, t, s2, eps), eps_r1 - eps, alpha=-gain)
        eps_r2, cache = yield from self.ask_eps(cache, 'eps_r2', u2, s2)
        gain = self.sigma(t_next) / r2 * h * phi(2, h)
        return torch.add(self._transfer(x, t, t_next, eps), eps_r2 - eps, alpha=-gain), cache

    def fast(
        self,
        x: Tensor,
        t_start: Any,
        t_end: Any,
        nfe: int,
        eta: float = 0.0,
        s_noise: float = 1.0,
        noise_sampler: NoiseSampler | None = None,
    ) -> Run[Tensor]:
        """x at t_end after nfe model calls, in uniform steps of order 3 with the rest at the
        end.
        """
        if not is_whole(nfe):
            raise ValueError(f'{nfe} model calls make no step; give at least 1, a whole number')
        t, t_end, noise_sampler = (
            *_ends(t_start, t_end, eta),
            noise_sampler or default_noise_sampler(x),
        )
        single_steps = (self.step_1, self.step_2, self.step_3)
        orders = [3] * (nfe // 3 - 1) + [2, 1] if nfe % 3 == 0 else [3] * (nfe // 3) + [nfe % 3]
        for i, order in enumerate(orders):
            t_next = t + (t_end - t) / (len(orders) - i)
            t_down, sigma_up = self._split(t, t_next, t_end, eta)
            self.watch.begin(i, self.sigma(t_next), len(orders))
            denoised, before = (yield from self.ask(x, t)), x
            if self.info_callback is not None:
                before = (
                    x.clone()
                )  # eps is that of the x that the model saw, in the order of the original
                self.info_callback({'x': x, 'i': i, 't': t, 't_up': t, 'denoised': denoised})
            x, _ = yield from single_steps[order - 1](
                x, t, t_down, eps_cache={'eps': (before - denoised) / self.sigma(t)}
            )
            x = self._renoise(x, t, t_next, s_noise * sigma_up, noise_sampler)
            x = yield x
            t = t_next
        return x

    def adaptive(
        self,
        x: Tensor,
        t_start: Any,
        t_end: Any,
        order: int = 3,
        rtol: float = 0.05,
        atol: float = 0.0078,
        h_init: float = 0.05,
        pcoeff: float = 0.0,
        icoeff: float = 1.0,
        dcoeff: float = 0.0,
        accept_safety: float = 0.81,
        eta: float = 0.0,
        s_noise: float = 1.0,
        noise_sampler: NoiseSampler | None = None,
        max_steps: int = 10_000,
    ) -> Run[tuple[Tensor, dict[str, int]]]:
        """x at t_end, each step as long as the tolerances allow, and a count of what that took.

        A state follows each attempt; after a rejected one x is what it was. Where info_callback,
        which comes after the step, edits denoised, the step is made again from it.
        """
        if order not in (2, 3):
            raise ValueError(
                f'order={order} has no adaptive pair; it is 2 (DPM-Solver-12) or 3 (DPM-Solver-23)'
            )
        check_tolerances(atol, rtol)
        t, t_end, noise_sampler = (
            *_ends(t_start, t_end, eta),
            noise_sampler or default_noise_sampler(x),
        )
        sign = 1 if t_end > t else -1
        pid = PIDStepSizeController(
            abs(h_init) * sign, pcoeff, icoeff, dcoeff, 1.5 if eta else order, accept_safety
        )
        info = {'steps': 0, 'nfe': 0, 'n_accept': 0, 'n_reject': 0}
        x_prev = x
        while sign * (t_end - t) > 1e-5:
            if info['steps'] == max_steps:
                raise ValueError(
                    f'{self.watch.name}: {max_steps} attempts ended at sigma {self.sigma(t):g}; '
                    f'raise rtol and atol, or max_steps'
                )
            t_next = sign * min(sign * t_end, sign * (t + pid.h))
            t_down, sigma_up = self._split(t, t_next, t_end, eta)
            self.watch.begin(info['steps'], self.sigma(t_next))
            low, high, denoised = yield from self._pair(x, t, t_down, order)
            error = _error(low, high, x_prev, rtol, atol)
            if not math.isfinite(error):
                raise ValueError(
                    f'{self.watch.name}: the error of step {info["steps"]}, at sigma '
                    f'{self.sigma(t):g}, is {error}; '
                    f'check the model there'
                )
            accept, edit = pid.propose_step(error), Edit(denoised)
            if accept:
                noise = sigma_up and noise_sampler(self.sigma(t), self.sigma(t_next)) * (
                    s_noise * sigma_up
                )
                again = functools.partial(self._pair, x, t, t_down, order)
                x_prev, x, t = low, high + noise, t_next
            self.watch.sigma = self.sigma(t)
            for key, count in {
                'steps': 1,
                'nfe': order,
                'n_accept': accept,
                'n_reject': not accept,
            }.items():
                info[key] += count
            if self.info_callback is not None:
                self.info_callback(
                    {
                        'x': x,
                        'i': info['steps'] - 1,
                        't': t,
                        't_up': t,
                        'denoised': denoised,
                        'error': error,
                        'h': pid.h,
                        **info,
                    }
                )
            if accept and edit.made():
                x = (yield from again(denoised))[1] + noise
            x = yield x
        return x, info

    denoise = _answered(ask)
    eps = _answered(ask_eps)
    dpm_solver_1_step = _answered(step_1)
    dpm_solver_2_step = _answered(step_2)
    dpm_solver_3_step = _answered(step_3)
    dpm_solver_fast = _answered(fast)
    dpm_solver_adaptive = _answered(adaptive)

    def _transfer(self, x: Tensor, t: Any, t_next: Any, eps: Tensor) -> Tensor:
        """The step for a constant eps."""
        return torch.add(x, eps, alpha=-self.sigma(t_next) * math.expm1(t_next - t))

    def _pair(
        self, x: Tensor, t: float, t_next: float, order: int, denoised: Tensor | None = None
    ) -> Asking[tuple[Tensor, Tensor, Tensor]]:
        """A step of order - 1 and one of the order that shares its model calls, and D at its
        start (asked for where not given).
        """
        known = {} if denoised is None else {'eps': (x - denoised) / self.sigma(t)}
        if order == 2:
            low, cache = yield from self.step_1(x, t, t_next, eps_cache=known)
            high, cache = yield from self.step_2(x, t, t_next, eps_cache=cache)
        else:
            low, cache = yield from self.step_2(x, t, t_next, r1=1 / 3, eps_cache=known)
            high, cache = yield from self.step_3(x, t, t_next, eps_cache=cache)
        return low, high, torch.add(x, cache['eps'], alpha=-self.sigma(t))

    def _split(self, t: float, t_next: float, t_end: float, eta: float) -> tuple[float, float]:
        """The time to denoise to, t_next or later, and the noise that leads back to t_next."""
        if not eta:
            return t_next, 0.0
        sigma_down, _ = get_ancestral_step(self.sigma(t), self.sigma(t_next), eta)
        t_down = min(t_end, self.t(sigma_down)) if sigma_down > 0 else t_end
        return t_down, math.sqrt(max(0.0, self.sigma(t_next) ** 2 - self.sigma(t_down) ** 2))

    def _renoise(
        self, x: Tensor, t: float, t_next: float, scale: float, noise_sampler: NoiseSampler
    ) -> Tensor:
        return (
            torch.add(x, noise_sampler(self.sigma(t), self.sigma(t_next)), alpha=scale)
            if scale
            else x
        )


class Edit:
    """Notices that a tensor was changed in place."""

    def __init__(self, x: Tensor) -> None:
        self.x, self.before = x, x.clone()

    def made(self) -> bool:
        """Whether the tensor is another than it was."""
        return not torch.equal(self.x, self.before)


def _ends(t_start: Any, t_end: Any, eta: float) -> tuple[float, float]:
    t_start, t_end = float(t_start), float(t_end)
    if eta and not t_end > t_start:
        raise ValueError(
            f'eta={eta} adds noise while the time goes back from {t_start} to {t_end}; give eta=0 '
            'to sample in reverse'
        )
    return t_start, t_end


def _error(low: Tensor, high: Tensor, previous: Tensor, rtol: float, atol: float) -> float:
    """The distance of two results in units of the tolerance, over the whole batch."""
    delta = (rtol * torch.maximum(low.abs(), previous.abs())).clamp(min=atol)
    return float(torch.linalg.vector_norm((low - high) / delta)) / math.sqrt(max(low.numel(), 1))
