"""What the benchmarks of quality share: three flows whose ends are known, and how far a sampler ends from them."""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

import k_diffusion as K
from k_diffusion import sampling
from k_diffusion.core.random import derive_seed, generator, randn_items
from k_diffusion.denoisers.analytic import Mixture
from k_diffusion.guidance import classifier_free
from k_diffusion.sampling.calibration.reference_runs import Teacher


class Pictures:
    """The denoiser of pictures [K, C, H, W] with isotropic noise of stds [K] about each, by matrix products."""

    def __init__(self, pictures: Tensor, stds: Tensor) -> None:
        self.flat, self.variance = pictures.flatten(1), stds ** 2
        self.square = self.flat.square().sum(1)

    def __call__(self, x: Tensor, sigma: Tensor, **cond: Any) -> Tensor:
        flat, total = x.flatten(1), self.variance + sigma[:, None] ** 2
        distance = flat.square().sum(1, keepdim=True) - 2 * flat @ self.flat.mT + self.square
        posterior = (-distance / total / 2 - flat.shape[1] / 2 * total.log()).softmax(1)
        keep = self.variance / total
        return ((posterior * keep).sum(1, keepdim=True) * flat + (posterior * (1 - keep)) @ self.flat).view_as(x)


def vectors(device: str) -> Callable[..., Tensor]:
    """Eight Gaussians in 8 dimensions."""
    means = torch.randn(8, 8, generator=generator(1, 'gmm8'), dtype=torch.float64)
    stds = torch.logspace(math.log10(0.05), math.log10(0.5), 8, dtype=torch.float64)
    return Mixture(means.to(device), stds.to(device))


def pictures(device: str) -> Callable[..., Tensor]:
    """Twenty pictures of 3x32x32 whose amplitudes fall as 1 / frequency, with little noise about each."""
    frequency = torch.fft.fftfreq(32)
    radius = (frequency[:, None] ** 2 + frequency[None] ** 2).sqrt().clamp_min(1 / 32)
    noise = torch.randn(20, 3, 32, 32, generator=generator(1, 'gmmimg'))
    smooth = torch.fft.ifft2(torch.fft.fft2(noise) / radius).real
    return Pictures((smooth / smooth.std() * 0.5).to(device), torch.logspace(math.log10(0.03), math.log10(0.15), 20).to(device))


#: name -> how many noises to fit to, to choose by and to test on.
SIZES = {'mixture, 8-d': (128, 128, 2048), 'mixture, 3x32x32': (32, 32, 512), 'network': (32, 32, 128)}


class Ends(NamedTuple):
    """How far the items of a run end from where they should: the rms over the entries of each, [B]; and the spread of the data."""
    distances: Tensor
    spread: float

    @property
    def median(self) -> float:
        return self.distances.median().item()

    @property
    def rms(self) -> float:
        return self.distances.square().mean().sqrt().item()

    @property
    def astray(self) -> float:
        """The share of the items that end as something else: farther than a fifth of the spread."""
        return (self.distances > 0.2 * self.spread).double().mean().item()

    def __str__(self) -> str:
        return f'{self.median:.4f} ({self.rms:.3f}, {100 * self.astray:.1f} %)'


class Flow:
    """A denoiser, and converged runs: `learned` to fit to and choose by, `test` for nothing but the figures shown.

    They take their last step, to 0, at 0.002, and all samplers may go down to there, also in the network.
    """

    low = 0.002

    def __init__(self, name: str, checkpoint: str | None, device: str, guidance: float = 1.,
                 interval: tuple[float, float] = (0., math.inf)) -> None:
        self.name, self.guided, (self.fitted, self.held, tested) = name, guidance != 1, SIZES[name]
        cond: Callable[[int], dict[str, Tensor]] = lambda n: {}
        if name == 'network':
            self.model, config = K.load_model(checkpoint, device)
            model, classes = config['model'], config['dataset']['num_classes']
            shape, dtype = (model['input_channels'], *model['input_size']), torch.float32
            self.high, self.model.sigma_min = model['sigma_max'], self.low
            if self.guided:
                self.model = classifier_free(self.model, {'class_cond': classes}, guidance, interval)
            cond = lambda n: {'class_cond': torch.arange(n, device=device) % classes}
        elif name == 'mixture, 8-d':
            self.model, shape, dtype, self.high = vectors(device), (8,), torch.float64, 80.
        else:
            self.model, shape, dtype, self.high = pictures(device), (3, 32, 32), torch.float32, 80.

        def converged(key: str, n: int, tolerance: float) -> Teacher:
            x = randn_items(shape, [derive_seed(7, key, i) for i in range(n)], device, dtype) * self.high
            return Teacher(self.model, x, self.low, self.high, cond(n), tolerance)

        self.learned, self.test = converged('calibration', self.fitted + self.held, 1e-3), converged('test', tested, 3e-4)

    def distances(self, sampler: Any, sigmas: Any, options: dict[str, Any], runs: Teacher) -> Ends:
        out = sampling.find_sampler(sampler).function(self.model, runs.x, sigmas, runs.extra_args, disable=True, **options)
        distances = (out - runs.ends).flatten(1).square().mean(1, dtype=torch.float64).sqrt()
        return Ends(distances.nan_to_num(math.inf).clamp_max(1e3), self.test.std)


def flows(parts: Sequence[str], checkpoint: str | None, device: str, guidance: float, interval: tuple[float, float]) -> list[Flow]:
    """Those whose names hold one of the parts; the network only where one is given, and only it where there is guidance."""
    named = [name for name in SIZES if any(part in name for part in parts)]
    named = [name for name in named if (guidance == 1 if name != 'network' else checkpoint is not None)]
    return [Flow(name, checkpoint, device, guidance, interval) for name in named]
