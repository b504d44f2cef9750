"""The one loop: a schedule walked step by step, every call of the model watched."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn, TypeAlias, TypeVar

import torch
from torch import Tensor
from tqdm.auto import trange

from ..core.arguments import show_value
from ..core.protocols import DenoiseFn, NoiseSampler
from ..core.tensors import append_dims
from .coefficients import to_d

Sigmas: TypeAlias = Tensor | Sequence[float]
ExtraArgs: TypeAlias = dict[str, Any] | None
Callback: TypeAlias = Callable[[dict[str, Any]], Any] | None

R = TypeVar('R')


class Request(NamedTuple):
    """A call of the model that a sampler asks for; what it is sent is the answer D(x, sigma).

    Attributes:
        x: Where to ask, [B, ...], in the dtype of the x that the run began with.
        sigma: The levels, [B].
        level: The level as a Python float; NaN where each item has its own.
        i: The step, counted from 0.
        n: The number of steps; None where it follows from the answers.
        pair: Whether the answer is the guided and the unconditional estimate, a pair of tensors.
        cond: The conditions of the run (extra_args).
        live: The sampler's own x, in float32 or float64. An edit in place before the answer is seen
            by the sampler.
        args: Positional arguments of the model besides.
        parts: Whether the answer is the conditional estimate and what guidance adds to it, of a
            model that has `parts`.
    """

    x: Tensor
    sigma: Tensor
    level: float
    i: int
    n: int | None
    pair: bool
    cond: Mapping[str, Any]
    live: Tensor
    args: Sequence[Any] = ()
    parts: bool = False

    def answer(self, model: Any) -> Any:
        """Return the answer of a model that is called as model(x, sigma, **cond)."""
        return (model.parts if self.parts else model.pair if self.pair else model)(
            self.x, self.sigma, *self.args, **self.cond
        )


#: What a part of a sampler is that asks the model: a generator of requests. `yield from` gives its
#: result.
Asking: TypeAlias = Generator[Any, Any, R]

#: The relative difference below which neighbouring levels are one; eight units in the last place of
#: float32.
SAME = 1e-6


def levels(sigmas: Sigmas) -> list[float]:
    """A schedule as Python floats, read from its device once; a ValueError where it is no
    descending list of levels.

    A level within SAME of the one before is made equal to it: a step that short is rounding, and
    multistep methods divide by it.
    """
    if not isinstance(sigmas, Tensor):
        try:
            sigmas = torch.as_tensor(sigmas, dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(
                f'sigmas is {show_value(sigmas)}; a schedule is one list of noise levels, so give '
                'numbers in '
                'descending order, get_sigmas_karras(20, 0.02, 80.) say'
            ) from None
    if sigmas.ndim != 1 or not len(sigmas) or sigmas.is_complex():
        kind = ' of complex numbers' if sigmas.is_complex() else ''
        raise ValueError(
            f'sigmas has shape {tuple(sigmas.shape)}{kind}; a schedule is one list of noise '
            'levels, '
            'so give it shape [n + 1]'
        )
    values = [float(sigma) for sigma in sigmas.tolist()]
    for i, (before, sigma) in enumerate(zip([math.inf, *values], values)):
        if not 0 <= sigma < math.inf:
            raise ValueError(f'sigmas[{i}] is {sigma}; noise levels must be finite and at least 0')
        if sigma > before:
            raise ValueError(
                f'sigmas rise from {before} to {sigma} at index {i}; '
                f'samplers go from high noise to low, so sort them in descending order'
            )
    for i in range(1, len(values)):
        if values[i - 1] - values[i] <= SAME * values[i - 1]:
            values[i] = values[i - 1]
    return values


class Watch:
    """A model as samplers call it: in the caller's dtype, its calls counted, its answers looked at.

    An answer that is not finite raises a ValueError with sampler, step and sigma: at once on the
    CPU; elsewhere when `check` is called at the end of the run, so that no step waits for the
    device. Only then is it asked whether the x the run began with, or that of the call where it is
    known still, was finite.

    A model may answer every call in one buffer (CUDA graphs, inference engines). So an answer is
    copied, but where the caller borrows it, being done with it before the next call. With `retain`
    set, what is borrowed is copied too.
    """

    def __init__(
        self,
        model: DenoiseFn,
        dtype: torch.dtype | None = None,
        name: str = 'sampler',
        afs: bool | float | None = None,
        start: Tensor | None = None,
    ) -> None:
        self.model, self.dtype, self.name, self._start = model, dtype, name, start
        self.nfe = 0
        self.retain = False
        self.answer_first(afs)
        self._unseen: list[tuple[int, Tensor, Tensor]] = []
        self.begin(0, math.nan)

    def answer_first(self, afs: bool | float | None) -> None:
        """Have a formula answer the next call in place of the model; None and False: the model
        does.
        """
        self._afs = _analytic(afs)

    def __getattr__(self, name: str) -> Any:
        """What else the model has (inner_model, a method that a sampler from elsewhere calls)."""
        if name == 'model' or name.startswith(
            '__'
        ):  # not there yet (a copy being made), or not the model's to answer
            raise AttributeError(name)
        return getattr(self.model, name)

    def begin(self, i: int, sigma_next: float, n: int | None = None) -> None:
        """Notes that step i (of n) begins, which will end at sigma_next."""
        self.i, self.sigma, self.n = i, sigma_next, n
        self.denoised: Tensor | None = None

    def __call__(self, x: Tensor, sigma: Tensor, *args: Any, **cond: Any) -> Tensor:
        """D(x, sigma, **cond), in memory that later calls of the model leave alone."""
        return self.answer(self.ask(x, sigma, cond, args=args))

    def answer(self, asking: Asking[R]) -> R:
        """Run a generator of requests to its end, each answered by the model, and return its
        result.
        """
        try:
            request = next(asking)
            while True:
                request = asking.send(request.answer(self.model))
        except StopIteration as end:
            return end.value

    def ask(
        self,
        x: Tensor,
        sigma: Tensor,
        cond: Mapping[str, Any],
        level: float = math.nan,
        borrow: bool = False,
        args: Sequence[Any] = (),
    ) -> Asking[Tensor]:
        """Request D(x, sigma, **cond) and return it.

        Args:
            x: Where to ask, [B, ...].
            sigma: The levels, [B].
            cond: The conditions.
            level: The level where all items have one.
            borrow: Return the model's own tensor, which its next call may overwrite.
            args: Positional arguments besides.
        """
        if self._afs is not None:
            return self._analytic(x, sigma, self._afs)
        answer = yield self._request(x, sigma, cond, level, False, args)
        denoised = self._seen(x, sigma, answer, copy=self.retain or not borrow)
        self.nfe += 1
        if self.denoised is None:
            self.denoised = denoised.detach() if denoised.requires_grad else denoised
        return denoised

    def ask_pair(
        self, x: Tensor, sigma: Tensor, cond: Mapping[str, Any], level: float = math.nan
    ) -> Asking[tuple[Tensor, Tensor]]:
        """Request the guided and the unconditional estimate, which a model with `pair` has, and
        return both (one call).
        """
        if not hasattr(self.model, 'pair'):
            raise ValueError(
                f'{self.name} needs the unconditional estimate beside the guided one, and this '
                'model shows one only; '
                'give it a guided denoiser, made by K.guidance.classifier_free(...) say'
            )
        if self._afs is not None:
            return (self._analytic(x, sigma, self._afs),) * 2
        guided, unconditional = yield self._request(x, sigma, cond, level, True)
        guided = self._seen(x, sigma, guided, copy=True)
        self.nfe += 1
        if self.denoised is None:
            self.denoised = guided
        return guided, self._seen(x, sigma, unconditional, copy=True)

    def ask_parts(
        self, x: Tensor, sigma: Tensor, cond: Mapping[str, Any], level: float = math.nan
    ) -> Asking[tuple[Tensor, Tensor]]:
        """Request the conditional estimate and what guidance adds to it, which a model with
        `parts` has, and return both (one call).
        """
        if self._afs is not None:
            return self._analytic(x, sigma, self._afs), torch.zeros_like(x)
        answer = yield self._request(x, sigma, cond, level, False)._replace(parts=True)
        denoised, added = (self._seen(x, sigma, part, copy=True) for part in answer)
        self.nfe += 1
        if self.denoised is None:
            self.denoised = denoised + added
        return denoised, added

    def _request(
        self,
        x: Tensor,
        sigma: Tensor,
        cond: Mapping[str, Any],
        level: float,
        pair: bool,
        args: Sequence[Any] = (),
    ) -> Request:
        dtype = self.dtype or x.dtype
        return Request(_as(x, dtype), _as(sigma, dtype), level, self.i, self.n, pair, cond, x, args)

    def _analytic(
        self, x: Tensor, sigma: Tensor, formula: Callable[[Tensor, Tensor], Tensor]
    ) -> Tensor:
        """The formula's answer to the first call, and to no other."""
        self._afs, self.denoised = None, formula(x, append_dims(sigma, x.ndim))
        return self.denoised

    def _seen(self, x: Tensor, sigma: Tensor, denoised: Tensor, copy: bool) -> Tensor:
        """An answer in x's dtype, its shape checked, its values looked at or noted for later."""
        if not isinstance(denoised, Tensor):
            raise ValueError(
                f'{self.name}: the model answered with a {type(denoised).__name__}; '
                'a denoiser gives its estimate of the clean data, one tensor shaped like x'
            )
        denoised = (
            denoised.clone() if copy and denoised.dtype == x.dtype else _as(denoised, x.dtype)
        )
        if denoised.shape != x.shape:
            raise ValueError(
                f'{self.name}: the model answered with shape {tuple(denoised.shape)} to x of '
                f'shape {tuple(x.shape)}; '
                'a denoiser gives its estimate of the clean data, shaped like x'
            )
        total = (denoised.detach() if denoised.requires_grad else denoised).sum()
        if not x.is_cpu:
            self._unseen.append((self.i, sigma, total))
        elif not math.isfinite(total):
            self._refuse(self.i, sigma, x)
        return denoised

    def check(self) -> None:
        """Raises at the first of the answers not looked at yet that was not finite."""
        unseen, self._unseen = self._unseen, []
        if unseen:
            finite = torch.stack([total for _, _, total in unseen]).isfinite().tolist()
            if not all(finite):
                self._refuse(*unseen[finite.index(False)][:2])

    def _refuse(self, i: int, sigma: Tensor, x: Tensor | None = None) -> NoReturn:
        where = f'in step {i}, at sigma {sigma[0].item():g}'
        if self._start is not None and not self._start.isfinite().all():
            raise ValueError(
                f'{self.name}: the x that was given holds NaN or infinity; give finite noise, '
                'scaled by the first sigma'
            )
        if x is not None and not x.isfinite().all():
            raise ValueError(
                f'{self.name}: x holds NaN or infinity {where}, before the model is called; '
                'check what the noise_sampler draws and what a callback does to x'
            )
        raise ValueError(
            f'{self.name}: the model returned NaN or infinity {where}; check its weights and '
            'precision, '
            'that x was scaled by the first '
            f'sigma{"" if x is not None else ", and what the noise_sampler draws"}'
        )


