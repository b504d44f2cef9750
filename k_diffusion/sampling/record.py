"""A run as data: the answers of the model and the noise drawn, to continue in another process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..core.protocols import NoiseSampler

_KEYS = ('start', 'answers', 'noises', 'edits', 'steps')


class Record:
    """The answers and the noise of a run of `iterate`.

    A sampler keeps what its method needs in local variables. Given the same answers of the model
    and the same noise, it reaches the same state without a call of the model. Answers and noise are
    therefore the state of a run, for every sampler. They take the memory of one x for each call of
    the model and each draw.

    Args:
        state: The result of `state_dict` of a run to continue.

    Example:
        record = K.sampling.Record()
        for state in K.sampling.iterate('dpmpp_2m_sde', denoiser, x, sigmas, record=record):
            if state.i == 10:
                break
        torch.save(record.state_dict(), 'run.pt')

        record = K.sampling.Record(torch.load('run.pt'))        # in another process
        for state in K.sampling.iterate('dpmpp_2m_sde', denoiser, x, sigmas, record=record):
            ...                                                 # continues after the last step
    """

    def __init__(self, state: Mapping[str, Any] | None = None) -> None:
        odd = [key for key in _KEYS if key not in state] if isinstance(state, Mapping) else []
        if odd or not (state is None or isinstance(state, Mapping)):
            raise ValueError(
                f'state must be a result of Record.state_dict; got {type(state).__name__}'
                + (f' without {odd[0]!r}' if odd else '')
            )
        values = state or {}
        self.start: Tensor | None = values.get('start')
        self.answers: list[Any] = list(values.get('answers', ()))
        self.noises: list[Tensor] = list(values.get('noises', ()))
        self.edits: dict[int, Tensor] = dict(values.get('edits', {}))
        self.steps: int = values.get('steps', 0)
        self._answer_count = self._noise_count = 0
        self._last: tuple[int, Tensor, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the run so far as tensors and numbers, with edits of x after its last step."""
        if self._last is not None:
            self._note_edit(*self._last)
        return {
            'start': self.start,
            'answers': list(self.answers),
            'noises': list(self.noises),
            'edits': dict(self.edits),
            'steps': self.steps,
        }

    def begin(self, x: Tensor) -> None:
        """Set the start of the run; raise a ValueError if the record holds a run from another x.

        Args:
            x: The start, [B, ...].
        """
        if self.start is None:
            self.start = x.detach().clone()
        elif self.start.shape != x.shape or not torch.equal(self.start.to(x), x):
            raise ValueError('x must be the start of the run in record; got a different tensor')

    def wrap_model(self, model: Any) -> Any:
        """Return the model with its calls recorded; calls made before are answered from the record.

        Args:
            model: The denoiser.
        """
        return _Recorded(model, self)

    def wrap_noise(self, noise_sampler: NoiseSampler) -> NoiseSampler:
        """Return the source of noise with its draws recorded.

        Draws made before are repeated and replaced by the recorded ones.

        Args:
            noise_sampler: The source of noise.
        """

        def noise(sigma: Any, sigma_next: Any) -> Tensor:
            value = noise_sampler(sigma, sigma_next)
            self._noise_count += 1
            if self._noise_count <= len(self.noises):
                return self.noises[self._noise_count - 1].to(value)
            self.noises.append(value.detach().clone())
            return value

        return noise

    def answer(self, ask: Callable[..., Any], x: Tensor, *args: Any, **cond: Any) -> Any:
        """Return the next answer: from the record, or from the model.

        Args:
            ask: The model.
            x: The noisy batch, [B, ...].
            *args: Further positional arguments of the model.
            **cond: Its conditions.
        """
        recorded_answer = self.recall(x.device)
        return self.keep(ask(x, *args, **cond)) if recorded_answer is None else recorded_answer

    def recall(self, device: torch.device) -> Any:
        """Return the next answer of the record; None after the last one.

        Args:
            device: The device to move it to.
        """
        if self._answer_count == len(self.answers):
            return None
        self._answer_count += 1
        return _map(self.answers[self._answer_count - 1], lambda value: value.to(device))

    def keep(self, answer: Any) -> Any:
        """Add an answer to the record, and return it.

        Args:
            answer: A tensor, or a tuple of tensors.
        """
        self.answers.append(_map(answer, lambda value: value.detach().clone()))
        self._answer_count += 1
        return answer

    def end_step(self, step: int, x: Tensor, state: Any) -> None:
        """Mark the end of a step, whose state the caller receives next.

        Args:
            step: Its index.
            x: Its end, [B, ...].
            state: The state for the caller.
        """
        self.steps, self._last = step + 1, (step, x.clone(), state)

    def edit_state(self, step: int, x: Tensor) -> Tensor:
        """Return the x with which the run continues after a step, with its edits.

        Args:
            step: The index of the step.
            x: Its end, [B, ...].
        """
        if self._last is not None and self._last[0] == step:
            self._note_edit(*self._last)
        return self.edits[step].to(x) if step in self.edits else x

    def _note_edit(self, step: int, before: Tensor, state: Any) -> None:
        if not torch.equal(before, state.x):
            self.edits[step] = state.x.detach().clone()


class _Recorded:
    """A model whose calls are recorded."""

    def __init__(self, model: Any, record: Record) -> None:
        self._model, self._record = model, record

    def __call__(self, x: Tensor, *args: Any, **cond: Any) -> Any:
        return self._record.answer(self._model, x, *args, **cond)

    def __getattr__(self, name: str) -> Any:
        if name.startswith('_'):
            raise AttributeError(name)
        value = getattr(self._model, name)
        if name != 'pair':
            return value
        return lambda x, *args, **cond: self._record.answer(value, x, *args, **cond)


def _map(answer: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(answer, (tuple, list)):
        return tuple(_map(value, function) for value in answer)
    return function(answer) if isinstance(answer, Tensor) else answer
