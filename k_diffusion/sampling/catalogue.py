"""Samplers as a list of named things: how one is made from a generator, found, and walked step by step."""
from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ParamSpec, Protocol, TypeAlias, TypeVar, cast

import torch
from torch import Tensor

from ..core.arguments import check_denoiser, expands
from ..core.protocols import DenoiseFn, NoiseSampler
from ..core.registry import Registry
from .loop import Watch
from .noise import Generators, NoiseKind, make_noise_sampler
from .options import check_options

P = ParamSpec('P')
R = TypeVar('R')
Run: TypeAlias = Generator[Tensor, Any, R]

#: What every sampler takes besides its own options; `SampleFn` says what they mean.
SHARED = tuple(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation) for name, annotation in
               {'seed': 'int | Sequence[int] | None', 'generator': 'Generators | None', 'afs': 'bool | float | None'}.items())


class SampleFn(Protocol):
    """A sampler as it is called: sample_<name>(model, x, sigmas, ...) with its own options, and with these of every sampler.

    seed: a number per item, or one for the batch; item i of the result then depends on its own seed alone, whatever else is in
    the batch. generator: a torch.Generator, or one per item, that the noise is drawn from. Both change the noise of the steps
    only (x is given), and stand in for noise_sampler. A noise_sampler that is given beside a generator wins: programs that
    pass what a signature names draw x from the generator. A seed beside either is refused.
    afs: the analytical first step, which saves the first model call (its answer counts in all else as the model's). True: the
    noise is taken for x / sqrt(1 + sigma^2) (Dockhorn et al. 2022, arXiv:2210.05475); a number: x for Gaussian
    data of mean 0 and that standard deviation s, D = s^2 / (s^2 + sigma^2) x.
    """
    entry: Sampler

    def __call__(self, model: DenoiseFn, x: Tensor, *args: Any, seed: int | Sequence[int] | None = None,
                 generator: Generators | None = None, afs: bool | float | None = None, **options: Any) -> Any: ...


@dataclass(frozen=True)
class Sampler:
    """A sampler: its plain function, and what it promises.

    order: of its error in the step size. nfe: model calls per step. stochastic: whether it draws noise by default.
    body: the generator that the function runs; it yields x at the end of each step and goes on with what it is sent.
    noise: what a seed becomes: a 'path', the same for any number of steps, or 'independent' noise where levels are revisited.
    """
    name: str
    function: Callable[..., Any]
    body: Callable[..., Run[Any]]
    order: int
    nfe: int
    stochastic: bool
    noise: NoiseKind = 'path'

    @property
    def takes(self) -> tuple[str, ...]:
        """What it wants to know of the noise levels: ('sigmas',) or ('sigma_min', 'sigma_max') with or without 'n'."""
        return tuple(name for name in ('sigmas', 'sigma_min', 'sigma_max', 'n') if name in self.options)

    @property
    def options(self) -> tuple[str, ...]:
        """The names of its own parameters."""
        return tuple(self.signature.parameters)

    @functools.cached_property
    def signature(self) -> inspect.Signature:
        """What the body takes: the function's signature without what every sampler takes."""
        signature = inspect.signature(self.function)
        return signature.replace(parameters=[p for p in signature.parameters.values() if p not in SHARED])


SAMPLERS: Registry[Sampler] = Registry('sampler')


def drain(run: Run[R]) -> R:
    """Runs a generator of states to its end, each state sent back as it came, and gives what it returns."""
    state = None
    try:
        while True:
            state = run.send(state)
    except StopIteration as end:
        return end.value


def drained(body: Callable[P, Run[R]]) -> Callable[P, R]:
    """A generator of states as the plain function that runs it to its end."""
    @functools.wraps(body)
    def function(*args: P.args, **kwargs: P.kwargs) -> R:
        return drain(body(*args, **kwargs))
    return function


def sampler(order: int, nfe: int = 1, stochastic: bool = False, noise: NoiseKind = 'path',
            ) -> Callable[[Callable[..., Run[Any]]], SampleFn]:
    """Makes sample_<name>, written as a generator of states, a plain function under no_grad and enters it in SAMPLERS.

    The state is float32 at least whatever the dtype of x; the model is given, and the result has, the dtype of x.
    """
    def make(body: Callable[..., Run[Any]]) -> SampleFn:
        name = body.__name__.removeprefix('sample_')
        function = plain_function(body, name, order, nfe, stochastic, noise)
        SAMPLERS.register(name)(function.entry)
        return function
    return make