def _analytic(afs: bool | float | None) -> Callable[[Tensor, Tensor], Tensor] | None:
    """The denoiser that answers the first call in place of the model (`SampleFn` says which), or
    None.
    """
    if afs is None or afs is False:
        return None
    if afs is True:
        return lambda x, sigma: x - x * (sigma / (1 + sigma**2).sqrt())
    try:
        std = float(afs)
    except (TypeError, ValueError):
        std = math.nan
    if not 0 < std < math.inf:
        raise ValueError(
            f'afs={afs} is no standard deviation of data; give True, or a finite number above 0'
        )
    return lambda x, sigma: x * (std**2 / (std**2 + sigma**2))


def _as(x: Tensor, dtype: torch.dtype) -> Tensor:
    return (
        x if x.dtype == dtype else x.to(dtype)
    )  # .to() alone costs as much as a small tensor's arithmetic


class Step:
    """Step i of n, from the level sigma to sigma_next (Python floats)."""

    def __init__(self, steps: Steps, i: int, n: int, sigma: float, sigma_next: float) -> None:
        self.i, self.n, self.sigma, self.sigma_next = i, n, sigma, sigma_next
        self.last = i == n - 1
        self._steps = steps

    def ask(
        self, x: Tensor, sigma: float | None = None, draft: bool = False, borrow: bool = False
    ) -> Asking[Tensor]:
        """Ask for D(x, sigma), and show the first answer of the step to the callback: denoised =
        yield from step.ask(x).

        Args:
            x: Where to ask, [B, ...].
            sigma: The level; by default that of the step.
            draft: The answer is not the step's: it is not shown, and the next one counts as the
                first.
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
        """Ask for to_d(x, sigma, D(x, sigma)), a new tensor: d = yield from step.ask_slope(x).

        It is the slope of the x that the model saw, in the order of the original k-diffusion: where
        the callback edits x, x alone moves. Where it edits denoised, the slope follows.
        """
        sigma = self.sigma if sigma is None else sigma
        if self._steps.callback is None:
            return to_d(x, sigma, (yield from self.ask(x, sigma, borrow=True)))
        before = x.clone()
        return to_d(before, sigma, (yield from self.ask(x, sigma)))

    def ask_slopes(self, x: Tensor) -> Asking[tuple[Tensor, Tensor]]:
        """Ask for the slope without guidance, and for what guidance adds to it, of a model that has
        `parts`.

        The callback is shown the guided estimate; where it edits it, the slope follows.
        """
        steps, before = self._steps, x.clone()
        denoised, added = yield from steps.watch.ask_parts(
            x, x.new_full((x.shape[0],), self.sigma), steps.extra_args, self.sigma
        )
        if steps.callback is not None:
            guided = denoised + added
            shown = guided.clone()
            self.show(x, self.sigma, guided)
            denoised = denoised + (
                guided - shown
            )  # the same to the last bit where nothing was edited
        return to_d(before, self.sigma, denoised), added.mul_(-1 / self.sigma)

    def ask_pair(self, x: Tensor, sigma: float | None = None) -> Asking[tuple[Tensor, Tensor]]:
        """Ask for the guided and the unconditional estimate at a level, by default that of the
        step.

        The first pair of the step is shown to the callback.
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

    def denoise(
        self, x: Tensor, sigma: float | None = None, draft: bool = False, borrow: bool = False
    ) -> Tensor:
        """Return what `ask` asks for, from the model at once; a sampler that calls it cannot be
        run by `requests`.
        """
        return self._steps.watch.answer(self.ask(x, sigma, draft, borrow))

    def slope(self, x: Tensor, sigma: float | None = None) -> Tensor:
        """Return what `ask_slope` asks for, as `denoise` does."""
        return self._steps.watch.answer(self.ask_slope(x, sigma))

    def denoise_pair(self, x: Tensor, sigma: float | None = None) -> tuple[Tensor, Tensor]:
        """Return what `ask_pair` asks for, as `denoise` does."""
        return self._steps.watch.answer(self.ask_pair(x, sigma))

    def noise(self, sigma: float | None = None, sigma_next: float | None = None) -> Tensor:
        """Draw noise of unit variance like x, for the way between two levels; by default those
        of the step.
        """
        return self._steps.noise_sampler(
            self.sigma if sigma is None else sigma,
            self.sigma_next if sigma_next is None else sigma_next,
        )

    def add_noise(
        self, x: Tensor, scale: float, sigma: float | None = None, sigma_next: float | None = None
    ) -> Tensor:
        """Return x + scale `noise`; x itself, and nothing is drawn, where the scale is 0."""
        return torch.add(x, self.noise(sigma, sigma_next), alpha=scale) if scale else x

    def churn(
        self, x: Tensor, s_churn: float, s_tmin: float, s_tmax: float, s_noise: float
    ) -> tuple[Tensor, float]:
        """Add noise before the step: return x and the level sigma_hat it is at (Karras et al.

        2022, algorithm 2, lines 4 to 6).

        Draws in every step if s_churn > 0, also outside [s_tmin, s_tmax], so that the limits do not
        shift the later draws.
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
        """Call the callback. x and denoised are the live tensors, which it may edit in place
        before they are used.
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
    """A run as the body of a sampler sees it: iterate over it for the steps of its schedule.

    Attributes:
        sigmas: The noise levels, descending Python floats; empty for samplers that choose their own
            between two levels.
        watch: The model.
        extra_args: Its conditions.
        callback: What is shown each step, or None.
        disable: Whether the progress bar is off, as in tqdm (None: off a terminal).
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
        """The noise levels (low, high] at which a model guides that has `parts`; None where it
        guides at all of them, or at none.
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
        """Iterate over the steps, under a progress bar.

        Args:
            pairs: (sigma, sigma_next) of each step, which need not begin where the one before
                ended; by default neighbouring levels of the schedule.
            repeats: Keep the steps between equal levels, which do nothing without noise and are
                passed over else.
        """
        pairs = list(itertools.pairwise(self.sigmas)) if pairs is None else pairs
        n = len(pairs)
        for i in trange(n, disable=self.disable):
            sigma, sigma_next = pairs[i]
            self.watch.begin(i, sigma_next, n)
            if sigma != sigma_next or (repeats and sigma):
                yield Step(self, i, n, sigma, sigma_next)
