"""Samplers as a list of named things: how one is made from a generator, found, and walked step
by step.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import math
import re
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from inspect import Parameter
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypedDict, TypeVar, cast

import torch
from torch import Tensor

from ..core.arguments import check_denoiser, check_number, expands
from ..core.devices import has_float64
from ..core.protocols import DenoiseFn, NoiseSampler
from ..core.registry import Registry
from .loop import Callback, Request, Steps, Watch, levels
from .noise import (
    BrownianTreeNoiseSampler,
    Generators,
    NoiseKind,
    default_noise_sampler,
    make_noise_sampler,
)
from .options import check_options
from .record import Record

if TYPE_CHECKING:
    from typing_extensions import Unpack

R = TypeVar('R')
#: A sampler that runs: it yields states x and requests, and is sent states and answers.
Run: TypeAlias = Generator[Any, Any, R]

#: The first level above which x is kept in float64. A step subtracts numbers as large as the level,
#: and float32 loses 1e-7 of them, which is 1e-3 at the 1e4 where flows begin.
WIDE = 1000.0

#: Arguments of every sampler besides its own options; `SampleFn` describes them.
SHARED = tuple(
    Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
    for name, annotation in {
        'seed': 'int | Sequence[int] | None',
        'generator': 'Generators | None',
        'afs': 'bool | float | None',
    }.items()
)
_MODEL, _SIGMAS = (
    Parameter(name, Parameter.POSITIONAL_OR_KEYWORD, annotation=annotation)
    for name, annotation in (('model', 'DenoiseFn'), ('sigmas', 'Sigmas'))
)
_CALLED = tuple(
    Parameter(name, Parameter.POSITIONAL_OR_KEYWORD, default=None, annotation=annotation)
    for name, annotation in {
        'extra_args': 'ExtraArgs',
        'callback': 'Callback',
        'disable': 'bool | None',
    }.items()
)
_NOISE = Parameter(
    'noise_sampler', Parameter.POSITIONAL_OR_KEYWORD, default=None, annotation='NoiseSampler | None'
)


class SampleFn(Protocol):
    """A sampler as it is called: sample_<name>(model, x, sigmas, ...) with its own options, and
    with these of every sampler.

    seed: a number per item, or one for the batch; item i of the result then depends on its own seed
    alone, whatever else is in the batch. generator: a torch.Generator, or one per item, that the
    noise is drawn from. Both change the noise of the steps only (x is given), and stand in for
    noise_sampler. A noise_sampler that is given beside a generator wins: programs that pass what a
    signature names draw x from the generator. A seed beside either is refused. afs: the analytical
    first step, which saves the first model call (its answer counts in all else as the model's).
    True: the noise is taken for x / sqrt(1 + sigma^2) (Dockhorn et al. 2022, arXiv:2210.05475); a
    number: x for Gaussian data of mean 0 and that standard deviation s, D = s^2 / (s^2 + sigma^2)
    x.
    """

    entry: Sampler

    def __call__(
        self,
        model: DenoiseFn,
        x: Tensor,
        *args: Any,
        seed: int | Sequence[int] | None = None,
        generator: Generators | None = None,
        afs: bool | float | None = None,
        **options: Any,
    ) -> Any: ...


@dataclass(frozen=True)
class Sampler:
    """A sampler: its function, and what is known of it.

    Attributes:
        name: As in sample_<name>.
        function: What is called, sample_<name>(model, x, sigmas, ...).
        body: The generator that the function runs. It is called with the `Steps` of the run, x and
            the options, yields x at the end of each step and goes on with what it is sent. None for
            a function from elsewhere.
        order: Of its error in the step size; 0 where the error does not fall with the step.
        nfe: Model calls per step.
        stochastic: Whether it draws noise by default.
        noise: What a seed becomes: a 'path', the same for any number of steps, or 'independent'
            noise where levels are revisited. None where it draws none.
        path_by_default: Whether the noise is a Brownian path also without a seed.
        family: The methods it belongs to.
        reference: The paper it is published in; empty for methods of this project.
        needs_pair: Whether it asks for the guided and the unconditional estimate, as the samplers
            of CFG++ do.
        couples_batch: Whether an item depends on the others in its batch.
        levels: The noise levels of a sampler that has its own, else None.
        unasked: How many of their steps ask the model nothing.
        of: The sampler that this name stands for with `fixed` options; empty for one of its own.
        fixed: Those options.
    """

    name: str
    function: Callable[..., Any]
    body: Callable[..., Run[Any]] | None
    order: int
    nfe: int = 1
    stochastic: bool = False
    noise: NoiseKind | None = None
    path_by_default: bool = False
    family: str = ''
    reference: str = ''
    needs_pair: bool = False
    couples_batch: bool = False
    levels: Sequence[float] | None = None
    unasked: int = 0
    of: str = ''
    fixed: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def takes(self) -> tuple[str, ...]:
        """Return the names of its arguments for noise levels: ('sigmas',) or ('sigma_min',
        'sigma_max') with or without 'n'.
        """
        return tuple(
            name for name in ('sigmas', 'sigma_min', 'sigma_max', 'n') if name in self.parameters
        )

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names of what its function takes, without what every sampler takes besides."""
        return tuple(self.signature.parameters)

    @property
    def options(self) -> dict[str, Parameter]:
        """Its own options by name, with their types and defaults."""
        common = {'model', 'x', 'sigmas', 'sigma_min', 'sigma_max', 'n', *(p.name for p in _CALLED)}
        return {name: p for name, p in self.signature.parameters.items() if name not in common}

    @property
    def aliases(self) -> tuple[str, ...]:
        """The other names it is found by."""
        return tuple(alias for alias, name in ALIASES.items() if name == self.name)

    @property
    def published(self) -> bool:
        """Return True for a published method, False for one of this project."""
        return bool(self.reference)

    @property
    def summary(self) -> str:
        """The first line of its docstring."""
        return (self.function.__doc__ or '').strip().partition('\n')[0]

    @functools.cached_property
    def signature(self) -> inspect.Signature:
        """The function's signature without what every sampler takes."""
        signature = inspect.signature(self.function)
        return signature.replace(
            parameters=[p for p in signature.parameters.values() if p not in SHARED]
        )


#: The names that other programs and papers use.
ALIASES = {
    'euler_a': 'euler_ancestral',
    'euler_a_cfg_pp': 'euler_ancestral_cfg_pp',
    'dpm2': 'dpm_2',
    'dpm2_a': 'dpm_2_ancestral',
    'dpm2_ancestral': 'dpm_2_ancestral',
    'dpm_2_a': 'dpm_2_ancestral',
    'dpmpp_2s_a': 'dpmpp_2s_ancestral',
    'dpmpp_2s_a_cfg_pp': 'dpmpp_2s_ancestral_cfg_pp',
    'res_multistep_a': 'res_multistep_ancestral',
    'ddim_cfg_pp': 'euler_cfg_pp',
    'cfg_pp_ud10_ab': 'cfgpp_ud10_ab',
    'dpmpp_sde_gpu': 'dpmpp_sde',
    'dpmpp_2m_sde_gpu': 'dpmpp_2m_sde',
    'dpmpp_3m_sde_gpu': 'dpmpp_3m_sde',
    'dpmpp_2m_sde_heun_gpu': 'dpmpp_2m_sde_heun',
    'unipc': 'uni_pc',
    'unipc_bh1': 'uni_pc',
    'uni_pc_bh1': 'uni_pc',
    'unipc_bh2': 'uni_pc_bh2',
    'dpmpp_3s': 'res_3s',
    'res_2m': 'res_multistep',
    'abnorsett_2m': 'res_multistep',
    'abnorsett_3m': 'res_3m',
    'etdrk2_2s': 'exp_heun_2_x0',
    'res_3s_cox_matthews': 'etdrk3_3s',
    'etdrk4': 'etdrk4_4s',
    'res_4s_cox_matthews': 'etdrk4_4s',
    'res_5s': 'res_5s_hochbruck_ostermann',
    'res_6s': 'res_6s_luan',
    'res_8s': 'res_8s_luan_ostermann',
    'res_10s': 'res_10s_luan',
    'lawson4': 'lawson4_4s',
    'lawson41_gen_4s': 'lawson41_4s',
    'rk4': 'rk4_4s',
    'ralston_3s': 'bogacki_shampine_3s',
    'bogacki_shampine_4s': 'bogacki_shampine_3s',
    'tsi_7s': 'tsitouras_6s',
    'zab': 'lms',
    'xeab': 'exp_ab',
    # The schedulers of diffusers that are the sampler with its own defaults.
    'eulerdiscretescheduler': 'euler',
    'eulerancestraldiscretescheduler': 'euler_ancestral',
    'flowmatcheulerdiscretescheduler': 'euler',
    'edmeulerscheduler': 'euler',
    'heundiscretescheduler': 'heun',
    'flowmatchheundiscretescheduler': 'heun',
    'kdpm2discretescheduler': 'dpm_2',
    'kdpm2ancestraldiscretescheduler': 'dpm_2_ancestral',
    'lmsdiscretescheduler': 'lms',
    'ipndmscheduler': 'ipndm',
    'dpmsolversdescheduler': 'dpmpp_sde',
    'dpmsolvermultistepscheduler': 'dpmpp_2m',
    'edmdpmsolvermultistepscheduler': 'dpmpp_2m',
    'ddimscheduler': 'ddim',
    'ddpmscheduler': 'ddpm',
    'lcmscheduler': 'lcm',
    'tcdscheduler': 'tcd',
}


def plain_name(name: str) -> str:
    """Return a name or a title in the form of names here: 'DPM++ 2M SDE' is 'dpmpp_2m_sde'."""
    words = re.sub(
        r'[^a-z0-9]+', '_', name.lower().replace('cfg++', 'cfg_pp').replace('++', 'pp')
    ).strip('_')
    return words.removeprefix('sample_').removeprefix('k_')


#: Samplers by name.
SAMPLERS: Registry[Sampler] = Registry('sampler', ALIASES, plain_name)


def catalogue() -> tuple[Sampler, ...]:
    """Return the entries of all samplers: name, family, order, options and what else a menu or a
    table shows.

    Returns:
        Entries, sorted by family and name. `Sampler` lists their attributes.
    """
    return tuple(sorted(SAMPLERS.values(), key=lambda entry: (entry.family.lower(), entry.name)))


def drain(run: Run[R], watch: Watch) -> R:
    """Run a generator of states and requests to its end, each state sent back as it came, and
    return its result.
    """
    state = None
    try:
        while True:
            state = _advance(run, state, watch)
    except StopIteration as end:
        return end.value


def _advance(run: Run[Any], state: Tensor | None, watch: Watch) -> Tensor:
    """Send a state to a run and return its next one, what it requests between them answered by
    the model.
    """
    item = run.send(state)
    while isinstance(item, Request):
        item = run.send(item.answer(watch.model))
    return item


class Known(TypedDict, total=False):
    """The attributes of `Sampler` that a definition may give."""

    nfe: int
    stochastic: bool
    noise: NoiseKind | None
    path_by_default: bool
    family: str
    reference: str
    needs_pair: bool
    couples_batch: bool
    levels: Sequence[float] | None
    unasked: int


def sampler(order: int, **known: Unpack[Known]) -> Callable[[Callable[..., Run[Any]]], SampleFn]:
    """Make sample_<name> of a generator of states, and enter it in SAMPLERS; the keywords are the
    attributes of `Sampler`.

    The generator is written as sample_<name>(steps, x, *, options): `steps` is the `Steps` of the
    run. Samplers that choose their own levels take sigma_min, sigma_max and perhaps n after x. The
    function is called with (model, x, sigmas, extra_args, callback, disable, options,
    noise_sampler) and runs under no_grad. The state is float32 at least whatever the dtype of x,
    and float64 where the first level is above WIDE; the model is given, and the result has, the
    dtype of x.
    """

    def make(body: Callable[..., Run[Any]]) -> SampleFn:
        name = body.__name__.removeprefix('sample_')
        function = make_sampler(body, name, order, **known)
        SAMPLERS.register(name)(function.entry)
        return function

    return make


def make_sampler(
    body: Callable[..., Run[Any]],
    name: str,
    order: int,
    of: str = '',
    fixed: Mapping[str, Any] | None = None,
    **known: Unpack[Known],
) -> SampleFn:
    """Make the function that runs a generator of states to its end, with its `entry`; it is
    entered nowhere.
    """

    def sample(*args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            run, watch = start_run(entry, *args, **kwargs)
            result = drain(run, watch)
            watch.check()
        return cast_result(result, watch.dtype)

    functools.update_wrapper(sample, body)
    entry = Sampler(name, sample, body, order, of=of, fixed=dict(fixed or {}), **known)
    signature = inspect.Signature(_public_parameters(body, entry), return_annotation='Tensor')
    vars(sample).update(__signature__=signature, entry=entry)
    return cast(SampleFn, sample)


def preset(
    name: str,
    of: SampleFn,
    summary: str,
    fixed: Mapping[str, Any],
    order: int | None = None,
    **known: Unpack[Known],
) -> SampleFn:
    """Make sample_<name>, another sampler with some of its options fixed, and enter it in SAMPLERS.

    Args:
        name: The new name.
        of: The sampler; it has a body.
        summary: The docstring.
        fixed: The options and their values. The new sampler does not take them.
        order: Its order, by default that of the other.
        **known: Attributes of `Sampler` that differ from the other's.

    Returns:
        The function.

    Raises:
        ValueError: If the sampler has no option of such a name.
    """
    entry, inner = of.entry, of.entry.body
    if inner is None or not fixed.keys() <= entry.options.keys():
        raise ValueError(
            f'fixed must hold options of {entry.name}, {", ".join(entry.options)}; got '
            f'{", ".join(fixed)}'
        )

    @functools.wraps(inner)
    def body(*args: Any, **options: Any) -> Run[Any]:
        return inner(*args, **fixed, **options)

    signature = inspect.signature(inner)
    own = [p for p in signature.parameters.values() if p.name not in fixed]
    vars(body).update(__signature__=signature.replace(parameters=own))
    body.__name__, body.__qualname__, body.__doc__ = f'sample_{name}', f'sample_{name}', summary
    attributes = {key: getattr(entry, key) for key in Known.__annotations__} | known
    function = make_sampler(
        body,
        name,
        entry.order if order is None else order,
        of=entry.name,
        fixed=fixed,
        **cast(Known, attributes),
    )
    SAMPLERS.register(name)(function.entry)
    return function


def _public_parameters(body: Callable[..., Run[Any]], entry: Sampler) -> list[Parameter]:
    """Return (model, x, levels, extra_args, callback, disable, options, noise_sampler after
    s_noise), then SHARED.
    """
    _, x, *own = inspect.signature(body).parameters.values()
    sigmas = _SIGMAS if entry.levels is None else _SIGMAS.replace(default=None)
    ends = [p for p in own if p.kind is p.POSITIONAL_OR_KEYWORD] or [sigmas]
    options = [p.replace(kind=p.POSITIONAL_OR_KEYWORD) for p in own if p.kind is p.KEYWORD_ONLY]
    if entry.noise is not None:
        names = [p.name for p in options]
        options.insert(names.index('s_noise') + 1 if 's_noise' in names else len(names), _NOISE)
    return [_MODEL, x, *ends, *_CALLED, *options, *SHARED]


def find_sampler(sampler: str | Sampler | Callable[..., Any]) -> Sampler:
    """The entry of a sampler given by name (with or without sample_) or as a function; one from
    elsewhere counts as a single step.
    """
    if isinstance(sampler, Sampler):
        return sampler
    if isinstance(sampler, str):
        return SAMPLERS[sampler]
    if not callable(sampler):
        raise ValueError(
            f'sampler is of type {type(sampler).__name__}; give a name or a function, sample_heun '
            'or calibration.sampler()'
        )
    if hasattr(sampler, 'entry'):
        return sampler.entry
    return Sampler(
        getattr(sampler, '__name__', 'sampler'), sampler, None, 1, stochastic=True, noise='path'
    )


@dataclass
class State:
    """Where a sampler stands after step i of n (None where the number follows from the model's
    answers): x at the level sigma, to be looked at and edited; denoised, the step's answer of the
    model that a callback is shown (None where none was asked); nfe, the model calls so far.
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

    The next step begins from state.x as the caller leaves it; leaving the loop ends the run, and
    holding on to the iterator keeps it for later. The last state holds the result, in the precision
    it was computed in.

    Args:
        sampler: A name, a function or an entry.
        model: The denoiser.
        x: Noise at the first level, [B, ...].
        *args: The noise levels and what else sample_<name>(model, x, ...) is called with.
        record: Keeps the run as data (`Record`); one that holds steps already goes on after them,
            without their states.
        **kwargs: Options, as of sample_<name>.
    """
    run, watch = start_run(find_sampler(sampler), model, x, *args, record=record, **kwargs)
    watch.retain = True  # a state's denoised is looked at after later calls
    sent: Tensor | None = None
    for step in itertools.count():
        try:
            with torch.no_grad():
                x = _advance(run, sent, watch)
        except StopIteration:
            return watch.check()
        state = State(x, watch.i, watch.n, watch.sigma, watch.denoised, watch.nfe)
        if record is None or step >= record.steps:
            if record is not None:
                record.end_step(step, x, state)
            yield state
        sent = state.x if record is None else record.sent(step, state.x)


def start_run(
    entry: Sampler,
    *args: Any,
    seed: Any = None,
    generator: Any = None,
    afs: bool | float | None = None,
    record: Record | None = None,
    **kwargs: Any,
) -> tuple[Run[Any], Watch]:
    """Return the generator of a run, and the watch over its model."""
    try:
        bound = entry.signature.bind(*args, **kwargs)
    except TypeError as error:
        raise TypeError(
            f'sample_{entry.name} is called with (model, x, {", ".join(entry.takes)}, ...): {error}'
        ) from None
    given = bound.arguments
    model, x = list(given)[:2]
    start = _check_start(given[x])
    if entry.body is not None:  # a function from elsewhere defines its own arguments
        check_denoiser(model, given[model])
        check_options(bound.signature.parameters, given)
    if record is not None:
        record.begin(start)
        given[model] = record.wrap_model(given[model])
    watch = Watch(
        given[model], start.dtype, getattr(entry.function, '__name__', entry.name), afs, start
    )
    draws = 'noise_sampler' in entry.parameters
    x_0 = start.to(torch.promote_types(start.dtype, torch.float32))
    noise = _noise_of(
        entry, watch.name, x_0, given.pop('noise_sampler', None), seed, generator, draws
    )
    if entry.body is None:
        given.update(
            {model: watch, x: x_0},
            **({'noise_sampler': noise} if draws and noise is not None else {}),
        )
        return _one_step(entry.function, *bound.args, **bound.kwargs), watch
    extra_args, callback, disable = (given.pop(p.name, None) for p in _CALLED)
    sigmas = _levels_of(entry, given.pop('sigmas', None))
    if noise is None:
        noise = _default_noise(entry, x_0, sigmas, given)
    if record is not None:
        noise = record.wrap_noise(noise)
    first = (
        sigmas[0]
        if sigmas
        else check_number('sigma_max', given.get('sigma_max', 0.0), infinite=True)
    )
    if first > WIDE and x_0.dtype == torch.float32 and has_float64(x_0.device):
        x_0, noise, callback = x_0.double(), _in_float64(noise), _in_float32(callback)
    steps = Steps(watch, sigmas, extra_args, callback, disable, noise)
    options = {name: value for name, value in given.items() if name not in (model, x)}
    return entry.body(steps, x_0, **options), watch


def _in_float64(noise_sampler: NoiseSampler) -> NoiseSampler:
    return lambda sigma, sigma_next: noise_sampler(sigma, sigma_next).double()


def _in_float32(callback: Callback) -> Callback:
    """Return a callback that is shown float32, as its decoders expect, and whose edits act on
    the float64 behind it.
    """
    if callback is None:
        return None

    def show(info: dict[str, Any]) -> None:
        doubles = {
            key: value
            for key, value in info.items()
            if isinstance(value, Tensor) and value.dtype == torch.float64
        }
        shown = {key: value.float() for key, value in doubles.items()}
        callback({**info, **shown})
        for key, value in doubles.items():
            value += (
                shown[key].double() - value.float().double()
            )  # exactly 0 where nothing was edited

    return show


def _one_step(function: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Run[Tensor]:
    return (yield function(*args, **kwargs))


def _check_start(x: Any) -> Tensor:
    if not isinstance(x, Tensor) or not x.ndim:
        got = '0-d' if isinstance(x, Tensor) else f'a {type(x).__name__}'
        raise ValueError(
            f'x is {got}; a sampler starts from a batch of noise: give a tensor [B, ...]'
        )
    if not x.dtype.is_floating_point:
        raise ValueError(
            f'x has dtype {x.dtype}; a sampler starts from noise: give it float32, float64, '
            'float16 or bfloat16'
        )
    return x


def _levels_of(entry: Sampler, sigmas: Any) -> Sequence[float]:
    """The levels of a run: those given, or the sampler's own, which those given must be."""
    if 'sigmas' not in entry.takes:
        return ()
    if entry.levels is None:
        return levels(sigmas)
    given = entry.levels if sigmas is None else levels(sigmas)
    if len(given) != len(entry.levels) or not all(
        math.isclose(a, b, rel_tol=1e-2) for a, b in zip(given, entry.levels)
    ):
        raise ValueError(
            f'sigmas must be None or the levels that the sampler {entry.name} has, its '
            'entry.levels; '
            f'got {[float(f"{sigma:.3g}") for sigma in given]}'
        )
    return entry.levels


def _noise_of(
    entry: Sampler, name: str, x: Tensor, noise_sampler: Any, seed: Any, generator: Any, draws: bool
) -> NoiseSampler | None:
    """The source of noise that a run was given, or None."""
    if noise_sampler is not None:
        if seed is not None:
            raise ValueError(
                f'{name} was given a noise_sampler and a seed as well; give one source of noise'
            )
        return _adapted(noise_sampler, x)
    if seed is None and generator is None:
        return None
    noise = make_noise_sampler(
        x, entry.noise or 'independent', seed, generator
    )  # refuses two, or too few
    return noise if draws else None


def _default_noise(
    entry: Sampler, x: Tensor, sigmas: Sequence[float], options: Mapping[str, Any]
) -> NoiseSampler:
    """Independent noise; or a Brownian path for the samplers that want one, if noise is drawn at
    all.
    """
    positive = [sigma for sigma in sigmas if sigma > 0]
    eta = options.get('eta', entry.options['eta'].default if 'eta' in entry.options else 1.0)
    if entry.path_by_default and eta and positive:
        return BrownianTreeNoiseSampler(x, min(positive), max(positive))
    return default_noise_sampler(x)


def _adapted(noise_sampler: NoiseSampler, x: Tensor) -> NoiseSampler:
    """A noise sampler from outside, which knows levels as 0-d tensors and may draw in half
    precision.
    """
    shape, dtype = x.shape, x.dtype

    def noise(sigma: Any, sigma_next: Any) -> Tensor:
        pair = torch.tensor([float(sigma), float(sigma_next)], dtype=torch.float64)
        drawn = noise_sampler(pair[0], pair[1])
        if not isinstance(drawn, Tensor) or not expands(drawn.shape, shape):
            got = (
                f'shape {tuple(drawn.shape)}'
                if isinstance(drawn, Tensor)
                else f'a {type(drawn).__name__}'
            )
            raise ValueError(
                f'noise_sampler must return a tensor of the shape of x, {tuple(shape)}; got {got}'
            )
        return drawn.to(dtype)

    return noise


def cast_result(result: Any, dtype: torch.dtype | None) -> Any:
    """Return the result of a run, or the first of several, in the dtype of the x that it was
    given.
    """
    if isinstance(result, tuple):
        return (result[0].to(dtype), *result[1:])
    return result.to(dtype)
