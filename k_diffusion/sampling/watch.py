"""The model as samplers call it: requests, and checks of the answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn, TypeAlias, TypeVar

import torch
from torch import Tensor

from ..core.protocols import DenoiseFn
from ..core.tensors import append_dims

R = TypeVar('R')


class Request(NamedTuple):
    """A call of the model that a sampler requests; it is sent the answer D(x, sigma).

    Attributes:
        x: The noisy batch, [B, ...], in the dtype of the x at the start of the run.
        sigma: The levels, [B].
        level: The level as a Python float; NaN if each item has its own.
        i: The index of the step.
        n: The number of steps; None if it depends on the answers.
        pair: True if the answer is a pair of tensors, the guided and the unconditional estimate.
        cond: The conditions of the run (extra_args).
        live: The sampler's own x, in float32 or float64. The sampler sees an edit in place before
            the answer.
        args: Further positional arguments of the model.
        parts: True if the answer is the conditional estimate and the contribution of guidance, from
            a model with `parts`.
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
        """Return the answer of a model that is called as model(x, sigma, **cond).

        Args:
            model: The denoiser.
        """
        return (model.parts if self.parts else model.pair if self.pair else model)(
            self.x, self.sigma, *self.args, **self.cond
        )


#: A part of a sampler that calls the model: a generator of requests. `yield from` gives its result.
Asking: TypeAlias = Generator[Any, Any, R]


