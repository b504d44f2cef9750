"""How near calibrated samplers come to the end of the probability flow, against the best of the others in as many model calls.

    python benchmarks/calibrated.py [--checkpoint runs/demo] [--problems gmm8,gmmimg,digits] [--device cpu]

Three problems: gmm8, eight Gaussians in 8 dimensions; gmmimg, twenty pictures of 3x32x32 with little noise about each, a mixture
that is next to discrete; digits, a trained class-conditional network (--checkpoint), unguided. The distance is the rms over items
and entries from converged runs (tests/sampling knows the denoisers exactly); the median over items is in brackets. Every other
method, with and without the analytical first step, has its schedule chosen for each problem and number of calls, out of 26: the
five best on 32 of the noises that calibration uses are run on the test noises, and the best of them there counts. The test noises
are used for nothing else.
"""
from __future__ import annotations

import argparse
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

import k_diffusion as K
from k_diffusion import sampling
from k_diffusion.core.random import derive_seed, generator, randn_items
from k_diffusion.denoisers.analytic import Mixture
from k_diffusion.sampling.teacher import Teacher

METHODS: list[tuple[str, dict[str, Any]]] = [
    ('dpmpp_2m', {}), ('uni_pc', {}), ('uni_pc', {'order': 2}), ('uni_pc_bh2', {}), ('uni_pc_bh2', {'order': 2}), ('deis', {}),
    ('deis', {'order': 2}), ('ipndm', {}), ('ipndm', {'order': 3}), ('ipndm_v', {}), ('res_multistep', {}), ('gradient_estimation', {}),
    ('rab', {}), ('sei', {})]
CHOOSE_ON, FINALISTS = 32, 5


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


def gmm8(device: str) -> tuple[Callable[..., Tensor], tuple[int, ...], float, torch.dtype]:
    means = torch.randn(8, 8, generator=generator(1, 'gmm8'), dtype=torch.float64)
    stds = torch.logspace(math.log10(0.05), math.log10(0.5), 8, dtype=torch.float64)
    return Mixture(means.to(device), stds.to(device)), (8,), 80., torch.float64


def gmmimg(device: str) -> tuple[Callable[..., Tensor], tuple[int, ...], float, torch.dtype]:
    frequency = torch.fft.fftfreq(32)
    radius = (frequency[:, None] ** 2 + frequency[None] ** 2).sqrt().clamp_min(1 / 32)
    noise = torch.randn(20, 3, 32, 32, generator=generator(1, 'gmmimg'))
    pictures = torch.fft.ifft2(torch.fft.fft2(noise) / radius).real
    pictures = pictures / pictures.std() * 0.5
    return Pictures(pictures.to(device), torch.logspace(math.log10(0.03), math.log10(0.15), 20).to(device)), (3, 32, 32), 80., torch.float32


class Problem:
    """A denoiser, and converged runs from the noises to learn and choose from and from those to test on."""

    def __init__(self, name: str, checkpoint: str | None, device: str) -> None:
        cond: Callable[[int], dict[str, Tensor]] = lambda n: {}
        if name == 'digits':
            self.model, config = K.load_model(checkpoint, device)
            model, classes = config['model'], config['dataset']['num_classes']
            shape, high, dtype = (model['input_channels'], *model['input_size']), model['sigma_max'], torch.float32
            cond = lambda n: {'class_cond': torch.arange(n, device=device) % classes}
        else:
            self.model, shape, high, dtype = {'gmm8': gmm8, 'gmmimg': gmmimg}[name](device)
        fitted, held, tested = {'gmm8': (512, 256, 256), 'gmmimg': (96, 256, 256), 'digits': (16, 16, 64)}[name]
        self.held, self.high, self.low = held, high, 0.002
        sizes = {'calibration': fitted + held, 'test': tested}
        noises = {key: randn_items(shape, [derive_seed(7, key, i) for i in range(n)], device, dtype) * high for key, n in sizes.items()}
        self.learned, self.test = (Teacher(self.model, noises[key], self.low, high, cond(sizes[key]), tolerance)
                                   for key, tolerance in (('calibration', 1e-3), ('test', 3e-4)))
        self.chosen = self.learned.part(slice(0, min(CHOOSE_ON, fitted)))

    def distances(self, sampler: Any, sigmas: Any, options: dict[str, Any], runs: Teacher) -> Tensor:
        """The rms over the entries of each item."""
        out = sampling.find_sampler(sampler).function(self.model, runs.x, sigmas, runs.extra_args, disable=True, **options)
        return (out - runs.ends).flatten(1).square().mean(1, dtype=torch.float64).sqrt().nan_to_num(1e3)


