"""Where samplers take their noise from: independent draws, draws per item, a Brownian path.

A noise sampler is called with two levels, (sigma, sigma_next), and gives noise of unit variance
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
from ..core.random import derive_seed, drawn_dtype, randn_items
from ..core.registry import unknown
from .brownian import BrownianPath

NoiseKind: TypeAlias = Literal['path', 'independent']
Generators: TypeAlias = torch.Generator | Sequence[torch.Generator]


def default_noise_sampler(x: Tensor) -> NoiseSampler:
    """Independent noise from torch's global generator."""
    return lambda sigma, sigma_next: torch.randn_like(x)


def seeded_noise_sampler(x: Tensor, seed: int | Sequence[int] | None) -> NoiseSampler:
    """Independent noise in which item i depends on the i-th seed alone, whatever else is in its
    batch.

    One number serves as the seed of the whole batch: item i is then the i-th of that seed. The k-th
    call gives the k-th noise.
    """
    seeds = item_seeds(x, seed)
    calls = 0

    def noise(sigma: Any, sigma_next: Any) -> Tensor:
        nonlocal calls
        calls += 1
        return randn_items(
            x.shape[1:], [derive_seed(item, 'step', calls) for item in seeds], x.device, x.dtype
        )

    return noise


def generator_noise_sampler(x: Tensor, generator: Generators) -> NoiseSampler:
    """Independent noise from a torch.Generator, or from one for each item; drawn where the
    generator lives.

    In float64 it is that of float32, cast: one seed is one noise in either precision.
    """

    def draw(shape: Sequence[int], source: torch.Generator) -> Tensor:
        return torch.randn(
            shape, generator=source, device=source.device, dtype=drawn_dtype(x.dtype)
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
) -> NoiseSampler:
    """The noise of a run from a seed or a generator (or one per item).

    'path' is a Brownian path in sigma (its seed is drawn from the generator where one is given);
    'independent' suits samplers that go back and forth over the same levels.
    """
    if seed is not None and generator is not None:
        raise ValueError('a seed and a generator were given; give one source of noise')
    if kind not in ('path', 'independent'):
        raise ValueError(unknown('kind of noise', kind, ('path', 'independent')))
    if kind == 'independent':
        return (
            generator_noise_sampler(x, generator)
            if generator is not None
            else seeded_noise_sampler(x, seed)
        )
    if isinstance(generator, torch.Generator):
        seed = _drawn_seed(generator)
    elif generator is not None:
        seed = draw_seeds(x, generator)
    return BrownianTreeNoiseSampler(x, 0.0, 1.0, seed)


class BatchedBrownianTree:
    """A Brownian path per item over any times, negative ones included: called with t0, t1 it gives
    W(t1) - W(t0).

    seed: a number per item, or one for the batch (item i of it is the same in a batch of any size);
    None draws one from torch's global generator. The sign turns where the path was laid from a
    later time t0 to an earlier t1. Nothing is special about times outside [t0, t1]. Further options
    of torchsde's tree (w0, tol, ...) are accepted and have no effect on increments.
    """

    def __init__(
        self, x: Tensor, t0: Any, t1: Any, seed: int | Sequence[int] | None = None, **kwargs: Any
    ) -> None:
        seeds = item_seeds(x, seed)
        t0, t1 = check_number('t0', t0), check_number('t1', t1)
        self.sign = 1 if t0 <= t1 else -1
        self._dtype = x.dtype
        self._after = BrownianPath(x, seeds)
        self._before = BrownianPath(x, [derive_seed(item, 'before 0') for item in seeds])

    def __call__(self, t0: Any, t1: Any) -> Tensor:
        start, end = self._at(t0, t1), self._at(t1, t0)
        return (end - start if self.sign > 0 else start - end).to(self._dtype)

    def still(self, t: float) -> Tensor:
        """Unit noise for a step between equal times, where the path does not move."""
        return self._after.draw(f'still {t!r}').to(self._dtype)

    def _at(self, t: Any, other: Any) -> Tensor:
        time, other = float(t), float(other)
        if not math.isfinite(time):
            raise ValueError(
                f'a Brownian path has no value at time {time}; ask for finite times (is a log of '
                'sigma 0 taken?)'
            )
        return self._after(time, other) if time >= 0 else self._before(-time, -other)


def _same(sigma: Any) -> Any:
    return sigma


class BrownianTreeNoiseSampler:
    """Noise from one Brownian path in the time transform(sigma): the same for any number of steps
    between the same levels.

    seed: as in BatchedBrownianTree. Levels outside [sigma_min, sigma_max] are as good as those
    inside.
    """

    def __init__(
        self,
        x: Tensor,
        sigma_min: Any,
        sigma_max: Any,
        seed: int | Sequence[int] | None = None,
        transform: Callable[[Any], Any] = _same,
    ) -> None:
        self.transform = transform
        if not callable(transform):
            raise TypeError(
                f'transform must be a function of a noise level; got {show_value(transform)}'
            )
        low, high = check_number('sigma_min', sigma_min), check_number('sigma_max', sigma_max)
        self.tree = BatchedBrownianTree(x, self._time(low), self._time(high), seed)

    def __call__(self, sigma: Any, sigma_next: Any) -> Tensor:
        t0, t1 = self._time(sigma), self._time(sigma_next)
        if t0 == t1:
            return self.tree.still(t0)
        return self.tree(t0, t1).div_(math.sqrt(abs(t1 - t0)))

    def _time(self, sigma: Any) -> float:
        if self.transform is _same:  # spares a tensor at every step
            return float(sigma)
        return float(self.transform(torch.tensor(float(sigma), dtype=torch.float64)))


def _item_generators(x: Tensor, generator: Any) -> list[torch.Generator]:
    items = list(generator) if isinstance(generator, Sequence) else []
    if not items or not all(isinstance(item, torch.Generator) for item in items):
        raise TypeError(
            'generator must be a torch.Generator, or a list of one for each item; got '
            f'{show_value(generator)}'
        )
    if len(items) != len(x):
        raise ValueError(
            f'{len(items)} generators were given for a batch of {len(x)}; give one, or one for '
            'each item'
        )
    return items


def draw_seeds(x: Tensor, generator: Generators) -> list[int]:
    """Draw a seed for each item of x from a generator, or from one for each."""
    if isinstance(generator, torch.Generator):
        return [_drawn_seed(generator) for _ in x]
    return [_drawn_seed(item) for item in _item_generators(x, generator)]


def _drawn_seed(generator: torch.Generator) -> int:
    return int(torch.randint(0, 2**63 - 1, [], generator=generator, device=generator.device))


def item_seeds(x: Tensor, seed: Any) -> list[int]:
    """A seed for each item of x."""
    if seed is None:
        seed = torch.randint(0, 2**63 - 1, [])
    if not isinstance(x, Tensor) or not x.ndim:
        raise TypeError(f'x must be a batch, a tensor [B, ...]; got {show_value(x)}')
    given: Any = seed.tolist() if hasattr(seed, 'tolist') else seed
    one = not isinstance(given, Iterable)
    items: list[Any] = [given] if one else list(given)
    if isinstance(seed, str) or not all(is_whole(item, -math.inf) for item in items):
        raise ValueError(
            f'seed must be a whole number, or one for each item; got {show_value(seed)}'
        )
    seeds = [int(item) for item in items]
    if one:
        return [derive_seed(seeds[0], 'item', i) for i in range(len(x))]
    if len(seeds) != len(x):
        raise ValueError(
            f'{len(seeds)} seeds were given for a batch of {len(x)}; give one number, or a seed '
            'for each item'
        )
    return seeds