class Watch:
    """A model as samplers call it: in the dtype of the caller, counted, and checked for NaN.

    An answer that is not finite raises a ValueError with sampler, step and sigma: at once on the
    CPU; on other devices when `check` is called at the end of the run, so that no step waits for
    the device. Only then the x of the start, and that of the call if it is still known, are checked
    as causes.

    A model may return all answers in one buffer (CUDA graphs, inference engines). Answers are
    therefore copied, unless the caller borrows one and is done with it before the next call. With
    `retain` set, borrowed answers are copied too.

    Args:
        model: The denoiser.
        dtype: The dtype in which it is called; by default that of x.
        name: The name of the caller in messages.
        afs: The analytical first step (`SampleFn`).
        start: The x at the start of the run, for messages.
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
        self._unchecked: list[tuple[int, Tensor, Tensor]] = []
        self.begin(0, math.nan)

    def answer_first(self, afs: bool | float | None) -> None:
        """Answer the next call by a formula in place of the model.

        Args:
            afs: As in `SampleFn`; None or False for no formula.
        """
        self._afs = _analytic(afs)

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the model, such as inner_model or a method."""
        # Not set yet (a copy is being made), or not to be looked up on the model.
        if name == 'model' or name.startswith('__'):
            raise AttributeError(name)
        return getattr(self.model, name)

    def begin(self, i: int, sigma_next: float, n: int | None = None) -> None:
        """Mark the start of step i of n, which ends at sigma_next.

        Args:
            i: The index of the step.
            sigma_next: The level at its end.
            n: The number of steps, or None.
        """
        self.i, self.sigma, self.n = i, sigma_next, n
        self.denoised: Tensor | None = None

    def __call__(self, x: Tensor, sigma: Tensor, *args: Any, **cond: Any) -> Tensor:
        """Return D(x, sigma, **cond) in memory that later calls of the model do not change."""
        return self.answer(self.ask(x, sigma, cond, args=args))

    def answer(self, asking: Asking[R]) -> R:
        """Run a generator of requests to its end with the model, and return its result.

        Args:
            asking: The generator.
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
            x: The noisy batch, [B, ...].
            sigma: The levels, [B].
            cond: The conditions.
            level: The common level of all items, if there is one.
            borrow: Return the model's own tensor, which its next call may overwrite.
            args: Further positional arguments of the model.
        """
        if self._afs is not None:
            return self._analytic(x, sigma, self._afs)
        answer = yield self._request(x, sigma, cond, level, False, args)
        denoised = self._check_answer(x, sigma, answer, copy=self.retain or not borrow)
        self.nfe += 1
        if self.denoised is None:
            self.denoised = denoised.detach() if denoised.requires_grad else denoised
        return denoised

    def ask_pair(
        self, x: Tensor, sigma: Tensor, cond: Mapping[str, Any], level: float = math.nan
    ) -> Asking[tuple[Tensor, Tensor]]:
        """Request the guided and the unconditional estimate, and return both (one call).

        Args:
            x: The noisy batch, [B, ...].
            sigma: The levels, [B].
            cond: The conditions.
            level: The common level of all items, if there is one.

        Raises:
            ValueError: If the model does not have a method `pair`.
        """
        if not hasattr(self.model, 'pair'):
            raise ValueError(
                f'{self.name} needs the unconditional estimate beside the guided one; pass a '
                'guided '
                'denoiser with a method pair, such as K.guidance.classifier_free(...) returns'
            )
        if self._afs is not None:
            return (self._analytic(x, sigma, self._afs),) * 2
        guided, unconditional = yield self._request(x, sigma, cond, level, True)
        guided = self._check_answer(x, sigma, guided, copy=True)
        self.nfe += 1
        if self.denoised is None:
            self.denoised = guided
        return guided, self._check_answer(x, sigma, unconditional, copy=True)

    def ask_parts(
        self, x: Tensor, sigma: Tensor, cond: Mapping[str, Any], level: float = math.nan
    ) -> Asking[tuple[Tensor, Tensor]]:
        """Request the conditional estimate and the contribution of guidance (one call).

        The model must have a method `parts`.

        Args:
            x: The noisy batch, [B, ...].
            sigma: The levels, [B].
            cond: The conditions.
            level: The common level of all items, if there is one.
        """
        if self._afs is not None:
            return self._analytic(x, sigma, self._afs), torch.zeros_like(x)
        answer = yield self._request(x, sigma, cond, level, False)._replace(parts=True)
        denoised, guidance_part = (self._check_answer(x, sigma, part, copy=True) for part in answer)
        self.nfe += 1
        if self.denoised is None:
            self.denoised = denoised + guidance_part
        return denoised, guidance_part

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
        """Return the answer of the formula to the first call, and remove the formula."""
        self._afs, self.denoised = None, formula(x, append_dims(sigma, x.ndim))
        return self.denoised

    def _check_answer(self, x: Tensor, sigma: Tensor, denoised: Tensor, copy: bool) -> Tensor:
        """Return an answer in the dtype of x; check its shape, and check or queue its values."""
        if not isinstance(denoised, Tensor):
            raise ValueError(
                f'{self.name}: the model must return its estimate of the clean data, one tensor of '
                f'the shape of x; got {type(denoised).__name__}'
            )
        denoised = (
            denoised.clone() if copy and denoised.dtype == x.dtype else _as(denoised, x.dtype)
        )
        if denoised.shape != x.shape:
            raise ValueError(
                f'{self.name}: the model must return its estimate of the clean data in the shape '
                'of '
                f'x, {tuple(x.shape)}; got shape {tuple(denoised.shape)}'
            )
        total = (denoised.detach() if denoised.requires_grad else denoised).sum()
        if not x.is_cpu:
            self._unchecked.append((self.i, sigma, total))
        elif not math.isfinite(total):
            self._refuse(self.i, sigma, x)
        return denoised

    def check(self) -> None:
        """Raise a ValueError for the first unchecked answer that was not finite."""
        unseen, self._unchecked = self._unchecked, []
        if unseen:
            finite = torch.stack([total for _, _, total in unseen]).isfinite().tolist()
            if not all(finite):
                self._refuse(*unseen[finite.index(False)][:2])

    def _refuse(self, i: int, sigma: Tensor, x: Tensor | None = None) -> NoReturn:
        """Raise the error for an answer that is not finite, with its most likely cause."""
        where = f'in step {i}, at sigma {sigma[0].item():g}'
        if self._start is not None and not self._start.isfinite().all():
            raise ValueError(
                f'{self.name}: x at the start must be finite; got NaN or infinity. Pass finite '
                'noise, scaled by the first sigma'
            )
        if x is not None and not x.isfinite().all():
            raise ValueError(
                f'{self.name}: x holds NaN or infinity {where}, before the model is called; '
                'check the output of the noise_sampler and the edits of the callback'
            )
        raise ValueError(
            f'{self.name}: the model returned NaN or infinity {where}; check its weights and '
            'precision, '
            'that x was scaled by the first '
            f'sigma{"" if x is not None else ", and the output of the noise_sampler"}'
        )


def _analytic(afs: bool | float | None) -> Callable[[Tensor, Tensor], Tensor] | None:
    """Return the formula of the analytical first step (`SampleFn`), or None."""
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
            f'afs must be True or the standard deviation of the data, > 0 and finite; got {afs}'
        )
    return lambda x, sigma: x * (std**2 / (std**2 + sigma**2))


def _as(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return x in a dtype; a call of .to() costs as much as arithmetic on a small tensor."""
    return x if x.dtype == dtype else x.to(dtype)