def schedules(n: int, high: float) -> Iterator[tuple[str, Tensor]]:
    """The 26 schedules of n levels before 0, and their names."""
    for low in (0.002, 0.01, 0.03, 0.06):
        for rho in (3., 5., 7., 9.):
            yield f'karras {low} rho {rho:.0f}', sampling.get_sigmas_karras(n, low, high, rho)
        yield f'exponential {low}', sampling.get_sigmas_exponential(n, low, high)
        yield f'kl_optimal {low}', sampling.get_sigmas_kl_optimal(n, low, high)
    for low in (0.01, 0.03):
        yield f'beta {low}', sampling.get_sigmas_beta(n, low, high)


def variants(problem: Problem) -> Iterator[tuple[str, str, dict[str, Any], bool]]:
    """The methods with and without a free first step: (words, sampler, options, whether it has one)."""
    for name, options in METHODS:
        words = ' '.join([name, *map(str, options.values())])
        if name == 'sei':
            options = {'spectrum': sampling.Spectrum.of(problem.learned.ends)}
        yield words, name, options, False
        saved = {'tele': True} if name == 'sei' else {'afs': 0.5}
        yield words + (' tele' if name == 'sei' else ' +afs'), name, {**options, **saved}, True


def rms(distances: Tensor) -> float:
    return distances.square().mean().sqrt().item()


def shown(distances: Tensor) -> str:
    return f'{rms(distances):.4f} ({distances.median():.4f})'


def others(problem: Problem, calls: int) -> tuple[dict[str, Tensor], dict[tuple[str, str], float]]:
    """Each method's distances on the test noises with the schedule that suits it, and every combination's where it was chosen."""
    table, scores = {}, {}
    for words, name, options, free in variants(problem):
        tried = dict(schedules(calls + free, problem.high))
        for key, sigmas in tried.items():
            scores[words, key] = rms(problem.distances(name, sigmas, options, problem.chosen))
        finalists = sorted(tried, key=lambda key, words=words: scores[words, key])[:FINALISTS]
        table[words] = min((problem.distances(name, tried[key], options, problem.test) for key in finalists), key=rms)
    return table, scores


def calibrated(problem: Problem, calls: int) -> tuple[Tensor, str]:
    start = time.perf_counter()
    found = sampling.calibrate(problem.model, problem.learned.x, problem.high, problem.low, calls, problem.learned.extra_args,
                               held_out=problem.held, teacher=problem.learned)
    words = f'base {found.base}, {time.perf_counter() - start:.0f} s'
    return problem.distances(found.sampler(), None, {}, problem.test), words


def mean_of(values: Iterable[float]) -> float:
    """The geometric mean."""
    values = list(values)
    return math.prod(values) ** (1 / len(values))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--checkpoint', help='of a class-conditional model, for the problem digits')
    parser.add_argument('--problems', default='gmm8,gmmimg,digits')
    parser.add_argument('--calls', default='5,8,10,15,20')
    parser.add_argument('--device', default='cpu')
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter('ignore')
    names = [name for name in args.problems.split(',') if name != 'digits' or args.checkpoint]
    problems = {name: Problem(name, args.checkpoint, args.device) for name in names}
    for calls in map(int, args.calls.split(',')):
        found = {name: others(problem, calls) for name, problem in problems.items()}
        print(f'\n| {calls} model calls | ' + ' | '.join(names) + ' | geometric mean |\n' + '|---' * (len(names) + 2) + '|')
        for words in next(iter(found.values()))[0]:
            rows = [table[words] for table, _ in found.values()]
            print(f'| {words} | ' + ' | '.join(map(shown, rows)) + f' | {mean_of(map(rms, rows)):.4f} |', flush=True)
        if calls <= 10:
            ours = {name: calibrated(problem, calls) for name, problem in problems.items()}
            rows = [distances for distances, _ in ours.values()]
            print('| **calibrated** | ' + ' | '.join(map(shown, rows)) + f' | {mean_of(map(rms, rows)):.4f} |')
            best = {name: min((row for key, row in table.items() if not key.startswith(('rab', 'sei'))), key=rms)
                    for name, (table, _) in found.items()}
            ratios = [rms(best[name]) / rms(distances) for name, (distances, _) in ours.items()]
            print('| the best published one is farther by | ' + ' | '.join(f'{ratio:.1f} times' for ratio in ratios)
                  + f' | {mean_of(ratios):.1f} times |')
            print('; '.join(f'{name}: {words}' for name, (_, words) in ours.items()))
        combined = {key: mean_of(scores[key] for _, scores in found.values()) for key in next(iter(found.values()))[1]}
        best_single = sorted(combined, key=lambda key: combined[key])[:5]
        words = '; '.join(f'{" ".join(key)} {combined[key]:.4f}' for key in best_single)
        print(f'best fixed choices, where they were chosen: {words}', flush=True)


if __name__ == '__main__':
    main()
