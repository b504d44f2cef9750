"""DPM-Solver: exponential Runge-Kutta steps in eps = (x - D) / sigma and t = -log sigma.

References:
    Lu et al. (2022), arXiv:2206.00927.
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
from ..loop import Callback, ExtraArgs
from ..noise import default_noise_sampler
from ..registry import Run
from ..running import drain
from ..step_size import PIDStepSizeController, check_tolerances
from ..watch import Asking, Watch

Cache: TypeAlias = dict[str, Tensor]
R = TypeVar('R')


def _run_to_end(asking: Callable[..., Run[R]]) -> Callable[..., R]:
    """Make a method that runs a generator of requests to its end with the solver's own model."""

    @functools.wraps(asking)
    def method(self: DPMSolver, *args: Any, **kwargs: Any) -> R:
        return drain(asking(self, *args, **kwargs), self.watch)

    return method


class DPMSolver(nn.Module):
    """The steps of DPM-Solver-1, -2 and -3, and the two ways to chain them.

    Times are numbers or 0-d tensors. `ask`, `ask_eps`, `step_1` to `step_3`, `fast` and `adaptive`
    are generators of requests and states. `denoise`, `eps`, `dpm_solver_1_step` to
    `dpm_solver_3_step`, `dpm_solver_fast` and `dpm_solver_adaptive` run them to their end.

    Args:
        model: The denoiser.
        extra_args: Its conditions.
        eps_callback: Called without arguments after each model call.
        info_callback: Called with a dict once in each step.

    References:
        Lu et al. (2022), arXiv:2206.00927.
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
        """Return the time -log sigma."""
        return -math.log(sigma)

    def sigma(self, t: Any) -> float:
        """Return the level e^-t."""
        return math.exp(-t)

    def ask(self, x: Tensor, t: Any, *args: Any, **kwargs: Any) -> Asking[Tensor]:
        """Request D at time t; further arguments are the model's.

        Args:
            x: The noisy batch, [B, ...].
            t: The time.
            *args: Further positional arguments of the model.
            **kwargs: Further conditions.
        """
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
        """Request (x - D) / sigma at time t, unless eps_cache has it.

        Args:
            eps_cache: Earlier values by key.
            key: The key of this value.
            x: The noisy batch, [B, ...].
            t: The time.
            *args: Further positional arguments of the model.
            **kwargs: Further conditions.

        Returns:
            eps [B, ...], and the cache with it under the key.
        """
        if key in eps_cache:
            return eps_cache[key], eps_cache
        eps = (x - (yield from self.ask(x, t, *args, **kwargs))) / self.sigma(t)
        return eps, {key: eps, **eps_cache}

    def step_1(
        self, x: Tensor, t: Any, t_next: Any, eps_cache: Cache | None = None
    ) -> Asking[tuple[Tensor, Cache]]:
        """Take a first order step, which is DDIM.

        Args:
            x: The noisy batch at time t, [B, ...].
            t: The time at the start.
            t_next: The time at the end.
            eps_cache: Values of eps to use in place of model calls.

        Returns:
            x at t_next, and the cache of eps.
        """
        eps, cache = yield from self.ask_eps(eps_cache or {}, 'eps', x, t)
        return self._transfer(x, t, t_next, eps), cache

    def step_2(
        self, x: Tensor, t: Any, t_next: Any, r1: float = 1 / 2, eps_cache: Cache | None = None
    ) -> Asking[tuple[Tensor, Cache]]:
        """Take a second order step with a stage at the share r1 of the step.

        Args:
            x: The noisy batch at time t, [B, ...].
            t: The time at the start.
            t_next: The time at the end.
            r1: Share of the step at which the stage lies.
            eps_cache: Values of eps to use in place of model calls.

        Returns:
            x at t_next, and the cache of eps.
        """
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
        """Take a third order step with stages at the shares r1 and r2 of the step.

        Args:
            x: The noisy batch at time t, [B, ...].
            t: The time at the start.
            t_next: The time at the end.
            r1: Share of the step at which the first stage lies.
            r2: Share of the step at which the second stage lies.
            eps_cache: Values of eps to use in place of model calls.

        Returns:
            x at t_next, and the cache of eps.
        """
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
        """Lead x from t_start to t_end with nfe model calls, in uniform steps of order 3.

        Args:
            x: The noisy batch at t_start, [B, ...].
            t_start: -log of the first level.
            t_end: -log of the last level.
            nfe: Number of model calls.
            eta: Noise strength; 0 disables noise, 1 is that of DDPM.
            s_noise: Factor of the noise.
            noise_sampler: Source of noise; independent noise by default.

        Returns:
            x at t_end.

        Raises:
            ValueError: If nfe is not a positive integer.
        """
        if not is_whole(nfe):
            raise ValueError(f'nfe must be a positive integer; got {nfe}')
        t, t_end = _ends(t_start, t_end, eta)
        noise_sampler = noise_sampler or default_noise_sampler(x)
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
        """Lead x from t_start to t_end in steps as long as the tolerances allow.

        A state follows each attempt; after a rejected one x is unchanged. info_callback is called
        after the step; where it edits denoised, the step is made again from it.

        Args:
            x: The noisy batch at t_start, [B, ...].
            t_start: -log of the first level.
            t_end: -log of the last level.
            order: 2 (DPM-Solver-12) or 3 (DPM-Solver-23).
            rtol: Relative tolerance.
            atol: Absolute tolerance.
            h_init: First step in time.
            pcoeff: Proportional coefficient of the step size controller.
            icoeff: Integral coefficient.
            dcoeff: Derivative coefficient.
            accept_safety: Factor of the step size above which a step is accepted.
            eta: Noise strength; 0 disables noise, 1 is that of DDPM.
            s_noise: Factor of the noise.
            noise_sampler: Source of noise; independent noise by default.
            max_steps: Largest number of attempts.

        Returns:
            x at t_end, and the counts steps, nfe, n_accept and n_reject.

        Raises:
            ValueError: If order is not 2 or 3, max_steps attempts do not reach t_end, or an error
                is not finite.
        """
        if order not in (2, 3):
            raise ValueError(f'order must be 2 (DPM-Solver-12) or 3 (DPM-Solver-23); got {order}')
        check_tolerances(atol, rtol)
        t, t_end = _ends(t_start, t_end, eta)
        noise_sampler = noise_sampler or default_noise_sampler(x)
        sign = 1 if t_end > t else -1
        pid = PIDStepSizeController(
            abs(h_init) * sign, pcoeff, icoeff, dcoeff, 1.5 if eta else order, accept_safety
        )
        info = {'steps': 0, 'nfe': 0, 'n_accept': 0, 'n_reject': 0}
        x_prev = x
        while sign * (t_end - t) > 1e-5:
            if info['steps'] == max_steps:
                raise ValueError(
                    f'{self.watch.name}: {max_steps} attempts only reached sigma '
                    f'{self.sigma(t):g}; raise rtol, atol or max_steps'
                )
            t_next = sign * min(sign * t_end, sign * (t + pid.h))
            t_down, sigma_up = self._split(t, t_next, t_end, eta)
            self.watch.begin(info['steps'], self.sigma(t_next))
            low, high, denoised = yield from self._pair(x, t, t_down, order)
            error = _error(low, high, x_prev, rtol, atol)
            if not math.isfinite(error):
                raise ValueError(
                    f'{self.watch.name}: the error of step {info["steps"]}, at sigma '
                    f'{self.sigma(t):g}, is {error}; check the model there'
                )
            accept, edit = pid.propose_step(error), Edit(denoised)
            if accept:
                noise = sigma_up and noise_sampler(self.sigma(t), self.sigma(t_next)) * (
                    s_noise * sigma_up
                )
                again = functools.partial(self._pair, x, t, t_down, order)
                x_prev, x, t = low, high + noise, t_next
            self.watch.sigma = self.sigma(t)
            info['steps'] += 1
            info['nfe'] += order
            info['n_accept' if accept else 'n_reject'] += 1
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
            if accept and edit.is_made():
                x = (yield from again(denoised))[1] + noise
            x = yield x
        return x, info

    denoise = _run_to_end(ask)
    eps = _run_to_end(ask_eps)
    dpm_solver_1_step = _run_to_end(step_1)
    dpm_solver_2_step = _run_to_end(step_2)
    dpm_solver_3_step = _run_to_end(step_3)
    dpm_solver_fast = _run_to_end(fast)
    dpm_solver_adaptive = _run_to_end(adaptive)

    def _transfer(self, x: Tensor, t: Any, t_next: Any, eps: Tensor) -> Tensor:
        """Return x at t_next for a constant eps."""
        return torch.add(x, eps, alpha=-self.sigma(t_next) * math.expm1(t_next - t))

    def _pair(
        self, x: Tensor, t: float, t_next: float, order: int, denoised: Tensor | None = None
    ) -> Asking[tuple[Tensor, Tensor, Tensor]]:
        """Take a step of order - 1 and one of the order with the same model calls; also return D.

        D is the estimate at the start, requested from the model unless it is given.
        """
        cache_entry = {} if denoised is None else {'eps': (x - denoised) / self.sigma(t)}
        if order == 2:
            low, cache = yield from self.step_1(x, t, t_next, eps_cache=cache_entry)
            high, cache = yield from self.step_2(x, t, t_next, eps_cache=cache)
        else:
            low, cache = yield from self.step_2(x, t, t_next, r1=1 / 3, eps_cache=cache_entry)
            high, cache = yield from self.step_3(x, t, t_next, eps_cache=cache)
        return low, high, torch.add(x, cache['eps'], alpha=-self.sigma(t))

    def _split(self, t: float, t_next: float, t_end: float, eta: float) -> tuple[float, float]:
        """Return the time to denoise to, and the level of the noise that leads back to t_next."""
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
    """Detects that a tensor was changed in place."""

    def __init__(self, x: Tensor) -> None:
        self.x, self.before = x, x.clone()

    def is_made(self) -> bool:
        """Return True if the tensor differs from its first value."""
        return not torch.equal(self.x, self.before)


def _ends(t_start: Any, t_end: Any, eta: float) -> tuple[float, float]:
    """Return both times as floats; refuse noise while time runs backwards."""
    t_start, t_end = float(t_start), float(t_end)
    if eta and not t_end > t_start:
        raise ValueError(
            f'eta must be 0 to sample from low noise to high; got {eta} with times from '
            f'{t_start} to {t_end}'
        )
    return t_start, t_end


def _error(low: Tensor, high: Tensor, previous: Tensor, rtol: float, atol: float) -> float:
    """Return the distance of two results in units of the tolerance, over the whole batch."""
    delta = (rtol * torch.maximum(low.abs(), previous.abs())).clamp(min=atol)
    return float(torch.linalg.vector_norm((low - high) / delta)) / math.sqrt(max(low.numel(), 1))
