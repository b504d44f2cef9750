"""How exact measuring is, and how fast: likelihood beside the original's method, Frechet distance
beside a matrix square root.

    python benchmarks/measuring.py [--part likelihood|coverage|frechet] [--seed 1]
        [--features 2048] [--samples 5000] [--device cpu]

Likelihood: rms error in nats per dimension over 200 points of problems with known densities,
against model calls. The original's method is made here from its description: adaptive
Dormand-Prince in sigma over the whole batch (atol = rtol = 1e-4), one fixed probe of +-1, the prior
N(0, sigma_max^2). Frechet: time (with the covariances, taken in turn) and error against a closed
form, on features whose covariances commute, with a spectrum of 1000 to 1.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.integrate import solve_ivp
from scipy.linalg import sqrtm
from torch import Tensor

from k_diffusion import evaluation, sampling
from k_diffusion.denoisers.analytic import Gaussian, Mixture

LOW, HIGH, D, POINTS = 0.01, 80.0, 16, 200


class Rotated:
    """A Gaussian with the given deviations along random axes."""

    def __init__(self, std: Tensor) -> None:
        self.axes = torch.linalg.qr(
            torch.randn(D, D, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        )[0]
        self.inner = Gaussian(torch.zeros_like(std), std)

    def __call__(self, x: Tensor, sigma: Tensor, **_: Any) -> Tensor:
        return self.inner(x @ self.axes, sigma) @ self.axes.T

    def log_prob(self, x: Tensor, sigma: float) -> Tensor:
        return self.inner.log_prob(x @ self.axes, sigma)

    def draw(self, n: int) -> Tensor:
        return torch.randn(n, D, dtype=torch.float64) * self.inner.std @ self.axes.T


def problems(points: int = POINTS) -> dict[str, tuple[Any, Tensor]]:
    """name -> (denoiser with log_prob, points at the level LOW)."""
    spread = torch.logspace(-1, 0, D, dtype=torch.float64)
    flat = torch.cat([torch.ones(4, dtype=torch.float64), torch.zeros(12, dtype=torch.float64)])
    means = torch.randn(6, D, dtype=torch.float64)
    stds = torch.linspace(0.2, 0.5, 6, dtype=torch.float64)
    diagonal, full, low_rank, mixture = (
        Gaussian(torch.zeros_like(spread), spread),
        Rotated(spread),
        Rotated(flat),
        Mixture(means, stds),
    )
    k = torch.arange(points) % 6
    clean = {
        'diagonal Gaussian': (diagonal, torch.randn(points, D, dtype=torch.float64) * spread),
        'rotated Gaussian': (full, full.draw(points)),
        'low rank (4 of 16)': (low_rank, low_rank.draw(points)),
        'mixture of 6': (mixture, drawn_of(mixture, k)),
    }
    return {name: (model, x + LOW * torch.randn_like(x)) for name, (model, x) in clean.items()}


def more_problems(points: int) -> dict[str, tuple[Any, Tensor]]:
    """Others, on which nothing was chosen: mixtures of other numbers, spreads and widths."""
    problems = {}
    for count, width, low, high in (3, 16, 0.05, 0.1), (20, 8, 0.1, 0.4), (10, 40, 0.3, 0.3):
        model = Mixture(
            torch.randn(count, width, dtype=torch.float64),
            torch.linspace(low, high, count, dtype=torch.float64),
        )
        x = drawn_of(model, torch.arange(points) % count)
        problems[f'mixture of {count}, {width}-d'] = model, x + LOW * torch.randn_like(x)
    return problems


def drawn_of(mixture: Mixture, k: Tensor) -> Tensor:
    """A point of each of the given parts of a mixture."""
    noise = torch.randn(len(k), mixture.means.shape[1], dtype=torch.float64)
    return mixture.means[k] + mixture.stds[k, None] * noise


def originals_method(model: Callable[..., Tensor], x: Tensor) -> tuple[Tensor, int]:
    """(log-likelihood, model calls)."""
    probe = torch.randint(0, 2, x.shape).double() * 2 - 1

    def slope(sigma: float, state: np.ndarray) -> np.ndarray:
        at = torch.from_numpy(state[: x.numel()]).view_as(x).requires_grad_()
        d = (at - model(at, at.new_full((len(x),), sigma))) / sigma
        (gradient,) = torch.autograd.grad(d, at, probe)
        return torch.cat([d.detach().flatten(), (probe * gradient).sum(1)]).numpy()

    start = np.concatenate([x.flatten().numpy(), np.zeros(len(x))])
    solution = solve_ivp(slope, (LOW, HIGH), start, method='RK45', atol=1e-4, rtol=1e-4)
    latent, divergence = (
        torch.from_numpy(solution.y[: x.numel(), -1]).view_as(x),
        torch.from_numpy(solution.y[x.numel() :, -1]),
    )
    return torch.distributions.Normal(0.0, HIGH).log_prob(latent).sum(1) + divergence, solution.nfev


def likelihood() -> None:
    """Prints the table of errors against model calls, and how often standard errors cover."""
    torch.manual_seed(0)
    methods: dict[str, Callable[[Any, Tensor], tuple[Tensor, int]]] = {
        "the original's": originals_method
    }

    def ours(**options: Any) -> Callable[[Any, Tensor], tuple[Tensor, int]]:
        def run(model: Any, x: Tensor) -> tuple[Tensor, int]:
            log_prob, info = sampling.log_likelihood(model, x, LOW, HIGH, **options)
            return log_prob, info['fevals']

        return run

    methods['adaptive, one fixed probe (default)'] = ours()
    for steps in 8, 16, 32, 64:
        methods[f'steps={steps}'] = ours(steps=steps, data_std=0.5)
    methods['steps=32, data_std=0'] = ours(steps=32)
    methods['steps=32, 4 probes'] = ours(steps=32, probes=4, data_std=0.5)
    for steps in 8, 16, 32, 64:
        methods[f'steps={steps}, exact trace'] = ours(steps=steps, trace='exact', data_std=0.5)
    cases = {
        **problems(),
        **{f'{name} (held out)': case for name, case in more_problems(POINTS).items()},
    }
    print('| method | ' + ' | '.join(cases) + ' |\n|---|' + '---|' * len(cases))
    for name, method in methods.items():
        cells = []
        for model, x in cases.values():
            log_prob, calls = method(model, x)
            error = ((log_prob - model.log_prob(x, LOW)) / x.shape[1]).square().mean().sqrt().item()
            cells.append(f'{error:.1e} ({calls})')
        print(f'| {name} | ' + ' | '.join(cells) + ' |', flush=True)
    coverage()


def coverage(seed: int = 1) -> None:
    """Print how often standard errors and intervals of log-likelihood cover, of 1,000 points
    each.
    """
    torch.manual_seed(seed)
    cases, held_out = problems(1000), more_problems(1000)
    print('\n| problem | method | within 2 standard errors | in the interval |\n|---|---|---|---|')
    options: list[dict[str, Any]] = [
        {'steps': 32, 'probes': 2, 'data_std': 0.5},
        {'steps': 32, 'probes': 4, 'data_std': 0.5},
        {'probes': 8},
    ]
    for name, (model, x) in {**cases, **held_out}.items():
        if name == 'diagonal Gaussian':  # its probes leave no error
            continue
        for each in options:
            log_prob, info = sampling.log_likelihood(model, x, LOW, HIGH, **each)
            true, (low, high) = model.log_prob(x, LOW), info['interval']
            near = ((log_prob - true).abs() < 2 * info['stderr']).double().mean().item()
            inside = ((low <= true) & (true <= high)).double().mean().item()
            suffix = ' (held out)' * (name in held_out)
            method = ('steps=32' if 'steps' in each else 'adaptive') + f', {each["probes"]} probes'
            print(f'| {name}{suffix} | {method} | {near:.1%} | {inside:.1%} |', flush=True)


def commuting(n: int, d: int) -> tuple[Tensor, Tensor, float]:
    """Two sets of features [n, d], of as many directions as n allows, and their exact distance."""
    source = torch.Generator().manual_seed(0)
    k = min(d, n - 1)
    axes = torch.linalg.qr(torch.randn(d, k, generator=source, dtype=torch.float64))[0]
    spectra = [
        10 ** (-1.5 * torch.rand(k, generator=source, dtype=torch.float64)) for _ in range(2)
    ]
    sets = []
    for shift, spectrum in enumerate(spectra):
        z = torch.randn(n, k, generator=source, dtype=torch.float64)
        whitened = torch.linalg.qr(z - z.mean(0))[0] * math.sqrt(n - 1)
        sets.append(((whitened - whitened.mean(0)) * spectrum) @ axes.T + 0.01 * shift)
    return sets[0], sets[1], ((spectra[0] - spectra[1]) ** 2).sum().item() + d * 1e-4


def by_square_root(x: Tensor, y: Tensor) -> float:
    """Through scipy's square root of the product of the covariances, in float64."""
    a, b = torch.cov(x.T).cpu().numpy(), torch.cov(y.T).cpu().numpy()
    root = sqrtm(a @ b)
    return (
        (x.mean(0) - y.mean(0)).square().sum().item()
        + np.trace(a)
        + np.trace(b)
        - 2 * np.trace(root).real
    )


