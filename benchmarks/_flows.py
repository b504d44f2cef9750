"""Probability flows of different character and their ends, for the benchmarks of few-step sampling.

Every flow is a denoiser with its own range of noise levels. Most are exact (mixtures of Gaussians,
the posterior mean of a data set); three are networks that are trained here in a minute and kept in
a cache folder. `KEPT_OUT` names those that no recipe, level or threshold of the package was chosen
on; they were named before any result was seen.
"""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

import k_diffusion as K
from k_diffusion.core.images import from_bytes
from k_diffusion.core.random import derive_seed, generator, randn_items
from k_diffusion.data.demo import DemoConfig
from k_diffusion.denoisers.analytic import Mixture
from k_diffusion.guidance import classifier_free

#: Flows that nothing was chosen on.
KEPT_OUT = ('low rank', '8x8 network', '8x8 network, guided 2')
#: Steps of the fine run, and its sampler.
FINE, FINE_SAMPLER = 500, 'zeab'
CACHE = Path(tempfile.gettempdir()) / 'k-diffusion-benchmarks'


@dataclass
class Ranged:
    """A denoiser with a range of noise levels."""

    denoise: Callable[..., Tensor]
    sigma_min: float
    sigma_max: float

    def __call__(self, x: Tensor, sigma: Tensor, **cond: Any) -> Tensor:
        return self.denoise(x, sigma, **cond)


