"""Measure the cost of samplers beside their model.

The time of each model call with a free denoiser, relative to a minimal loop of Python floats.

    python benchmarks/samplers.py [--steps 30] [--rounds 15] [--shape 1,4,64,64]
        [--shape 16,4,64,64]

The minimal loop is x = x + (x - D) * c. All are run in turn within each round, eight times each,
one thread, and the fastest run of each counts. Weights that do not depend on x are kept from run to
run; the column "first" has the first run of a schedule, which computes them. Live tensors: those of
x's size, x and the model's answer included, that a model call finds alive, at most; for 10 and 80
steps.
"""

from __future__ import annotations

import argparse
import gc
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


class Free:
    """A denoiser that costs nothing, guided or not; it counts its calls."""

    def __init__(self, answer: Tensor) -> None:
        self.answer, self.calls = answer, 0

    def __call__(self, x: Tensor, sigma: object) -> Tensor:
        self.calls += 1
        return self.answer

    def pair(self, x: Tensor, sigma: object) -> tuple[Tensor, Tensor]:
        return self(x, sigma), self.answer


def candidates(x: Tensor, sigmas: Tensor, steps: int) -> dict[str, Callable[..., object]]:
    """Every sampler by name, and the noise of 2M SDE in its kinds; each takes the model."""
    runs: dict[str, Callable[..., object]] = {
        'minimal loop': lambda model: minimal_loop(model, x, sigmas.tolist())
    }
    low, high = sigmas[-2].item(), sigmas[0].item()
    for name, entry in sampling.SAMPLERS.items():
        arguments = {'sigmas': sigmas, 'sigma_min': low, 'sigma_max': high, 'n': steps}
        options = {key: arguments[key] for key in entry.takes}
        runs[name] = lambda model, entry=entry, options=options: entry.function(
            model, x, disable=True, **options
        )
    for kind, noise in {
        'iid': lambda: sampling.default_noise_sampler(x),
        'per item': lambda: sampling.seeded_noise_sampler(x, range(len(x))),
    }.items():
        runs[f'dpmpp_2m_sde, {kind}'] = lambda model, noise=noise: sampling.sample_dpmpp_2m_sde(
            model, x, sigmas, disable=True, noise_sampler=noise()
        )
    return runs


def wait(device: str) -> None:
    """Until the device has done what it was given."""
    if device != 'cpu':
        torch.accelerator.synchronize()


def measure(
    shape: tuple[int, ...], steps: int, rounds: int, device: str
) -> dict[str, tuple[float, float, int]]:
    """Seconds per model call, those of the first run, and the number of calls, by name."""
    x = torch.randn(shape, device=device) * 14.6
    model = Free(torch.randn(shape, device=device))
    times: dict[str, list[float]] = {}
    calls: dict[str, int] = {}
    for i in range(rounds):
        sigmas = sampling.get_sigmas_karras(
            steps, 0.0292, 14.6146 + (i == 0)
        )  # the first round's weights serve no other
        for name, run in candidates(x, sigmas, steps).items():
            for _ in range(
                8 if i else 1
            ):  # the first ones find the caches as another sampler left them
                wait(device)
                model.calls, start = 0, time.perf_counter()
                run(model)
                wait(device)
                calls[name] = model.calls
                times.setdefault(name, []).append((time.perf_counter() - start) / model.calls)
    return {name: (min(seconds[1:]), seconds[0], calls[name]) for name, seconds in times.items()}


class Counting(Free):
    """A denoiser with a new answer each time, which counts the tensors of that size that are
    alive.
    """

    most = 0

    def __call__(self, x: Tensor, sigma: object) -> Tensor:
        alive = {
            t.data_ptr()
            for t in gc.get_objects()
            if type(t) is Tensor and t.numel() == self.answer.numel()
        }
        self.most = max(self.most, len(alive - {self.answer.data_ptr()}) + 1)
        return self.answer.clone()


def live_tensors(name: str, steps: int) -> int:
    """How many tensors of x's size a model call of a sampler has alive at most, x and the answer
    included.
    """
    model = Counting(torch.randn(1, 1031))
    candidates(torch.randn(1, 1031), sampling.get_sigmas_karras(steps, 0.0292, 14.6146), steps)[
        name
    ](model)
    return model.most


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--steps', type=int, default=30)
    parser.add_argument('--rounds', type=int, default=15)
    parser.add_argument(
        '--shape', action='append', help='of x, comma-separated; may be given several times'
    )
    parser.add_argument('--device', default='cpu', help='cpu, cuda, mps (default: cpu)')
    args = parser.parse_args()
    torch.set_num_threads(1)
    shapes = [
        tuple(map(int, shape.split(','))) for shape in args.shape or ['1,4,64,64', '16,4,64,64']
    ]
    tables = [measure(shape, args.steps, args.rounds, args.device) for shape in shapes]
    print(
        '| sampler | model calls |'
        + ''.join(f' {"x".join(map(str, shape))} | first |' for shape in shapes)
        + ' live tensors |'
    )
    print('|---|---|' + '---|---|' * len(shapes) + '---|')
    floors = [table['minimal loop'][0] for table in tables]
    for name, (_, _, calls) in tables[0].items():
        ratios = [
            f' {table[name][0] / floor:.1f} | {table[name][1] / floor:.1f} |'
            for table, floor in zip(tables, floors)
        ]
        print(
            f'| {name} | {calls} |'
            + ''.join(ratios)
            + f' {live_tensors(name, 10)}, {live_tensors(name, 80)} |'
        )
    print(
        'Ratios of the time per model call; the minimal loop took '
        + ' and '.join(f'{1e6 * floor:.0f} us' for floor in floors)
        + ' a call.'
    )


if __name__ == '__main__':
    main()
