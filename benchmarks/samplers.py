"""What samplers cost beside their model: time per model call with a free denoiser, as a ratio to a minimal loop of Python floats.

    python benchmarks/samplers.py [--steps 30] [--rounds 15] [--shape 1,4,64,64] [--shape 16,4,64,64]

The minimal loop is x = x + (x - D) * c. All are run in turn within each round, one thread, and the fastest round of each counts.
"""
from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from k_diffusion import sampling


def minimal_loop(model: Callable[..., Tensor], x: Tensor, sigmas: list[float]) -> Tensor:
    """Euler with Python floats and nothing else."""
    for sigma, sigma_next in pairwise(sigmas):
        denoised = model(x, sigma)
        x = x + (x - denoised) * ((sigma_next - sigma) / sigma)
    return x


def candidates(x: Tensor, sigmas: Tensor, steps: int) -> dict[str, Callable[..., object]]:
    """Every sampler by name, and the noise of 2M SDE in its kinds; each takes the model."""
    runs: dict[str, Callable[..., object]] = {'minimal loop': lambda model: minimal_loop(model, x, sigmas.tolist())}
    low, high = sigmas[-2].item(), sigmas[0].item()
    for name, entry in sampling.SAMPLERS.items():
        given = {'sigmas': sigmas, 'sigma_min': low, 'sigma_max': high, 'n': steps}
        options = {key: given[key] for key in entry.takes}
        runs[name] = lambda model, entry=entry, options=options: entry.function(model, x, disable=True, **options)
    for kind, noise in {'iid': lambda: sampling.default_noise_sampler(x),
                        'per item': lambda: sampling.seeded_noise_sampler(x, range(len(x)))}.items():
        runs[f'dpmpp_2m_sde, {kind}'] = lambda model, noise=noise: sampling.sample_dpmpp_2m_sde(
            model, x, sigmas, disable=True, noise_sampler=noise())
    return runs


def wait(device: str) -> None:
    """Until the device has done what it was given."""
    if device != 'cpu':
        torch.accelerator.synchronize()


def measure(shape: tuple[int, ...], steps: int, rounds: int, device: str) -> dict[str, tuple[float, int]]:
    """Seconds per model call and the number of calls, by name."""
    x = torch.randn(shape) * 14.6
    sigmas = sampling.get_sigmas_karras(steps, 0.0292, 14.6146)
    free = torch.randn(shape)
    calls = 0

    def model(x: Tensor, sigma: object) -> Tensor:
        nonlocal calls
        calls += 1
        return free

    best: dict[str, tuple[float, int]] = {}
    for _ in range(rounds):
        for name, run in candidates(x, sigmas, steps).items():
            wait(device)
            calls, start = 0, time.perf_counter()
            run(model)
            wait(device)
            seconds = (time.perf_counter() - start) / calls
            best[name] = min(best.get(name, (seconds, calls)), (seconds, calls))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--steps', type=int, default=30)
    parser.add_argument('--rounds', type=int, default=15)
    parser.add_argument('--shape', action='append', help='of x, comma-separated; may be given several times')
    parser.add_argument('--device', default='cpu', help='cpu, cuda, mps (default: cpu)')
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_default_device(args.device)
    shapes = [tuple(map(int, shape.split(','))) for shape in args.shape or ['1,4,64,64', '16,4,64,64']]
    tables = [measure(shape, args.steps, args.rounds, args.device) for shape in shapes]
    print('| sampler | model calls |' + ''.join(f' {"x".join(map(str, shape))} |' for shape in shapes))
    print('|---|---|' + '---|' * len(shapes))
    for name, (_, calls) in tables[0].items():
        ratios = [table[name][0] / table['minimal loop'][0] for table in tables]
        print(f'| {name} | {calls} |' + ''.join(f' {ratio:.1f} |' for ratio in ratios))
    print('Ratios of the time per model call; the minimal loop took '
          + ' and '.join(f'{1e6 * table["minimal loop"][0]:.0f} us' for table in tables) + ' a call.')


if __name__ == '__main__':
    main()
