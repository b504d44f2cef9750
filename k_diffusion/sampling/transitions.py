"""The steps of a stochastic sampler as Gaussians: mean, standard deviation, log-density.

The log-density is that of a given next state, with gradients to the model. It is the policy of
reinforcement learning for diffusion models (Black et al. 2023, arXiv:2305.13301; Fan et al. 2023,
arXiv:2305.16381).

A sampler is run once on vectors in place of tensors. The state before each step, each answer of the
model and each draw of noise is a unit vector of its own. The sampler combines them linearly, which
gives the coefficients of every model call and of every step in float64. The formulas of a sampler
are therefore written only once, in its body.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ..core.devices import has_float64
from ..core.protocols import DenoiseFn
from .loop import Sigmas
from .outside import OutsideModel
from .registry import Sampler, find_sampler
from .running import start_run
from .watch import Request

#: One of the vectors that a run is traced with: the kind ('state', 'answer' or 'noise') and its
#: number.
Key: TypeAlias = tuple[str, int]
#: A tensor of a run as a linear combination of them.
Mix: TypeAlias = dict[Key, float]

#: Coefficients of at most this size are rounding.
ROUNDING = 1e-13


@dataclass(frozen=True)
class Transition:
    """The distribution of the state after a step: a Gaussian with independent dimensions.

    Attributes:
        mean: [B, ...]; in grad mode with the graph of the model's answers.
        std: The standard deviation of every dimension; 0 in a step without noise.
        sigma_next: The noise level after the step.
    """

    mean: Tensor
    std: float
    sigma_next: float

    def sample(self, noise: Tensor) -> Tensor:
        """Return the next state for noise of unit variance [B, ...]."""
        return torch.add(self.mean, noise, alpha=self.std)

    def log_prob(self, x_next: Tensor) -> Tensor:
        """Return the log-density of a next state, summed over dimensions.

        Args:
            x_next: [B, ...].

        Returns:
            [B] in nats, in float64 where the device has it.

        Raises:
            ValueError: If the step draws no noise, or the shape differs from that of the mean.
        """
        n = self.mean[0].numel()
        constant = n * (math.log(2 * math.pi) / 2 + math.log(self.std)) if self.std else 0.0
        return -self._squares(x_next) / 2 - constant

    def divergence(self, other: Transition) -> Tensor:
        """Return the Kullback-Leibler divergence from another model's transition of the same step.

        It is |mean - other mean|^2 / (2 std^2).

        Args:
            other: The transition of the other model.

        Returns:
            [B] in nats.

        Raises:
            ValueError: If the standard deviations differ.
        """
        if self.std != other.std:
            raise ValueError(
                f'other must be a transition of the same step, with std {self.std:g}; '
                f'got {other.std:g}'
            )
        return self._squares(other.mean) / 2

    def _squares(self, x: Tensor) -> Tensor:
        """Return |x - mean|^2 / std^2, [B]."""
        if not self.std:
            raise ValueError(
                'std must be above 0 for the step to have a density; got 0: leave the step out '
                '(the one to sigma 0 draws no noise), or raise eta'
            )
        if x.shape != self.mean.shape:
            raise ValueError(
                f'x_next must have the shape of the mean, {list(self.mean.shape)}; '
                f'got {list(x.shape)}'
            )
        dtype = torch.float64 if has_float64(x.device) else torch.float32
        return ((x.to(dtype) - self.mean.to(dtype)) / self.std).square().flatten(1).sum(1)


@dataclass(frozen=True)
class _Call:
    """A call of the model in a traced run: its x as a combination, and the request."""

    x: Mix
    request: Request


@dataclass(frozen=True)
class _Traced:
    """A step of a traced run: the mean of the next state as a combination, and its noise."""

    mean: Mix
    std: float
    sigma_next: float


class Transitions:
    """The transitions of all steps of a run; `transition` returns one of them.

    The coefficients are computed at construction, by running the sampler on numbers without a
    model.

    Args:
        sampler: A name, a function or a registry entry.
        sigmas: The noise levels, for samplers that take them.
        **options: Further arguments of sample_<name>, for example eta and s_noise.

    Attributes:
        stds: The standard deviation of the noise of each step.
        sigmas_next: The noise level after each step.

    Raises:
        ValueError: If the steps of this sampler are not Gaussian.

    Example:
        steps = K.sampling.Transitions('dpmpp_2m_sde', sigmas, eta=1.)
        states = [x, *(state.x for state in K.sampling.iterate('dpmpp_2m_sde', model, x, sigmas))]
        log_prob = sum(
            steps.transition(model, states, i).log_prob(states[i + 1])
            for i in range(len(steps)) if steps.stds[i]
        )
    """

    def __init__(
        self,
        sampler: str | Sampler | Callable[..., Any],
        sigmas: Sigmas | None = None,
        **options: Any,
    ) -> None:
        entry = find_sampler(sampler)
        _check_sampler(entry, options)
        self.name = entry.name
        self._calls, self._steps = _trace(entry, sigmas, options)
        self.stds = [step.std for step in self._steps]
        self.sigmas_next = [step.sigma_next for step in self._steps]

    def __len__(self) -> int:
        return len(self._steps)

    def transition(
        self,
        model: DenoiseFn,
        states: Sequence[Tensor],
        step: int,
        extra_args: Mapping[str, Any] | None = None,
        answers: dict[int, Any] | None = None,
    ) -> Transition:
        """Return the transition of one step.

        The mean of a one-step sampler takes one model call. That of a multistep sampler also takes
        calls
        at the states before, whose answers get a gradient as well.

        Args:
            model: The denoiser D(x, sigma, **cond).
            states: The state before each step, [B, ...] each, at least those up to this step.
            step: The number of the step, from 0.
            extra_args: Conditions of the model.
            answers: Answers of the model by the number of the call. Those given are reused; new
                ones
                are added. One dict for all steps of a path calls the model once per call of the
                    run.

        Returns:
            The transition.

        Raises:
            ValueError: If there is no such step, or there are too few states.
        """
        if not 0 <= step < len(self):
            raise ValueError(f'step must be from 0 to {len(self) - 1}; got {step}')
        if len(states) <= step:
            raise ValueError(
                f'states must hold those before the steps 0 to {step}, {step + 1} tensors; '
                f'got {len(states)}'
            )
        answers = {} if answers is None else answers
        traced = self._steps[step]
        terms = self._terms(traced.mean, model, states, extra_args or {}, answers)
        return Transition(_combine(terms, states[step]), traced.std, traced.sigma_next)

    def _terms(
        self,
        mix: Mix,
        model: Any,
        states: Sequence[Tensor],
        cond: Mapping[str, Any],
        answers: dict[int, Any],
    ) -> Iterator[tuple[float, Tensor]]:
        """Yield the weighted terms of a combination; call the model for missing answers."""
        for (kind, number), weight in mix.items():
            if kind == 'state':
                yield weight, states[number]
                continue
            call, part = self._calls[number // 2], number % 2
            if number // 2 not in answers:
                like = states[call.request.i]
                x = _combine(self._terms(call.x, model, states, cond, answers), like)
                x = x.to(
                    states[0].dtype
                )  # the first x of the run; its states may have a wider dtype
                sigma = x.new_full((len(x),), call.request.sigma[0].item())
                request = call.request._replace(x=x, sigma=sigma, cond=cond)
                answers[number // 2] = request.answer(model)
            answer = answers[number // 2]
            yield weight, (answer[part] if call.request.pair else answer)


def transition(
    sampler: str | Sampler | Callable[..., Any],
    model: DenoiseFn,
    states: Sequence[Tensor],
    sigmas: Sigmas | None = None,
    step: int | None = None,
    extra_args: Mapping[str, Any] | None = None,
    **options: Any,
) -> Transition:
    """Return the distribution of the state after a step of a stochastic sampler.

    The `log_prob` of the state that came next has a gradient to the model's weights. The sampler
    must
    draw the noise of a step after its last model call in that step, as all one-step samplers do,
    and
    multistep ones given their history. Others (`dpmpp_sde`, `seeds_2`, Restart) add noise before a
    call, so that the state after the step is not Gaussian.

    Args:
        sampler: A name, a function or a registry entry.
        model: The denoiser D(x, sigma, **cond).
        states: The state before each step, [B, ...] each, from the start of the run to this step.
            One-step samplers read only the last one.
        sigmas: The noise levels of the whole run.
        step: The number of the step, from 0; by default that of the last state.
        extra_args: Conditions of the model.
        **options: Further arguments of sample_<name>, for example eta and s_noise.

    Returns:
        Mean, standard deviation and log-density.

    Raises:
        ValueError: If the steps of this sampler are not Gaussian, or there is no such step.

    Example:
        step = K.sampling.transition('euler_ancestral', model, states[:4], sigmas)
        step.log_prob(states[4]).sum().backward()
    """
    steps = Transitions(sampler, sigmas, **options)
    return steps.transition(model, states, len(states) - 1 if step is None else step, extra_args)


def _check_sampler(entry: Sampler, options: Mapping[str, Any]) -> None:
    if entry.body is None:
        raise ValueError(
            'sampler must be a generator of steps, as K.sampling.sampler takes it; got the '
            f'function {entry.name}, whose steps are not known'
        )
    if entry.couples_batch:
        raise ValueError(
            f'sampler must have steps that are known before the run; got {entry.name}, whose steps '
            'follow from the answers of the model'
        )
    odd = options.keys() & {'seed', 'generator', 'noise_sampler', 'callback'}
    if odd:
        raise ValueError(
            f'options must be those of the steps; got {min(odd)}, which says nothing of their '
            'distribution: leave it out'
        )


def _trace(
    entry: Sampler, sigmas: Sigmas | None, options: Mapping[str, Any]
) -> tuple[list[_Call], list[_Traced]]:
    """Return the model calls and the steps of a run as combinations.

    A first run on numbers collects what is combined; a last one checks that the combinations
    reproduce
    everything that the sampler computes.
    """
    numbers = _Trace(entry, sigmas, options)
    numbers.run()
    trace = _Trace(entry, sigmas, options, numbers.keys)
    trace.run()
    for number, mix in zip(numbers.results, trace.results, strict=True):
        parts = [weight * numbers.number_of(key) for key, weight in mix.items()]
        if not math.isclose(
            math.fsum(parts), number[0, 0].item(), rel_tol=1e-9, abs_tol=1e-9 * _size(parts)
        ):
            raise ValueError(
                f'sampler must be linear in the states and the answers of the model; '
                f'{entry.name} is not with these options'
            )
    if not any(step.std for step in trace.steps):
        raise ValueError(
            f'sampler must draw noise; {entry.name} draws none with these options: give eta above '
            '0 where it has one, or a stochastic sampler'
        )
    return trace.calls, trace.steps


def _size(parts: Iterable[float]) -> float:
    return max(map(abs, parts), default=0.0)


class _Trace:
    """A run of a sampler on unit vectors, or, while its keys are unknown, on one number per key.

    Attributes:
        keys: The states, answers and noises, in order.
        calls: The calls of the model.
        steps: The steps.
        results: The x of every call and the state after every step, as combinations; in a run on
            numbers the tensors.
    """

    def __init__(
        self,
        entry: Sampler,
        sigmas: Sigmas | None,
        options: Mapping[str, Any],
        keys: Sequence[Key] = (),
    ) -> None:
        self.entry, self.columns = entry, {key: i for i, key in enumerate(keys)}
        self.keys: list[Key] = []
        self.calls: list[_Call] = []
        self.steps: list[_Traced] = []
        self.results: list[Any] = []
        self.call_count = self.noise_count = 0
        levels: dict[str, Any] = {} if sigmas is None else {'sigmas': sigmas}
        noise: dict[str, Any] = {'noise_sampler': self._draw} if entry.noise else {}
        self.body, self.watch = start_run(
            entry,
            OutsideModel(),
            self._introduce(('state', 0)),
            **levels,
            **options,
            **noise,
            disable=True,
        )

    def run(self) -> None:
        """Run the sampler to its end."""
        value: Any = None
        while True:
            try:
                with torch.no_grad():
                    item = self.body.send(value)
            except StopIteration:
                return
            if isinstance(item, Request):
                value = self._answer(item)
            else:
                self._end_step(item)
                value = self._introduce(('state', len(self.steps)))

    def number_of(self, key: Key) -> float:
        """Return the number that represents a key: between 1 and 2, different for each key.

        Multiples of the golden ratio modulo 1 never coincide and spread evenly.

        Args:
            key: One of `keys`.
        """
        return 1 + math.modf(0.6180339887498949 * (1 + self.keys.index(key)))[0]

    def _introduce(self, key: Key) -> Tensor:
        self.keys.append(key)
        if not self.columns:
            return torch.full([1, 1], self.number_of(key), dtype=torch.float64)
        unit = torch.zeros(1, len(self.columns), dtype=torch.float64)
        unit[0, self.columns[key]] = 1
        return unit

    def _draw(self, *_: Any) -> Tensor:
        self.noise_count += 1
        return self._introduce(('noise', self.noise_count - 1))

    def _answer(self, request: Request) -> Any:
        mix = self._note(request.x)
        if any(kind == 'noise' for kind, _ in mix):
            raise ValueError(
                'sampler must draw the noise of a step after its last call of the model, or the '
                f'state after the step is not Gaussian; {self.entry.name} adds noise before a call '
                f'in step {request.i}'
            )
        self.calls.append(_Call(mix, request))
        answers = [
            self._introduce(('answer', 2 * self.call_count + part))
            for part in range(1 + request.pair)
        ]
        self.call_count += 1
        return tuple(answers) if request.pair else answers[0]

    def _end_step(self, x: Tensor) -> None:
        mix = self._note(x)
        noise = [weight for (kind, _), weight in mix.items() if kind == 'noise']
        if len(noise) > 1:
            raise ValueError(
                f'sampler must draw noise once in a step; {self.entry.name} draws {len(noise)} '
                f'times in step {len(self.steps)}'
            )
        mean = {key: weight for key, weight in mix.items() if key[0] != 'noise'}
        self.steps.append(_Traced(mean, abs(sum(noise)), self.watch.sigma))

    def _note(self, x: Tensor) -> Mix:
        """Record a result and return it as a combination (empty in a run on numbers)."""
        if not self.columns:
            self.results.append(x)
            return {}
        weights = dict(zip(self.columns, x[0].tolist()))
        mix = {key: weight for key, weight in weights.items() if abs(weight) > ROUNDING}
        self.results.append(mix)
        return mix


def _combine(terms: Iterable[tuple[float, Tensor]], like: Tensor) -> Tensor:
    """Return the weighted sum of tensors in the dtype of `like`."""
    total: Tensor | None = None
    for weight, term in terms:
        term = term.to(like.dtype)
        total = weight * term if total is None else torch.add(total, term, alpha=weight)
    return torch.zeros_like(like) if total is None else total
