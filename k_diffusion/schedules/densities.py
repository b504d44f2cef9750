"""Distributions of training noise levels.

A Density is drawn from by a call and evaluated at quantiles. It is also the config section with its
"type" (all are in DENSITIES), with the keys and defaults of the original. `filled(model)` replaces
None by values of the model section.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, TypeVar

from torch import Tensor

from ..core.registry import Registry
from . import draws

D = TypeVar('D', bound='Density')
DENSITIES: Registry[type[Density]] = Registry('sigma density')


@dataclass(frozen=True)
class Density(ABC):
    """A distribution of noise levels: a random draw, an inverse CDF, and their parameters."""

    rand: ClassVar[Callable[..., Tensor]]
    inverse_cdf: ClassVar[Callable[..., Tensor]]

    @property
    @abstractmethod
    def parameters(self) -> tuple[float, ...]:
        """Return the parameters of rand and inverse_cdf, none of them None."""

    def __call__(self, shape: Sequence[int], device: Any = 'cpu') -> Tensor:
        """Draw levels in float32 from torch's global generator, stratified if enabled."""
        return self.rand(shape, *self.parameters, device=device)

    def quantile(self, u: Tensor) -> Tensor:
        """Return the levels at quantiles u in (0, 1), in the dtype of u.

        Args:
            u: The quantiles.
        """
        return self.inverse_cdf(u, *self.parameters)

    def defaults(self) -> dict[str, Callable[[Any], float]]:
        """Return functions of a model section that give the values for None.

        The section has sigma_data, sigma_min, sigma_max and input_size.
        """
        return {}

    def fill_from(self: D, model: Any) -> D:
        """Return the density with every None replaced.

        Args:
            model: The model section.
        """
        missing = {
            key: default for key, default in self.defaults().items() if getattr(self, key) is None
        }
        return replace(self, **{key: default(model) for key, default in missing.items()})


@DENSITIES.register('lognormal')
@dataclass(frozen=True, kw_only=True)
class LogNormal(Density):
    """ln sigma ~ N(loc, scale^2) (`rand_log_normal`); mean and std are other names."""

    type: Literal['lognormal'] = 'lognormal'
    mean: float | None = None
    std: float | None = None
    loc: float | None = None
    scale: float | None = None

    rand = staticmethod(draws.rand_log_normal)
    inverse_cdf = staticmethod(draws.log_normal)

    def __post_init__(self) -> None:
        _check_above_0(std=self.parameters[1])

    @property
    def parameters(self) -> tuple[float, ...]:
        return _one_of(self, 'mean', 'loc'), _one_of(self, 'std', 'scale')


@DENSITIES.register('split-lognormal')
@dataclass(frozen=True, kw_only=True)
class SplitLogNormal(Density):
    """A split log-normal distribution (`rand_split_log_normal`).

    mean, std_1 and std_2 are other names for loc, scale_1 and scale_2.
    """

    type: Literal['split-lognormal'] = 'split-lognormal'
    mean: float | None = None
    std_1: float | None = None
    std_2: float | None = None
    loc: float | None = None
    scale_1: float | None = None
    scale_2: float | None = None

    rand = staticmethod(draws.rand_split_log_normal)
    inverse_cdf = staticmethod(draws.split_log_normal)

    def __post_init__(self) -> None:
        _check_above_0(std_1=self.parameters[1], std_2=self.parameters[2])

    @property
    def parameters(self) -> tuple[float, ...]:
        return (
            _one_of(self, 'mean', 'loc'),
            _one_of(self, 'std_1', 'scale_1'),
            _one_of(self, 'std_2', 'scale_2'),
        )


@DENSITIES.register('loglogistic')
@dataclass(frozen=True, kw_only=True)
class LogLogistic(Density):
    """ln sigma ~ Logistic(loc, scale) (`rand_log_logistic`)."""

    type: Literal['loglogistic'] = 'loglogistic'
    loc: float | None = None  # None: ln sigma_data
    scale: float = 0.5
    min_value: float = 0.0
    max_value: float = math.inf

    rand = staticmethod(draws.rand_log_logistic)
    inverse_cdf = staticmethod(draws.log_logistic)

    def __post_init__(self) -> None:
        _check_above_0(scale=self.scale)
        _check_range(self.min_value, self.max_value)

    @property
    def parameters(self) -> tuple[float, ...]:
        return _required_value(self, 'loc'), self.scale, self.min_value, self.max_value

    def defaults(self) -> dict[str, Callable[[Any], float]]:
        return {'loc': lambda model: math.log(model.sigma_data)}


