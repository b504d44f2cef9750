"""Samplers that leave the calls of the model to their caller, as schedulers do."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import torch
from torch import Tensor

from .loop import Sigmas
from .record import Record
from .registry import Run, Sampler, find_sampler
from .running import cast_result, start_run
from .watch import Request, Watch


def requests(
    sampler: str | Sampler | Callable[..., Any],
    x: Tensor,
    sigmas: Sigmas | None = None,
    *,
    record: Record | None = None,
    **kwargs: Any,
) -> Generator[Request, Any, Any]:
    """Run a sampler as a generator that yields each call of the model and is sent the answer.

    It runs the same body as sample_<name> and iterate. Its result, the value of StopIteration, is
    what sample_<name> returns.

    Linear multistep samplers integrate guidance with an interval separately when they call the
    model themselves. Here they take the guided answers as they are.

    Args:
        sampler: A name, a function that `sampler` made, or an entry.
        x: Noise at the first level, [B, ...].
        sigmas: The noise levels, for samplers that take them.
        record: Keeps the answers and the noise (`Record`). A run with a record that holds answers
            does not request these again, so that a run can be continued in another process; the
            generator itself cannot be pickled. Edits of `Request.live` are not recorded.
        **kwargs: Further arguments of sample_<name>: extra_args (returned as `Request.cond`),
            callback, seed and options.

    Returns:
        A generator of `Request`s: x [B, ...], sigma [B], and what the host needs besides.

    Raises:
        ValueError: If the sampler is a function from elsewhere, or calls its model by
            `Step.denoise` and not by `Step.ask`.

    Example:
        run = K.sampling.requests('heun', x, sigmas, seed=0)
        request = next(run)
        try:
            while True:
                request = run.send(denoiser(request.x, request.sigma))
        except StopIteration as end:
            x = end.value
    """
    entry = find_sampler(sampler)
    if entry.body is None:
        raise ValueError(
            'sampler must be a generator of steps, as K.sampling.sampler takes it; got the '
            f'function {entry.name}, which calls its model itself'
        )
    levels_of_run = () if sigmas is None else (sigmas,)
    run, watch = start_run(
        entry, OutsideModel(), x, *levels_of_run, record=record, **{'disable': True, **kwargs}
    )
    return _ask_outside(run, watch, record)


def _ask_outside(
    run: Run[Any], watch: Watch, record: Record | None
) -> Generator[Request, Any, Any]:
    """Yield the requests of a run and return its result in the dtype of the x it was given."""
    answer: Any = None
    while True:
        try:
            with torch.no_grad():
                item = run.send(answer)
        except StopIteration as end:
            watch.check()
            return cast_result(end.value, watch.dtype)
        if not isinstance(item, Request):
            answer = item
        elif record is None:
            answer = yield item
        elif (answer := record.recall(item.x.device)) is None:
            answer = record.keep((yield item))


class OutsideModel:
    """A placeholder for a model that is called outside of the run."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise ValueError(
            'this sampler calls its model by step.denoise, step.slope or step.denoise_pair and '
            'cannot be run by requests; '
            'use yield from step.ask, step.ask_slope or step.ask_pair'
        )

    pair = __call__
