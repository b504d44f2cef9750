"""Noise samplers: independent draws, draws per item, a Brownian path.

A noise sampler is called with two levels, (sigma, sigma_next), and returns noise of unit variance
like x.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from ..core.arguments import check_number, is_whole, show_value
from ..core.protocols import NoiseSampler
from ..core.random import derive_seed, draw_items, noise_dtype
from ..core.registry import unknown
from .brownian import BrownianPath

NoiseKind: TypeAlias = Literal['path', 'independent']
Generators: TypeAlias = torch.Generator | Sequence[torch.Generator]


def default_noise_sampler(x: Tensor) -> NoiseSampler:
    """Return a source of independent noise from torch's global generator.

    Args:
        x: A tensor like the noise.
    """
    return lambda sigma, sigma_next: torch.randn_like(x)


def seeded_noise_sampler(
    x: Tensor, seed: int | Sequence[int] | None, counter: bool = False
) -> NoiseSampler:
    """Return a source of independent noise in which item i depends on its own seed only.

    The k-th call returns the k-th noise.

    Args:
        x: A tensor like the noise, [B, ...].
        seed: A seed for each item; or one number, from which the seed of item i is derived.
        counter: Draw the noise of a seed for all items at once, alike on every device; False: for
            each item by a generator of torch for the device.
    """
    seeds = item_seeds(x, seed)
    calls = 0

    def noise(sigma: Any, sigma_next: Any) -> Tensor:
        nonlocal calls
        calls += 1
        return draw_items(x.shape[1:], seeds, ('step', calls), x.device, x.dtype, counter=counter)

    return noise


def generator_noise_sampler(x: Tensor, generator: Generators) -> NoiseSampler:
    """Return a source of independent noise from one torch.Generator, or from one for each item.

    The noise is drawn on the device of the generator. For float64 it is drawn in float32 and cast,
    so that a seed gives the same noise in both precisions.

    Args:
        x: A tensor like the noise, [B, ...].
        generator: A generator, or one for each item.
    """

    def draw(shape: Sequence[int], source: torch.Generator) -> Tensor:
        return torch.randn(
            shape, generator=source, device=source.device, dtype=noise_dtype(x.dtype)
        ).to(x)

    if isinstance(generator, torch.Generator):
        source = generator
        return lambda sigma, sigma_next: draw(x.shape, source)
    items = _item_generators(x, generator)
    return lambda sigma, sigma_next: torch.stack([draw(x.shape[1:], item) for item in items])


def make_noise_sampler(
    x: Tensor,
    kind: NoiseKind,
    seed: int | Sequence[int] | None = None,
    generator: Generators | None = None,
    counter: bool = False,
) -> NoiseSampler:
    """Return the source of noise of a run from a seed or a generator.

    Args:
        x: A tensor like the noise, [B, ...].
        kind: 'path' for a Brownian path in sigma (its seed is drawn from the generator, if there is
            one); 'independent' for samplers that return to the same levels.
        seed: A seed for each item, or one number.
        generator: A generator, or one for each item.
        counter: Draw the noise of a seed for all items at once, alike on every device; False: for
            each item by a generator of torch for the device.

    Raises:
        ValueError: If both a seed and a generator are given, or the kind is unknown.
    """
    if seed is not None and generator is not None:
        raise ValueError('seed must be None where a generator is given; pass one source of noise')
    if kind not in ('path', 'independent'):
        raise ValueError(unknown('kind of noise', kind, ('path', 'independent')))
    if kind == 'independent':
        return (
            generator_noise_sampler(x, generator)
            if generator is not None
            else seeded_noise_sampler(x, seed, counter)
        )
    if isinstance(generator, torch.Generator):
        seed = _draw_seed(generator)
    elif generator is not None:
        seed = draw_seeds(x, generator)
    return BrownianTreeNoiseSampler(x, 0.0, 1.0, seed, counter=counter)


class BatchedBrownianTree:
    """A Brownian path for each item over any times, negative ones included.

    A call with t0, t1 returns W(t1) - W(t0). The sign is reversed if the tree was made with t0 >
    t1. Times outside [t0, t1] are allowed.

    Args:
        x: A tensor like the values, [B, ...].
        t0: A time.
        t1: Another time.
        seed: A number for each item, or one for the batch (item i is then the same in a batch of
            any size); None draws one from torch's global generator.
        **kwargs: counter, as in `make_noise_sampler`; options of torchsde's tree (w0, tol, ...) are
            accepted and ignored.
    """

    def __init__(
        self, x: Tensor, t0: Any, t1: Any, seed: int | Sequence[int] | None = None, **kwargs: Any
    ) -> None:
        counter = bool(kwargs.get('counter', False))
        seeds = item_seeds(x, seed)
        t0, t1 = check_number('t0', t0), check_number('t1', t1)
        self.sign = 1 if t0 <= t1 else -1
        self._dtype = x.dtype
        self._after = BrownianPath(x, seeds, counter)
        self._before = BrownianPath(x, [derive_seed(item, 'before 0') for item in seeds], counter)

    def __call__(self, t0: Any, t1: Any) -> Tensor:
        start, end = self._at(t0, t1), self._at(t1, t0)
        return (end - start if self.sign > 0 else start - end).to(self._dtype)

    def still(self, t: float) -> Tensor:
        """Return unit noise for a step between equal times, where the path does not move.

        Args:
            t: The time.
        """
        return self._after.draw(f'still {t!r}').to(self._dtype)

    def _at(self, t: Any, other: Any) -> Tensor:
        time, other = float(t), float(other)
        if not math.isfinite(time):
            raise ValueError(
                f'times of a Brownian path must be finite; got {time} (the logarithm of sigma 0?)'
            )
        return self._after(time, other) if time >= 0 else self._before(-time, -other)


def _identity(sigma: Any) -> Any:
    return sigma


class BrownianTreeNoiseSampler:
    """Noise from one Brownian path in the time transform(sigma).

    The path is the same for any number of steps between the same levels. Levels outside [sigma_min,
    sigma_max] are allowed.

    Args:
        x: A tensor like the noise, [B, ...].
        sigma_min: The lowest level.
        sigma_max: The highest level.
        seed: As in `BatchedBrownianTree`.
        transform: The time of a level.
        counter: As in `make_noise_sampler`.
    """

    def __init__(
        self,
        x: Tensor,
        sigma_min: Any,
        sigma_max: Any,
        seed: int | Sequence[int] | None = None,
        transform: Callable[[Any], Any] = _identity,
        counter: bool = False,
    ) -> None:
        self.transform = transform
        if not callable(transform):
            raise TypeError(
                f'transform must be a function of a noise level; got {show_value(transform)}'
            )
        low, high = check_number('sigma_min', sigma_min), check_number('sigma_max', sigma_max)
        self.tree = BatchedBrownianTree(x, self._time(low), self._time(high), seed, counter=counter)

    def __call__(self, sigma: Any, sigma_next: Any) -> Tensor:
        t0, t1 = self._time(sigma), self._time(sigma_next)
        if t0 == t1:
            return self.tree.still(t0)
        return self.tree(t0, t1).div_(math.sqrt(abs(t1 - t0)))

    def _time(self, sigma: Any) -> float:
        if self.transform is _identity:  # spares a tensor at every step
            return float(sigma)
        return float(self.transform(torch.tensor(float(sigma), dtype=torch.float64)))


def _item_generators(x: Tensor, generator: Any) -> list[torch.Generator]:
    """Return a list of one generator for each item of x."""
    items = list(generator) if isinstance(generator, Sequence) else []
    if not items or not all(isinstance(item, torch.Generator) for item in items):
        raise TypeError(
            'generator must be a torch.Generator, or a list with one for each item; got '
            f'{show_value(generator)}'
        )
    if len(items) != len(x):
        raise ValueError(
            f'generator must be one torch.Generator, or one for each of the {len(x)} items; got '
            f'{len(items)}'
        )
    return items


def draw_seeds(x: Tensor, generator: Generators) -> list[int]:
    """Draw a seed for each item of x from a generator, or from one for each item.

    Args:
        x: A batch, [B, ...].
        generator: A generator, or one for each item.
    """
    if isinstance(generator, torch.Generator):
        return [_draw_seed(generator) for _ in x]
    return [_draw_seed(item) for item in _item_generators(x, generator)]


def _draw_seed(generator: torch.Generator) -> int:
    return int(torch.randint(0, 2**63 - 1, [], generator=generator, device=generator.device))


def item_seeds(x: Tensor, seed: Any) -> list[int]:
    """Return a seed for each item of x.

    Args:
        x: A batch, [B, ...].
        seed: A seed for each item; one number, from which the seeds are derived; or None for
            torch's global generator.

    Raises:
        TypeError: If x is not a batch.
        ValueError: If seed is not an integer, or not one for each item.
    """
    if seed is None:
        seed = torch.randint(0, 2**63 - 1, [])
    if not isinstance(x, Tensor) or not x.ndim:
        raise TypeError(f'x must be a batch, a tensor [B, ...]; got {show_value(x)}')
    value: Any = seed.tolist() if hasattr(seed, 'tolist') else seed
    one = not isinstance(value, Iterable)
    items: list[Any] = [value] if one else list(value)
    if isinstance(seed, str) or not all(is_whole(item, -math.inf) for item in items):
        raise ValueError(f'seed must be an integer, or one for each item; got {show_value(seed)}')
    seeds = [int(item) for item in items]
    if one:
        return [derive_seed(seeds[0], 'item', i) for i in range(len(x))]
    if len(seeds) != len(x):
        raise ValueError(
            f'seed must be one integer, or one for each of the {len(x)} items; got {len(seeds)}'
        )
    return seeds
