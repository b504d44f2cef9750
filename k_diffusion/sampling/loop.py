"""The common loop of samplers: a schedule walked step by step, with every model call checked."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor
from tqdm.auto import trange

from ..core.arguments import show_value
from ..core.protocols import NoiseSampler
from .coefficients import to_d
from .watch import Asking, Watch

Sigmas: TypeAlias = Tensor | Sequence[float]
ExtraArgs: TypeAlias = dict[str, Any] | None
Callback: TypeAlias = Callable[[dict[str, Any]], Any] | None

R = TypeVar('R')


#: Neighbouring levels with a smaller relative difference are one; 8 ulp in float32.
SAME = 1e-6


def levels(sigmas: Sigmas) -> list[float]:
    """Return a schedule as Python floats, read from its device once.

    A level within SAME of the one before is made equal to it: so short a step is rounding, and
    multistep methods divide by it.

    Args:
        sigmas: The noise levels, descending, [n + 1].

    Raises:
        ValueError: If they are not a descending list of finite levels >= 0.
    """
    if not isinstance(sigmas, Tensor):
        try:
            sigmas = torch.as_tensor(sigmas, dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(
                'sigmas must be one list of noise levels in descending order, such as '
                f'get_sigmas_karras(20, 0.02, 80.); got {show_value(sigmas)}'
            ) from None
    if sigmas.ndim != 1 or not len(sigmas) or sigmas.is_complex():
        kind = ' of complex numbers' if sigmas.is_complex() else ''
        raise ValueError(
            f'sigmas must be one list of noise levels, of shape [n + 1]; got shape '
            f'{tuple(sigmas.shape)}{kind}'
        )
    values = [float(sigma) for sigma in sigmas.tolist()]
    for i, (before, sigma) in enumerate(zip([math.inf, *values], values)):
        if not 0 <= sigma < math.inf:
            raise ValueError(f'sigmas must be finite and >= 0; got {sigma} at index {i}')
        if sigma > before:
            raise ValueError(
                f'sigmas must be in descending order; they rise from {before} to {sigma} at index '
                f'{i}'
            )
    for i in range(1, len(values)):
        if values[i - 1] - values[i] <= SAME * values[i - 1]:
            values[i] = values[i - 1]
    return values


class Step:
    """Step i of n, from the level sigma to sigma_next (Python floats)."""

    def __init__(self, steps: Steps, i: int, n: int, sigma: float, sigma_next: float) -> None:
        self.i, self.n, self.sigma, self.sigma_next = i, n, sigma, sigma_next
        self.last = i == n - 1
        self._steps = steps

    def ask(
        self, x: Tensor, sigma: float | None = None, draft: bool = False, borrow: bool = False
    ) -> Asking[Tensor]:
        """Request D(x, sigma), and show the first answer of the step to the callback.

        Used as denoised = yield from step.ask(x).

        Args:
            x: The noisy batch, [B, ...].
            sigma: The level; by default that of the step.
            draft: The answer is not that of the step: it is not shown, and the next one counts as
                the first.
            borrow: Skip the copy of the answer. The next call of the model may then overwrite it,
                so neither keep it nor return it as x.
        """
        steps = self._steps
        sigma = self.sigma if sigma is None else sigma
        first = steps.watch.denoised is None
        denoised = yield from steps.watch.ask(
            x,
            x.new_full((x.shape[0],), sigma),
            steps.extra_args,
            sigma,
            borrow and steps.callback is None,
        )
        if draft:
            steps.watch.denoised = None  # the next answer is the step's
        elif first:
            self.show(x, sigma, denoised)
        return denoised

    def ask_slope(self, x: Tensor, sigma: float | None = None) -> Asking[Tensor]:
        """Request to_d(x, sigma, D(x, sigma)), a new tensor.

        Used as d = yield from step.ask_slope(x). It is the slope of the x that the model saw, in
        the order of the original k-diffusion: where the callback edits x, only x moves; where it
        edits denoised, the slope follows.

        Args:
            x: The noisy batch, [B, ...].
            sigma: The level; by default that of the step.
        """
        sigma = self.sigma if sigma is None else sigma
        if self._steps.callback is None:
            return to_d(x, sigma, (yield from self.ask(x, sigma, borrow=True)))
        before = x.clone()
        return to_d(before, sigma, (yield from self.ask(x, sigma)))

    def ask_slopes(self, x: Tensor) -> Asking[tuple[Tensor, Tensor]]:
        """Request the slope without guidance and the contribution of guidance to it.

        The model must have a method `parts`. The callback receives the guided estimate; where it
        edits it, the slope follows.

        Args:
            x: The noisy batch, [B, ...].
        """
        steps, before = self._steps, x.clone()
        denoised, guidance_part = yield from steps.watch.ask_parts(
            x, x.new_full((x.shape[0],), self.sigma), steps.extra_args, self.sigma
        )
        if steps.callback is not None:
            guided = denoised + guidance_part
            before_edit = guided.clone()
            self.show(x, self.sigma, guided)
            # the same to the last bit where nothing was edited
            denoised = denoised + (guided - before_edit)
        return to_d(before, self.sigma, denoised), guidance_part.mul_(-1 / self.sigma)

    def ask_pair(self, x: Tensor, sigma: float | None = None) -> Asking[tuple[Tensor, Tensor]]:
        """Request the guided and the unconditional estimate.

        The callback receives the first pair of the step.

        Args:
            x: The noisy batch, [B, ...].
            sigma: The level; by default that of the step.
        """
        steps = self._steps
        sigma = self.sigma if sigma is None else sigma
        first = steps.watch.denoised is None
        pair = yield from steps.watch.ask_pair(
            x, x.new_full((x.shape[0],), sigma), steps.extra_args, sigma
        )
        if first:
            self.show(x, sigma, pair[0], uncond_denoised=pair[1])
        return pair

    def ask_map(self, x: Tensor, sigma_next: float) -> Asking[Tensor]:
        """Ask a flow map for M(x, sigma, sigma_next): x = yield from step.ask_map(x, level).

        Of a model that is not a flow map it is a step of Euler's method. The callback is shown the
        mean estimate G in M = q x + (1 - q) G, q = sigma_next / sigma, and M follows its edits.
        """
        steps, share = self._steps, sigma_next / self.sigma
        if not getattr(steps.watch, 'flow_map', False):
            return torch.lerp((yield from self.ask(x)), x, share)
        cond = {**steps.extra_args, 'sigma_next': x.new_full((x.shape[0],), sigma_next)}
        x_next = yield from steps.watch.ask(
            x, x.new_full((x.shape[0],), self.sigma), cond, self.sigma
        )
        if share == 1:
            return x_next
        steps.watch.denoised = mean = (x_next - share * x) / (1 - share)
        self.show(x, self.sigma, mean)
        return torch.lerp(mean, x, share)

    def denoise(
        self, x: Tensor, sigma: float | None = None, draft: bool = False, borrow: bool = False
    ) -> Tensor:
        """Return D(x, sigma) from the model at once.

        A sampler that calls this cannot be run by `requests`; `ask` can.

        Args:
            x: The noisy batch, [B, ...].
            sigma: The level; by default that of the step.
            draft: See `ask`.
            borrow: See `ask`.
        """
        return self._steps.watch.answer(self.ask(x, sigma, draft, borrow))

    def slope(self, x: Tensor, sigma: float | None = None) -> Tensor:
        """Return the slope of `ask_slope` from the model at once.

        Args:
            x: The noisy batch, [B, ...].
            sigma: The level; by default that of the step.
        """
        return self._steps.watch.answer(self.ask_slope(x, sigma))

    def denoise_pair(self, x: Tensor, sigma: float | None = None) -> tuple[Tensor, Tensor]:
        """Return the pair of `ask_pair` from the model at once.

        Args:
            x: The noisy batch, [B, ...].
            sigma: The level; by default that of the step.
        """
        return self._steps.watch.answer(self.ask_pair(x, sigma))

    def noise(self, sigma: float | None = None, sigma_next: float | None = None) -> Tensor:
        """Draw noise of unit variance like x for the way between two levels.

        Args:
            sigma: The first level; by default that of the start of the step.
            sigma_next: The second level; by default that of the end of the step.
        """
        return self._steps.noise_sampler(
            self.sigma if sigma is None else sigma,
            self.sigma_next if sigma_next is None else sigma_next,
        )

    def add_noise(
        self, x: Tensor, scale: float, sigma: float | None = None, sigma_next: float | None = None
    ) -> Tensor:
        """Return x + scale * noise; for scale 0 return x itself and draw nothing.

        Args:
            x: A batch, [B, ...].
            scale: Factor of the noise.
            sigma: See `noise`.
            sigma_next: See `noise`.
        """
        return torch.add(x, self.noise(sigma, sigma_next), alpha=scale) if scale else x

    def churn(
        self, x: Tensor, s_churn: float, s_tmin: float, s_tmax: float, s_noise: float
    ) -> tuple[Tensor, float]:
        """Add noise before the step; return x and its level sigma_hat.

        Noise is drawn in every step if s_churn > 0, also outside [s_tmin, s_tmax], so that the
        limits do not shift later draws.

        Args:
            x: The noisy batch, [B, ...].
            s_churn: Amount of churn; 0 disables it.
            s_tmin: Lowest noise level with churn.
            s_tmax: Highest noise level with churn.
            s_noise: Factor of the noise.

        References:
            Karras et al. (2022), arXiv:2206.00364, algorithm 2, lines 4 to 6.
        """
        if not s_churn > 0:
            return x, self.sigma
        gamma = min(s_churn / self.n, math.sqrt(2) - 1) if s_tmin <= self.sigma <= s_tmax else 0.0
        sigma_hat = self.sigma * (1 + gamma)
        noise = self.noise(self.sigma, sigma_hat)
        if gamma > 0:
            x = torch.add(x, noise, alpha=s_noise * math.sqrt(sigma_hat**2 - self.sigma**2))
        return x, sigma_hat

    def show(self, x: Tensor, sigma_hat: float, denoised: Tensor, **more: Tensor) -> None:
        """Call the callback with the live tensors, which it may edit in place before they are used.

        Args:
            x: The state.
            sigma_hat: The level of x.
            denoised: D.
            **more: Further entries of the dict.
        """
        callback = self._steps.callback
        if callback is not None:
            callback(
                {
                    'x': x,
                    'i': self.i,
                    'sigma': x.new_full((), self.sigma),
                    'sigma_hat': x.new_full((), sigma_hat),
                    'denoised': denoised,
                    **more,
                }
            )


class Steps:
    """A run as the body of a sampler sees it; iterate over it for the steps of its schedule.

    Attributes:
        sigmas: The noise levels, descending Python floats; empty for samplers that choose their own
            between two levels.
        watch: The model.
        extra_args: Its conditions.
        callback: Called in each step, or None.
        disable: Disable the progress bar, as in tqdm (None disables it outside a terminal).
        noise_sampler: The source of noise.
    """

    def __init__(
        self,
        watch: Watch,
        sigmas: Sequence[float],
        extra_args: Mapping[str, Any] | None,
        callback: Callback,
        disable: bool | None,
        noise_sampler: NoiseSampler,
    ) -> None:
        self.watch, self.sigmas, self.extra_args = watch, sigmas, dict(extra_args or {})
        self.callback, self.disable, self.noise_sampler = callback, disable, noise_sampler

    def __iter__(self) -> Iterator[Step]:
        return self.walk()

    @property
    def interval(self) -> tuple[float, float] | None:
        """Return the noise levels (low, high] at which a model with `parts` guides.

        None if it guides at all levels, or at none.
        """
        model: Any = self.watch.model
        if (
            not hasattr(model, 'parts')
            or model.scale == 1
            or tuple(model.interval) == (0.0, math.inf)
        ):
            return None
        low, high = model.interval
        return float(low), float(high)

    def walk(
        self, pairs: Sequence[tuple[float, float]] | None = None, repeats: bool = False
    ) -> Iterator[Step]:
        """Iterate over the steps with a progress bar.

        Args:
            pairs: (sigma, sigma_next) of each step, which need not start where the one before
                ended; by default neighbouring levels of the schedule.
            repeats: Also yield steps between equal levels, which do nothing without noise.
        """
        pairs = list(itertools.pairwise(self.sigmas)) if pairs is None else pairs
        n = len(pairs)
        for i in trange(n, disable=self.disable):
            sigma, sigma_next = pairs[i]
            self.watch.begin(i, sigma_next, n)
            if sigma != sigma_next or (repeats and sigma):
                yield Step(self, i, n, sigma, sigma_next)