def plain_function(body: Callable[..., Run[Any]], name: str, order: int, nfe: int = 1, stochastic: bool = False,
                   noise: NoiseKind = 'path') -> SampleFn:
    """The function that runs a generator of states to its end, with its `entry`; entered nowhere."""
    def sample(*args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            run, watch = _start(entry, *args, **kwargs)
            result = drain(run)
            watch.check()
        return _cast(result, watch.dtype)

    functools.update_wrapper(sample, body)
    entry = Sampler(name, sample, body, order, nfe, stochastic, noise)
    signature = inspect.signature(body)
    parameters = [*signature.parameters.values(), *SHARED]
    vars(sample).update(__signature__=signature.replace(parameters=parameters, return_annotation='Tensor'), entry=entry)
    return cast(SampleFn, sample)


def find_sampler(sampler: str | Sampler | Callable[..., Any]) -> Sampler:
    """The entry of a sampler given by name (with or without sample_) or as a function; one from elsewhere counts as a single step."""
    if isinstance(sampler, Sampler):
        return sampler
    if isinstance(sampler, str):
        return SAMPLERS[sampler.removeprefix('sample_')]
    if not callable(sampler):
        raise ValueError(f'sampler is of type {type(sampler).__name__}; give a name or a function, sample_heun or calibration.sampler()')
    if hasattr(sampler, 'entry'):
        return sampler.entry
    return Sampler(getattr(sampler, '__name__', 'sampler'), sampler, functools.partial(_one_step, sampler), 1, 1, True)


def _one_step(function: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Run[Tensor]:
    return (yield function(*args, **kwargs))


@dataclass
class State:
    """Where a sampler stands after step i of n (None where the number follows from the model's answers): x at the level sigma,
    to be looked at and edited; denoised, the step's answer of the model that a callback is shown (None where none was asked); nfe,
    the model calls so far."""
    x: Tensor
    i: int
    n: int | None
    sigma: float
    denoised: Tensor | None
    nfe: int


def iterate(sampler: str | Sampler | Callable[..., Any], model: DenoiseFn, x: Tensor, *args: Any, **kwargs: Any) -> Iterator[State]:
    """The states of a sampler after each of its steps, called as sample_<name>(model, x, ...) is.

    The next step begins from state.x as the caller leaves it; leaving the loop ends the run, and holding on to the iterator
    keeps it for later. The last state holds the result, in the precision it was computed in.
    """
    run, watch = _start(find_sampler(sampler), model, x, *args, **kwargs)
    watch.retain = True     # a state's denoised is looked at after later calls
    state = None
    while True:
        try:
            with torch.no_grad():
                x = run.send(None if state is None else state.x)
        except StopIteration:
            return watch.check()
        state = State(x, watch.i, watch.n, watch.sigma, watch.denoised, watch.nfe)
        yield state


def _start(entry: Sampler, *args: Any, seed: Any = None, generator: Any = None, afs: bool | float | None = None,
           **kwargs: Any) -> tuple[Run[Any], Watch]:
    """The generator of a run, and the watch over its model."""
    try:
        bound = entry.signature.bind(*args, **kwargs)
    except TypeError as error:
        raise TypeError(f'sample_{entry.name} is called with (model, x, {", ".join(entry.takes)}, ...): {error}') from None
    given = bound.arguments
    model, x = list(given)[:2]
    if not isinstance(given[x], Tensor) or not given[x].ndim:
        got = '0-d' if isinstance(given[x], Tensor) else f'a {type(given[x]).__name__}'
        raise ValueError(f'x is {got}; a sampler starts from a batch of noise: give a tensor [B, ...]')
    dtype = given[x].dtype
    if not dtype.is_floating_point:
        raise ValueError(f'x has dtype {dtype}; a sampler starts from noise: give it float32, float64, float16 or bfloat16')
    if hasattr(entry.function, 'entry'):     # a function from elsewhere defines its own arguments
        check_denoiser(model, given[model])
        check_options(bound.signature.parameters, given)
    watch = Watch(given[model], dtype, getattr(entry.function, '__name__', entry.name), afs, given[x])
    given.update({model: watch, x: given[x].to(torch.promote_types(dtype, torch.float32))})
    if given.get('noise_sampler') is not None:
        if seed is not None:
            raise ValueError(f'{watch.name} was given a noise_sampler and a seed as well; give one source of noise')
        given['noise_sampler'] = _adapted(given['noise_sampler'], given[x])
    elif seed is not None or generator is not None:
        draws = 'noise_sampler' in entry.options
        noise = make_noise_sampler(given[x], entry.noise if draws else 'independent', seed, generator)  # refuses two, or too few
        if draws:
            given['noise_sampler'] = noise
    return entry.body(*bound.args, **bound.kwargs), watch


def _adapted(noise_sampler: NoiseSampler, x: Tensor) -> NoiseSampler:
    """A noise sampler from outside, which knows levels as 0-d tensors and may draw in half precision."""
    shape, dtype = x.shape, x.dtype

    def noise(sigma: Any, sigma_next: Any) -> Tensor:
        pair = torch.tensor([float(sigma), float(sigma_next)], dtype=torch.float64)
        drawn = noise_sampler(pair[0], pair[1])
        if not isinstance(drawn, Tensor) or not expands(drawn.shape, shape):
            got = f'shape {tuple(drawn.shape)}' if isinstance(drawn, Tensor) else f'a {type(drawn).__name__}'
            raise ValueError(f'noise_sampler must return a tensor of the shape of x, {tuple(shape)}; got {got}')
        return drawn.to(dtype)
    return noise


def _cast(result: Any, dtype: torch.dtype | None) -> Any:
    if isinstance(result, tuple):
        return (result[0].to(dtype), *result[1:])
    return result.to(dtype)
