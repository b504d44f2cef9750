"""Making samplers from generators, and presets of samplers."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter
from typing import TYPE_CHECKING, Any, TypedDict, cast

import torch

from .noise import (
    NoiseKind,
)
from .registry import _CALLED, _MODEL, _SIGMAS, SAMPLERS, SHARED, Run, SampleFn, Sampler
from .running import cast_result, drain, start_run

if TYPE_CHECKING:
    from typing_extensions import Unpack

_NOISE = Parameter(
    'noise_sampler', Parameter.POSITIONAL_OR_KEYWORD, default=None, annotation='NoiseSampler | None'
)


class SamplerFacts(TypedDict, total=False):
    """The attributes of `Sampler` that a definition may set."""

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


def sampler(
    order: int, **facts: Unpack[SamplerFacts]
) -> Callable[[Callable[..., Run[Any]]], SampleFn]:
    """Make sample_<name> from a generator of states and register it in SAMPLERS.

    The generator is written as sample_<name>(steps, x, *, options), with `steps` the `Steps` of the
    run. Samplers that choose their own levels take sigma_min, sigma_max and possibly n after x. The
    function is called with (model, x, sigmas, extra_args, callback, disable, options,
    noise_sampler) and runs under no_grad. The state is at least float32 for any dtype of x, and
    float64 if the first level is above WIDE. The model receives, and the result has, the dtype of
    x.

    Args:
        order: Order of the error in the step size.
        **facts: Attributes of `Sampler`.

    Returns:
        A decorator.
    """

    def make(body: Callable[..., Run[Any]]) -> SampleFn:
        name = body.__name__.removeprefix('sample_')
        function = make_sampler(body, name, order, **facts)
        SAMPLERS.register(name)(function.entry)
        return function

    return make


def make_sampler(
    body: Callable[..., Run[Any]],
    name: str,
    order: int,
    of: str = '',
    fixed: Mapping[str, Any] | None = None,
    **facts: Unpack[SamplerFacts],
) -> SampleFn:
    """Make the function that runs a generator of states to its end, without registering it.

    Args:
        body: The generator.
        name: The <name> of sample_<name>.
        order: Order of the error in the step size.
        of: The sampler of which it is a preset.
        fixed: The fixed options of the preset.
        **facts: Attributes of `Sampler`.

    Returns:
        The function, with its entry as the attribute `entry`.
    """

    def sample(*args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            run, watch = start_run(entry, *args, **kwargs)
            result = drain(run, watch)
            watch.check()
        return cast_result(result, watch.dtype)

    functools.update_wrapper(sample, body)
    entry = Sampler(name, sample, body, order, of=of, fixed=dict(fixed or {}), **facts)
    signature = inspect.Signature(_public_parameters(body, entry), return_annotation='Tensor')
    vars(sample).update(__signature__=signature, entry=entry)
    return cast(SampleFn, sample)


def preset(
    name: str,
    of: SampleFn,
    summary: str,
    fixed: Mapping[str, Any],
    order: int | None = None,
    **facts: Unpack[SamplerFacts],
) -> SampleFn:
    """Make sample_<name> from another sampler with some options fixed, and register it.

    Args:
        name: The new name.
        of: The sampler, which has a body.
        summary: The docstring.
        fixed: The options and their values. The new sampler does not take them.
        order: Its order; by default that of the other.
        **facts: Attributes of `Sampler` that differ from the other's.

    Returns:
        The function.

    Raises:
        ValueError: If the sampler does not have one of the options.
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
    attributes = {key: getattr(entry, key) for key in SamplerFacts.__annotations__} | facts
    function = make_sampler(
        body,
        name,
        entry.order if order is None else order,
        of=entry.name,
        fixed=fixed,
        **cast(SamplerFacts, attributes),
    )
    SAMPLERS.register(name)(function.entry)
    return function


def _public_parameters(body: Callable[..., Run[Any]], entry: Sampler) -> list[Parameter]:
    """Return the parameters of the public function.

    They are model, x, levels, extra_args, callback, disable, options with noise_sampler after
    s_noise, then SHARED.
    """
    _, x, *own = inspect.signature(body).parameters.values()
    sigmas = _SIGMAS if entry.levels is None else _SIGMAS.replace(default=None)
    ends = [p for p in own if p.kind is p.POSITIONAL_OR_KEYWORD] or [sigmas]
    options = [p.replace(kind=p.POSITIONAL_OR_KEYWORD) for p in own if p.kind is p.KEYWORD_ONLY]
    if entry.noise is not None:
        names = [p.name for p in options]
        options.insert(names.index('s_noise') + 1 if 's_noise' in names else len(names), _NOISE)
    return [_MODEL, x, *ends, *_CALLED, *options, *SHARED]
