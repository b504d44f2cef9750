"""Running samplers: to the end, or as an iterator over their states."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..core.arguments import check_denoiser, check_number, expands
from ..core.devices import has_float64
from ..core.protocols import DenoiseFn, NoiseSampler
from .loop import Callback, Steps, levels
from .noise import (
    BrownianTreeNoiseSampler,
    default_noise_sampler,
    make_noise_sampler,
)
from .options import check_options
from .record import Record
from .registry import _CALLED, Run, Sampler, find_sampler
from .watch import Request, Watch

R = TypeVar('R')

#: Above this first level x is kept in float64. A step subtracts numbers as large as the level, and
#: float32 loses 1e-7 of them, which is 1e-3 at the 1e4 where flows begin.
WIDE = 1000.0


def drain(run: Run[R], watch: Watch) -> R:
    """Run a generator of states and requests to its end, and return its result.

    Each state is sent back unchanged.

    Args:
        run: The generator.
        watch: The model.
    """
    state = None
    try:
        while True:
            state = _advance(run, state, watch)
    except StopIteration as end:
        return end.value


def _advance(run: Run[Any], state: Tensor | None, watch: Watch) -> Tensor:
    """Send a state to a run and return its next one; the model answers the requests in between."""
    item = run.send(state)
    while isinstance(item, Request):
        item = run.send(item.answer(watch.model))
    return item


@dataclass
class State:
    """The state of a sampler after a step.

    Attributes:
        x: The state at the level sigma, which may be edited.
        i: The index of the step.
        n: The number of steps; None if it depends on the answers of the model.
        sigma: The noise level.
        denoised: The model's answer of the step, as passed to a callback; None for a step without
            one.
        nfe: Number of model calls so far.
    """

    x: Tensor
    i: int
    n: int | None
    sigma: float
    denoised: Tensor | None
    nfe: int


def iterate(
    sampler: str | Sampler | Callable[..., Any],
    model: DenoiseFn,
    x: Tensor,
    *args: Any,
    record: Record | None = None,
    **kwargs: Any,
) -> Iterator[State]:
    """Iterate over the states of a sampler after each of its steps.

    The next step starts from state.x as the caller leaves it. Leaving the loop ends the run;
    keeping the iterator allows to continue later. The last state holds the result, in the precision
    it was computed in.

    Args:
        sampler: A name, a function or an entry.
        model: The denoiser.
        x: Noise at the first level, [B, ...].
        *args: The noise levels and further arguments of sample_<name>(model, x, ...).
        record: Keeps the run as data (`Record`). A run with a record that holds steps continues
            after them, without yielding their states.
        **kwargs: Options, as of sample_<name>.
    """
    run, watch = start_run(find_sampler(sampler), model, x, *args, record=record, **kwargs)
    watch.retain = True  # a state's denoised is looked at after later calls
    edited: Tensor | None = None
    for step in itertools.count():
        try:
            with torch.no_grad():
                x = _advance(run, edited, watch)
        except StopIteration:
            return watch.check()
        state = State(x, watch.i, watch.n, watch.sigma, watch.denoised, watch.nfe)
        if record is None or step >= record.steps:
            if record is not None:
                record.end_step(step, x, state)
            yield state
        edited = state.x if record is None else record.edit_state(step, state.x)


def start_run(
    entry: Sampler,
    *args: Any,
    seed: Any = None,
    generator: Any = None,
    afs: bool | float | None = None,
    record: Record | None = None,
    **kwargs: Any,
) -> tuple[Run[Any], Watch]:
    """Return the generator of a run, and the watch over its model.

    Args:
        entry: The sampler.
        *args: Positional arguments of its function.
        seed: See `SampleFn`.
        generator: See `SampleFn`.
        afs: See `SampleFn`.
        record: Keeps the run as data.
        **kwargs: Keyword arguments of its function.

    Raises:
        TypeError: If the arguments do not fit the signature.
        ValueError: If an argument is out of its range.
    """
    try:
        bound = entry.signature.bind(*args, **kwargs)
    except TypeError as error:
        raise TypeError(
            f'sample_{entry.name} must be called with (model, x, {", ".join(entry.takes)}, ...): '
            f'{error}'
        ) from None
    arguments = bound.arguments
    model, x = list(arguments)[:2]
    start = _check_start(arguments[x])
    if entry.body is not None:  # a function from elsewhere defines its own arguments
        check_denoiser(model, arguments[model])
        check_options(bound.signature.parameters, arguments)
    if record is not None:
        record.begin(start)
        arguments[model] = record.wrap_model(arguments[model])
    watch = Watch(
        arguments[model], start.dtype, getattr(entry.function, '__name__', entry.name), afs, start
    )
    draws = 'noise_sampler' in entry.parameters
    x_0 = start.to(torch.promote_types(start.dtype, torch.float32))
    noise = _given_noise(
        entry, watch.name, x_0, arguments.pop('noise_sampler', None), seed, generator, draws
    )
    if entry.body is None:
        arguments.update(
            {model: watch, x: x_0},
            **({'noise_sampler': noise} if draws and noise is not None else {}),
        )
        return _one_step(entry.function, *bound.args, **bound.kwargs), watch
    extra_args, callback, disable = (arguments.pop(p.name, None) for p in _CALLED)
    sigmas = _choose_levels(entry, arguments.pop('sigmas', None))
    if noise is None:
        noise = _default_noise(entry, x_0, sigmas, arguments)
    if record is not None:
        noise = record.wrap_noise(noise)
    first = (
        sigmas[0]
        if sigmas
        else check_number('sigma_max', arguments.get('sigma_max', 0.0), infinite=True)
    )
    if first > WIDE and x_0.dtype == torch.float32 and has_float64(x_0.device):
        x_0, noise, callback = x_0.double(), _in_float64(noise), _in_float32(callback)
    steps = Steps(watch, sigmas, extra_args, callback, disable, noise)
    options = {name: value for name, value in arguments.items() if name not in (model, x)}
    return entry.body(steps, x_0, **options), watch


def _in_float64(noise_sampler: NoiseSampler) -> NoiseSampler:
    return lambda sigma, sigma_next: noise_sampler(sigma, sigma_next).double()


def _in_float32(callback: Callback) -> Callback:
    """Return a callback that receives float32, and whose edits act on the float64 behind it."""
    if callback is None:
        return None

    def show(info: dict[str, Any]) -> None:
        doubles = {
            key: value
            for key, value in info.items()
            if isinstance(value, Tensor) and value.dtype == torch.float64
        }
        singles = {key: value.float() for key, value in doubles.items()}
        callback({**info, **singles})
        for key, value in doubles.items():
            # exactly 0 where nothing was edited
            value += singles[key].double() - value.float().double()

    return show


def _one_step(function: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Run[Tensor]:
    return (yield function(*args, **kwargs))


def _check_start(x: Any) -> Tensor:
    """Return x; raise a ValueError unless it is a floating-point batch."""
    if not isinstance(x, Tensor) or not x.ndim:
        description = '0-d' if isinstance(x, Tensor) else f'a {type(x).__name__}'
        raise ValueError(f'x must be a batch of noise, a tensor [B, ...]; x is {description}')
    if not x.dtype.is_floating_point:
        raise ValueError(f'x must be noise in float32, float64, float16 or bfloat16; got {x.dtype}')
    return x


def _choose_levels(entry: Sampler, sigmas: Any) -> Sequence[float]:
    """Return the levels of a run: the given ones, or those the sampler brings."""
    if 'sigmas' not in entry.takes:
        return ()
    if entry.levels is None:
        return levels(sigmas)
    sequence = entry.levels if sigmas is None else levels(sigmas)
    if len(sequence) != len(entry.levels) or not all(
        math.isclose(a, b, rel_tol=1e-2) for a, b in zip(sequence, entry.levels)
    ):
        raise ValueError(
            f'sigmas must be None or the levels of the sampler {entry.name}, entry.levels; got '
            f'{[float(f"{sigma:.3g}") for sigma in sequence]}'
        )
    return entry.levels


def _given_noise(
    entry: Sampler, name: str, x: Tensor, noise_sampler: Any, seed: Any, generator: Any, draws: bool
) -> NoiseSampler | None:
    """Return the source of noise given for a run, or None."""
    if noise_sampler is not None:
        if seed is not None:
            raise ValueError(
                f'{name}: seed must be None where a noise_sampler is given; pass one source of '
                'noise'
            )
        return _adapt_noise_sampler(noise_sampler, x)
    if seed is None and generator is None:
        return None
    # make_noise_sampler refuses two sources, and generators of another number than items
    noise = make_noise_sampler(x, entry.noise or 'independent', seed, generator)
    return noise if draws else None


def _default_noise(
    entry: Sampler, x: Tensor, sigmas: Sequence[float], options: Mapping[str, Any]
) -> NoiseSampler:
    """Return independent noise, or a Brownian path for samplers that need one and draw noise."""
    positive = [sigma for sigma in sigmas if sigma > 0]
    eta = options.get('eta', entry.options['eta'].default if 'eta' in entry.options else 1.0)
    if entry.path_by_default and eta and positive:
        return BrownianTreeNoiseSampler(x, min(positive), max(positive))
    return default_noise_sampler(x)


def _adapt_noise_sampler(noise_sampler: NoiseSampler, x: Tensor) -> NoiseSampler:
    """Adapt a noise sampler from outside.

    It receives levels as 0-d tensors and may draw in half precision.
    """
    shape, dtype = x.shape, x.dtype

    def noise(sigma: Any, sigma_next: Any) -> Tensor:
        pair = torch.tensor([float(sigma), float(sigma_next)], dtype=torch.float64)
        value = noise_sampler(pair[0], pair[1])
        if not isinstance(value, Tensor) or not expands(value.shape, shape):
            description = (
                f'shape {tuple(value.shape)}'
                if isinstance(value, Tensor)
                else f'a {type(value).__name__}'
            )
            raise ValueError(
                f'noise_sampler must return a tensor of the shape of x, {tuple(shape)}; got '
                f'{description}'
            )
        return value.to(dtype)

    return noise


def cast_result(result: Any, dtype: torch.dtype | None) -> Any:
    """Return the result of a run, or the first of several, in the dtype of its x.

    Args:
        result: A tensor, or a tuple with a tensor first.
        dtype: The dtype.
    """
    if isinstance(result, tuple):
        return (result[0].to(dtype), *result[1:])
    return result.to(dtype)
