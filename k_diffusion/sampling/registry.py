"""The registry of samplers: making them from generators, finding them, and running them."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from inspect import Parameter
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

from torch import Tensor

from ..core.protocols import DenoiseFn
from ..core.registry import Registry
from .noise import (
    Generators,
    NoiseKind,
)

if TYPE_CHECKING:
    pass

R = TypeVar('R')
#: A running sampler: it yields states x and requests, and is sent states and answers.
Run: TypeAlias = Generator[Any, Any, R]


#: Arguments of every sampler besides its own options; `SampleFn` documents them.
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


class SampleFn(Protocol):
    """A sampler: sample_<name>(model, x, sigmas, ...) with its options and the common ones.

    Args:
        model: The denoiser.
        x: Noise at the first level, [B, ...].
        *args: sigmas (or sigma_min, sigma_max and n), extra_args, callback, disable, then options.
        seed: A number for each item, or one for the batch. Item i of the result then depends on its
            own seed only. It changes the noise of the steps; x is given.
        generator: A torch.Generator, or one for each item, to draw the noise of the steps from. A
            noise_sampler passed beside a generator takes precedence: programs that pass every
            argument of a signature draw x from the generator. A seed cannot be combined with
            either.
        afs: The analytical first step, which saves the first model call; in other respects its
            answer counts as the model's. True takes x / sqrt(1 + sigma^2) as the noise (Dockhorn et
            al. 2022, arXiv:2210.05475). A number s assumes Gaussian data of mean 0 and standard
            deviation s: D = s^2 / (s^2 + sigma^2) x.
        **options: The options of the sampler.
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
    """The entry of a sampler: its function and its properties.

    Attributes:
        name: The <name> of sample_<name>.
        function: sample_<name>(model, x, sigmas, ...).
        body: The generator that the function runs. It is called with the `Steps` of the run, x and
            the options, yields x at the end of each step and continues with the value it is sent.
            None for a function from elsewhere.
        order: Order of the error in the step size; 0 if the error does not fall with the step.
        nfe: Model calls per step.
        stochastic: True if it draws noise by default.
        noise: The noise made from a seed: 'path', the same for any number of steps, or
            'independent' where levels are revisited. None for a sampler without noise.
        path_by_default: True if the noise is a Brownian path also without a seed.
        family: The group of methods it belongs to.
        reference: Its publication; empty for methods of this project.
        needs_pair: True if it requests the guided and the unconditional estimate, as those of CFG++
            do.
        couples_batch: True if an item depends on the others in its batch.
        levels: The noise levels of a sampler that brings its own, else None.
        unasked: Number of its steps without a model call.
        of: The sampler of which this is a preset with `fixed` options; empty for others.
        fixed: These options.
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
        """Return its level arguments: 'sigmas', or 'sigma_min', 'sigma_max' and 'n'."""
        return tuple(
            name for name in ('sigmas', 'sigma_min', 'sigma_max', 'n') if name in self.parameters
        )

    @property
    def parameters(self) -> tuple[str, ...]:
        """Return the names of the parameters of its function, except those of every sampler."""
        return tuple(self.signature.parameters)

    @property
    def options(self) -> dict[str, Parameter]:
        """Return its own options by name, with types and defaults."""
        common = {'model', 'x', 'sigmas', 'sigma_min', 'sigma_max', 'n', *(p.name for p in _CALLED)}
        return {name: p for name, p in self.signature.parameters.items() if name not in common}

    @property
    def aliases(self) -> tuple[str, ...]:
        """Return its other names."""
        return tuple(alias for alias, name in ALIASES.items() if name == self.name)

    @property
    def published(self) -> bool:
        """Return True for a published method, False for one of this project."""
        return bool(self.reference)

    @property
    def summary(self) -> str:
        """Return the first line of its docstring."""
        return (self.function.__doc__ or '').strip().partition('\n')[0]

    @functools.cached_property
    def signature(self) -> inspect.Signature:
        """Return the signature of its function without the parameters of every sampler."""
        signature = inspect.signature(self.function)
        return signature.replace(
            parameters=[p for p in signature.parameters.values() if p not in SHARED]
        )


#: Names of samplers in other programs and papers.
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
    # The same with a second stage of weight 0.
    'abnorsett2_1h2s': 'res_multistep',
    'abnorsett3_2h2s': 'res_3m',
    'abnorsett4_3h2s': 'abnorsett_4m',
    'dpmpp_sde_2s': 'dpmpp_sde',
    'etdrk2_2s': 'exp_heun_2_x0',
    'res_2s_stable': 'exp_heun_2_x0',
    'res_3s_cox_matthews': 'etdrk3_3s',
    'etdrk4': 'etdrk4_4s',
    'res_4s_cox_matthews': 'etdrk4_4s',
    # The method of the publication that is named for it there.
    'etdrk4_4s_alt': 'etdrk4_4s',
    'res_4s_krogstad_alt': 'res_4s_krogstad',
    'res_4s_strehmel_weiner_alt': 'res_4s_strehmel_weiner',
    'res_8s_alt': 'res_8s_luan_ostermann',
    'res_5s': 'res_5s_hochbruck_ostermann',
    'res_6s': 'res_6s_luan',
    'res_8s': 'res_8s_luan_ostermann',
    'res_10s': 'res_10s_luan',
    'res_15s': 'res_15s_luan_alhsmy',
    'res_16s': 'res_16s_luan_alhsmy',
    'lawson4': 'lawson4_4s',
    'lawson41_gen_4s': 'lawson41_4s',
    'rk4': 'rk4_4s',
    'rk5_7s': 'dormand_prince_7s',
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
    """Return a name or a title in the form of the names here: 'DPM++ 2M SDE' is 'dpmpp_2m_sde'.

    Args:
        name: The name.
    """
    words = re.sub(
        r'[^a-z0-9]+', '_', name.lower().replace('cfg++', 'cfg_pp').replace('++', 'pp')
    ).strip('_')
    return words.removeprefix('sample_').removeprefix('k_')


#: Samplers by name.
SAMPLERS: Registry[Sampler] = Registry('sampler', ALIASES, plain_name)


def catalogue() -> tuple[Sampler, ...]:
    """Return the entries of all samplers, with all that a menu or a table shows.

    Returns:
        Entries, sorted by family and name. `Sampler` lists their attributes.
    """
    return tuple(sorted(SAMPLERS.values(), key=lambda entry: (entry.family.lower(), entry.name)))


def find_sampler(sampler: str | Sampler | Callable[..., Any]) -> Sampler:
    """Return the entry of a sampler.

    Args:
        sampler: A name (with or without sample_), a function or an entry. A function from elsewhere
            counts as a single step.

    Raises:
        ValueError: If it is unknown, or neither a name nor a function.
    """
    if isinstance(sampler, Sampler):
        return sampler
    if isinstance(sampler, str):
        return SAMPLERS[sampler]
    if not callable(sampler):
        raise ValueError(
            'sampler must be a name, or a function such as sample_heun or '
            f'calibration.sampler(); got {type(sampler).__name__}'
        )
    if hasattr(sampler, 'entry'):
        return sampler.entry
    return Sampler(
        getattr(sampler, '__name__', 'sampler'), sampler, None, 1, stochastic=True, noise='path'
    )