@DENSITIES.register('loguniform')
@dataclass(frozen=True, kw_only=True)
class LogUniform(Density):
    """ln sigma uniform (`rand_log_uniform`)."""

    type: Literal['loguniform'] = 'loguniform'
    min_value: float | None = None  # None: sigma_min
    max_value: float | None = None  # None: sigma_max

    rand = staticmethod(draws.rand_log_uniform)
    inverse_cdf = staticmethod(draws.log_uniform)

    def __post_init__(self) -> None:
        _check_above_0(min_value=self.min_value)
        _check_range(self.min_value, self.max_value)

    @property
    def parameters(self) -> tuple[float, ...]:
        return _required_value(self, 'min_value'), _required_value(self, 'max_value')

    def defaults(self) -> dict[str, Callable[[Any], float]]:
        return {
            'min_value': lambda model: model.sigma_min,
            'max_value': lambda model: model.sigma_max,
        }


@DENSITIES.register('v-diffusion', 'cosine')
@dataclass(frozen=True, kw_only=True)
class VDiffusion(Density):
    """The distribution of v-diffusion (`rand_v_diffusion`)."""

    type: Literal['v-diffusion', 'cosine'] = 'v-diffusion'
    sigma_data: float | None = None  # None: the model's
    min_value: float = 1e-3
    max_value: float = 1e3

    rand = staticmethod(draws.rand_v_diffusion)
    inverse_cdf = staticmethod(draws.v_diffusion)

    def __post_init__(self) -> None:
        _check_above_0(sigma_data=self.sigma_data)
        _check_range(self.min_value, self.max_value)

    @property
    def parameters(self) -> tuple[float, ...]:
        return _required_value(self, 'sigma_data'), self.min_value, self.max_value

    def defaults(self) -> dict[str, Callable[[Any], float]]:
        return {'sigma_data': lambda model: model.sigma_data}


@DENSITIES.register('cosine-interpolated')
@dataclass(frozen=True, kw_only=True)
class CosineInterpolated(Density):
    """The interpolated cosine schedule (`rand_cosine_interpolated`)."""

    type: Literal['cosine-interpolated'] = 'cosine-interpolated'
    image_d: float | None = None  # None: the longer side of input_size
    noise_d_low: float = 32
    noise_d_high: float | None = None  # None: the longer side of input_size
    sigma_data: float | None = None  # None: the model's
    min_value: float | None = None  # None: sigma_min, or 1e-3 if that is less
    max_value: float | None = None  # None: sigma_max, or 1e3 if that is more

    rand = staticmethod(draws.rand_cosine_interpolated)
    inverse_cdf = staticmethod(draws.cosine_interpolated)

    def __post_init__(self) -> None:
        keys = ('image_d', 'noise_d_low', 'noise_d_high', 'sigma_data', 'min_value')
        _check_above_0(**{key: getattr(self, key) for key in keys})
        _check_range(self.min_value, self.max_value)

    @property
    def parameters(self) -> tuple[float, ...]:
        keys = ('image_d', 'noise_d_low', 'noise_d_high', 'sigma_data', 'min_value', 'max_value')
        return tuple(_required_value(self, key) for key in keys)

    def defaults(self) -> dict[str, Callable[[Any], float]]:
        return {
            'image_d': lambda model: max(model.input_size),
            'noise_d_high': lambda model: max(model.input_size),
            'sigma_data': lambda model: model.sigma_data,
            'min_value': lambda model: min(model.sigma_min, 1e-3),
            'max_value': lambda model: max(model.sigma_max, 1e3),
        }


def _required_value(density: Density, key: str) -> float:
    """Return a parameter; raise a ValueError if it is None."""
    value: float | None = getattr(density, key)
    if value is None:
        raise ValueError(
            f'{key} must be a number; got None, for which filled(model) substitutes a value of '
            'the model'
        )
    return value


def _one_of(density: Density, *keys: str) -> float:
    """Return the parameter given under exactly one of its names."""
    values = [value for key in keys if (value := getattr(density, key)) is not None]
    if len(values) != 1:
        raise ValueError(
            f'{keys[0]} must be given exactly once, as {" or as ".join(keys)}; got {len(values)} '
            'values'
        )
    return float(values[0])


def _check_above_0(**values: float | None) -> None:
    for key, value in values.items():
        if value is not None and not value > 0:
            raise ValueError(f'{key} must be > 0; got {value}')


def _check_range(min_value: float | None, max_value: float | None) -> None:
    if min_value is not None and max_value is not None and not 0 <= min_value < max_value:
        raise ValueError(
            f'min_value and max_value must satisfy 0 <= min_value < max_value; got {min_value} and '
            f'{max_value}'
        )