def level_by_level(denoise: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A denoiser of one level, called for the items of each level in turn: fits ask for several
    at once.
    """

    def call(self: Any, x: Tensor, sigma: Tensor, **cond: Tensor) -> Tensor:
        result = torch.empty_like(x)
        for level in sigma.unique():
            here = sigma == level
            result[here] = denoise(
                self, x[here], sigma[here], **{key: value[here] for key, value in cond.items()}
            )
        return result

    return call


class Spectra:
    """The exact denoiser of K Gaussians of pictures, diagonal in the basis of cosines: means and
    stds [K, C, H, W].

    x is in that basis, too: an orthonormal change of basis commutes with every sampler here.
    `towards` [B] leaves the items where it is 1 the first quarter of the components.
    """

    def __init__(self, means: Tensor, stds: Tensor) -> None:
        self.means, self.variances = means.flatten(1), stds.square().flatten(1)

    @level_by_level
    def __call__(self, x: Tensor, sigma: Tensor, towards: Tensor | None = None) -> Tensor:
        y = x.flatten(1)
        total = self.variances + sigma[0] ** 2
        distance = (
            y.square() @ (1 / total).mT
            - 2 * y @ (self.means / total).mT
            + (self.means**2 / total).sum(1)
        )
        log_joint = -(distance + total.log().sum(1)) / 2
        if towards is not None:
            excluded = torch.arange(len(total)) >= len(total) // 4
            log_joint = log_joint.masked_fill(excluded & (towards[:, None] == 1), -math.inf)
        posterior, keep = log_joint.softmax(1), self.variances / total
        return ((posterior @ keep) * y + posterior @ (self.means * (1 - keep))).view_as(x)


class Subspaces:
    """The exact denoiser of K Gaussians, each in a subspace of its own: means [K, D], axes [K,
    R, D] orthonormal, stds [K, R].
    """

    def __init__(self, means: Tensor, axes: Tensor, stds: Tensor) -> None:
        self.means, self.axes, self.variances = means, axes, stds**2

    @level_by_level
    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        noise = sigma[0] ** 2
        offset = x[:, None] - self.means
        inside = torch.einsum('krd,bkd->bkr', self.axes, offset)
        keep = self.variances / (self.variances + noise)
        distance = (offset.square().sum(2) - (keep * inside.square()).sum(2)) / noise
        posterior = (-(distance + (self.variances + noise).log().sum(1)) / 2).softmax(1)
        estimates = self.means + torch.einsum('bkr,krd->bkd', keep * inside, self.axes)
        return (posterior[..., None] * estimates).sum(1)


class DataSet:
    """The exact denoiser of a finite set of pictures [N, ...]: their posterior mean."""

    def __init__(self, pictures: Tensor) -> None:
        self.flat = pictures.flatten(1)

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        distance = self.flat.square().sum(1) - 2 * x.flatten(1) @ self.flat.mT
        return ((-distance / sigma[:, None] ** 2 / 2).softmax(1) @ self.flat).view_as(x)


def spectra(
    name: str, shape: Sequence[int], slope: float, components: int = 16, std: float = 0.5
) -> Spectra:
    """Components whose means and noise have amplitudes that fall as 1 / frequency^slope; the
    means hold half of the variance.
    """
    c, h, w = shape
    radius = (
        (
            torch.arange(h, dtype=torch.float64)[:, None] ** 2
            + torch.arange(w, dtype=torch.float64) ** 2
        )
        .sqrt()
        .clamp_min(1)
    )
    amplitude = radius**-slope
    amplitude *= std / amplitude.square().mean().sqrt()
    source = generator(1, name)
    means = (
        torch.randn(components, c, h, w, generator=source, dtype=torch.float64)
        * amplitude
        * math.sqrt(0.5)
    )
    share = torch.logspace(math.log10(0.1), math.log10(0.7), components, dtype=torch.float64)
    stds = amplitude * share[:, None, None, None].expand(components, c, 1, 1)
    return Spectra(means.float(), stds.float())


def subspaces() -> Subspaces:
    """Ten Gaussians of rank 4 in 64 dimensions."""
    source = generator(1, 'low rank')
    means = torch.randn(10, 64, generator=source) * 0.3
    axes = torch.linalg.qr(torch.randn(10, 64, 4, generator=source)).Q.mT
    return Subspaces(means, axes, torch.logspace(0.5, -1, 4).expand(10, 4))


def vectors() -> Mixture:
    """Twelve Gaussians in 8 dimensions."""
    return Mixture(
        torch.randn(12, 8, generator=generator(1, 'vectors')),
        torch.logspace(math.log10(0.05), math.log10(0.5), 12),
    )


def digits() -> DataSet:
    """The first 2,000 of the shipped digits."""
    images = K.data.open_dataset(DemoConfig(), (16, 16), 1)
    return DataSet(from_bytes(torch.stack([images[i]['image'] for i in range(2000)])))


def trained(cache: Path, size: int) -> tuple[Any, Callable[[int], dict[str, Tensor]]]:
    """A class-conditional network of size x size digits, and conditions for n items.

    16 is the network of `make demo`.
    """
    folder = cache / f'digits{size}'
    if not (folder / 'done').exists():
        config = K.config.load_config(K.config.shipped_config('config_demo'))
        if size != 16:
            config['model'].update(
                input_size=[size, size], patch_size=1, sigma_min=0.002, sigma_max=80
            )
        K.train(
            config,
            name='digits',
            run_dir=folder,
            seed=0,
            demo_every=0,
            end_step=None if size == 16 else 500,
        )
        (folder / 'done').touch()
    model, _ = K.load_model(folder, 'cpu')
    return model, lambda n: {'class_cond': torch.arange(n) % 10}


@dataclass
class Flow:
    """A denoiser with the shape of its items, and how many of them are looked at.

    cond: The conditions of n items. high: where the runs start; those of infinite range start at a
    finite level.
    """

    name: str
    model: Any
    shape: Sequence[int]
    items: int
    cond: Callable[[int], dict[str, Tensor]] = field(default=lambda n: {})
    dtype: torch.dtype = torch.float32

    @property
    def kept_out(self) -> bool:
        """Return whether the flow was left out of every choice."""
        return self.name in KEPT_OUT

    def noise(self, key: str) -> Tensor:
        """The start noises of a key: 'choose' for choices, 'test' for the figures shown."""
        seeds = [derive_seed(16, self.name, key, i) for i in range(self.items)]
        return randn_items(self.shape, seeds, 'cpu', self.dtype) * float(self.model.sigma_max)

    def run(
        self, x: Tensor, sampler: Any, sigmas: Any, options: dict[str, Any], plain: bool = False
    ) -> Tensor:
        """The end of a run of a sampler. plain: it is shown the guided estimate alone, as
        published samplers are.
        """
        sampler = K.sampling.find_sampler(sampler).function
        model = (
            Ranged(self.model, self.model.sigma_min, self.model.sigma_max) if plain else self.model
        )
        return sampler(model, x, sigmas, self.cond(len(x)), disable=True, **options)

    def ends(self, key: str, cache: Path = CACHE) -> Tensor:
        """Where the start noises of a key end: a fine run to the denoiser's sigma_min, then to
        0; kept in the cache.
        """
        digest = hashlib.sha256(
            repr((self.name, key, FINE, FINE_SAMPLER, self.items)).encode()
        ).hexdigest()[:12]
        path = cache / f'ends-{digest}.safetensors'
        if path.exists():
            return safetensors.torch.load_file(path)['ends']
        ends = self.noise(key)
        for levels in fine_levels(self.model):
            ends = self.run(ends, FINE_SAMPLER, levels, {}, plain=True)
        cache.mkdir(parents=True, exist_ok=True)
        safetensors.torch.save_file({'ends': ends}, path)
        return ends

    def distances(
        self,
        key: str,
        sampler: Any,
        sigmas: Any,
        options: dict[str, Any],
        cache: Path = CACHE,
        plain: bool = False,
    ) -> Tensor:
        """The rms over the entries of each item [B] between the ends of a sampler and the true
        ones.
        """
        ends = self.ends(key, cache)
        try:
            samples = self.run(self.noise(key), sampler, sigmas, options, plain)
        except ValueError:  # not finite
            return torch.full([self.items], 1e3, dtype=torch.float64)
        distances = (samples - ends).double().flatten(1).square().mean(1).sqrt()
        return distances.nan_to_num(1e3).clamp_max(1e3)


def fine_levels(model: Any) -> list[Tensor]:
    """The levels of the fine run; a part of their own above, inside and below an interval of
    guidance, so that nothing is extrapolated over its edges.
    """
    low, high, interval = (
        float(model.sigma_min),
        float(model.sigma_max),
        getattr(model, 'interval', (0.0, math.inf)),
    )
    if interval == (0.0, math.inf):
        return [K.sampling.get_sigmas_karras(FINE, low, high)]
    levels = K.schedules.get_sigmas_interval(FINE, low, high, interval)
    first, second = (int((levels > edge).sum()) for edge in interval[::-1])
    return [levels[: first + 1], levels[first : second + 1], levels[second:]]


def statistics(distances: Tensor) -> tuple[float, float]:
    """(rms over the items, median)."""
    return distances.square().mean().sqrt().item(), distances.median().item()


def flows(parts: Sequence[str] = ('',), cache: Path = CACHE) -> list[Flow]:
    """Those whose names hold one of the parts."""
    pictures, latents = (3, 32, 32), (4, 16, 16)

    def of(
        name: str,
        model: Callable[..., Tensor],
        low: float,
        high: float,
        shape: Sequence[int],
        items: int,
    ) -> Callable[[], Flow]:
        return lambda: Flow(name, Ranged(model, low, high), shape, items)

    def guided(
        base: Callable[[], Flow],
        name: str,
        scale: float,
        interval: tuple[float, float] = (0.0, math.inf),
    ) -> Callable[[], Flow]:
        def make() -> Flow:
            flow = base()
            null = {'class_cond': 10} if 'network' in name else {'towards': 0}
            cond = (
                flow.cond
                if 'network' in name
                else lambda n: {'towards': torch.ones(n, dtype=torch.long)}
            )
            return replace(
                flow, name=name, model=classifier_free(flow.model, null, scale, interval), cond=cond
            )

        return make

    def network(name: str, size: int) -> Callable[[], Flow]:
        def make() -> Flow:
            model, cond = trained(cache, size)
            return Flow(name, model, (1, size, size), 96, cond)

        return make

    steep = of('1/f^2 pictures', spectra('steep', pictures, 2.0), 0.002, 80.0, pictures, 96)
    natural = of('1/f pictures', spectra('natural', pictures, 1.0), 0.002, 80.0, pictures, 96)
    demo, small = network('16x16 network', 16), network('8x8 network', 8)
    makers = {
        '1/f pictures': natural,
        '1/f^2 pictures': steep,
        '2,000 digits': lambda: Flow(
            '2,000 digits', Ranged(digits(), 0.002, 80.0), (1, 16, 16), 64
        ),
        'vectors': of('vectors', vectors(), 0.002, 80.0, (8,), 768),
        'low rank': of('low rank', subspaces(), 0.002, 80.0, (64,), 384),
        'flow matching': of(
            'flow matching', spectra('latents', latents, 1.0, 24, 1.0), 0.001, 1000.0, latents, 96
        ),
        'narrow range': of(
            'narrow range', spectra('narrow', latents, 0.7, 16, 1.0), 0.03, 14.6, latents, 96
        ),
        'wide range': of(
            'wide range', spectra('wide', (1, 32, 32), 1.5, 16), 0.0005, 700.0, (1, 32, 32), 96
        ),
        '1/f^2 pictures, guided 4': guided(steep, '1/f^2 pictures, guided 4', 4.0),
        '1/f pictures, guided 2': guided(natural, '1/f pictures, guided 2', 2.0),
        '16x16 network': demo,
        '16x16 network, guided 3': guided(demo, '16x16 network, guided 3', 3.0),
        '16x16 network, guided 4.5 in (0.3, 1.2]': guided(
            demo, '16x16 network, guided 4.5 in (0.3, 1.2]', 4.5, (0.3, 1.2)
        ),
        '8x8 network': small,
        '8x8 network, guided 2': guided(small, '8x8 network, guided 2', 2.0),
    }
    return [make() for name, make in makers.items() if any(part in name for part in parts)]