def frechet(n: int, d: int, device: str) -> None:
    """Prints times and errors."""
    x, y, exact = commuting(n, d)
    x, y = x.to(device), y.to(device)
    methods: dict[str, Callable[[Tensor, Tensor], float]] = {
        'factors of features (fid)': lambda x, y: evaluation.fid(x, y).item(),
        'factors of moments (frechet_distance)': lambda x, y: evaluation.frechet_distance(
            evaluation.Moments.of(x), evaluation.Moments.of(y)
        ).item(),
        "scipy's sqrtm": by_square_root,
    }
    print(
        f'\n{n} features of {d} numbers on {device}, {torch.get_num_threads()} threads, exact '
        f'distance {exact:.4f}'
    )
    print('| method | seconds | relative error | distance of a set to itself |\n|---|---|---|---|')
    for name, method in methods.items():
        start = time.perf_counter()
        distance = method(x, y)
        seconds = time.perf_counter() - start
        print(
            f'| {name} | {seconds:.1f} | {abs(distance / exact - 1):.1e} | {method(x, x):.1e} |',
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--part', choices=('likelihood', 'coverage', 'frechet', 'both'), default='both'
    )
    parser.add_argument(
        '--seed', type=int, default=1, help='of the points and probes of the coverage part'
    )
    parser.add_argument('--features', type=int, default=2048)
    parser.add_argument('--samples', type=int, default=5000)
    parser.add_argument(
        '--device', default='cpu', help='cpu, cuda (default: cpu); of the Frechet part'
    )
    args = parser.parse_args()
    if args.part in ('likelihood', 'both'):
        likelihood()
    if args.part == 'coverage':
        coverage(args.seed)
    if args.part in ('frechet', 'both'):
        frechet(args.samples, args.features, args.device)


if __name__ == '__main__':
    main()
