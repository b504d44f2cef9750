"""How near samplers come to the end of the probability flow in a given number of model calls.

    python benchmarks/quality.py [--checkpoint runs/demo] [--items 64] [--calls 5,8,10,15,20] [--device cpu]

The rms distance over all items between a run and a converged one (exp_ab of order 3 in 300 Karras steps down to 0.001, then to 0)
from the same noise, on an 8-dimensional mixture of Gaussians with its exact denoiser and, with --checkpoint, on a trained network
of digits (20 items, each class in turn). Every method, with and without the analytical first step, walks every schedule of a set;
shown are, for each number of
calls, the methods with the schedule that suits each problem best, and what K.sample takes by itself, whose schedule is fixed.
"""
from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import k_diffusion as K
from k_diffusion import sampling
from k_diffusion.denoisers.analytic import Mixture
from k_diffusion.generation import plan

METHODS: list[tuple[str, dict[str, Any]]] = [
    ('euler', {}), ('dpmpp_2m', {}), ('uni_pc', {'order': 2}), ('uni_pc', {'order': 3}), ('uni_pc_bh2', {'order': 2}),
    ('uni_pc_bh2', {'order': 3}), ('deis', {'order': 2}), ('deis', {'order': 3}), ('deis', {'order': 4}), ('ipndm', {'order': 2}),
    ('ipndm', {'order': 3}), ('ipndm', {'order': 4}), ('ipndm_v', {}), ('dpmpp_3m', {}), ('gradient_estimation', {})]


class Problem:
    """A denoiser, noises at the highest level, and where the flow leads them."""

    def __init__(self, model: Callable[..., Tensor], x: Tensor, high: float, cond: dict[str, Tensor]) -> None:
        self.model, self.x, self.high, self.cond = model, x * high, high, cond
        fine = sampling.get_sigmas_karras(300, 0.001, high)
        self.end = sampling.sample_exp_ab(model, self.x, fine, cond, disable=True, startup='res_2s')

    def distance(self, sampler: Any, sigmas: Tensor, options: dict[str, Any]) -> float:
        """The rms distance to the end over items and elements."""
        out = sampling.find_sampler(sampler).function(self.model, self.x, sigmas, self.cond, disable=True, **options)
        return (out - self.end).double().square().mean().sqrt().item()


def problems(checkpoint: str | None, items: int, device: str) -> dict[str, Problem]:
    """The mixture, and the network where one is given."""
    source = torch.Generator().manual_seed(8)
    means = torch.randn(8, 8, generator=source, dtype=torch.float64)
    stds = 0.05 + 0.35 * torch.rand(8, generator=source, dtype=torch.float64)
    noise = torch.Generator().manual_seed(0)
    x = torch.randn(items, 8, generator=noise, dtype=torch.float64).to(device)
    found = {'mixture, 8-d': Problem(Mixture(means.to(device), stds.to(device)), x, 80., {})}
    if checkpoint is not None:
        denoiser, config = K.load_model(checkpoint, device)
        model = config['model']
        x = torch.randn(20, model['input_channels'], *model['input_size'], generator=torch.Generator().manual_seed(0)).to(device)
        cond = {'class_cond': torch.arange(20, device=device) % config['dataset']['num_classes']}
        found['network'] = Problem(denoiser, x, model['sigma_max'], cond)
    return found


def schedules(n: int, high: float) -> list[Tensor]:
    """The schedules to choose from, of n levels before 0."""
    lows = (0.002, 0.01, 0.02, 0.03, 0.05, 0.08)
    karras = [sampling.get_sigmas_karras(n, low, high, rho) for low in lows for rho in (3., 5., 7., 9.)]
    others = [make(n, low, high) for low in lows for make in (sampling.get_sigmas_exponential, sampling.get_sigmas_kl_optimal)]
    return karras + others


def shown(words: str, distances: list[float]) -> str:
    mean = math.exp(sum(map(math.log, distances)) / len(distances))
    return f'| {words} | ' + ' | '.join(f'{d:.4f}' for d in distances) + f' | {mean:.4f} |'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--checkpoint', help='of a class-conditional model')
    parser.add_argument('--items', type=int, default=64)
    parser.add_argument('--calls', default='5,8,10,15,20')
    parser.add_argument('--device', default='cpu')
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = problems(args.checkpoint, args.items, args.device)
    for calls in map(int, args.calls.split(',')):
        print(f'\n| {calls} model calls | ' + ' | '.join(found) + ' | geometric mean |\n' + '|---' * (len(found) + 2) + '|')
        rows = []
        for name, options in METHODS:
            for afs in (None, True):
                best = [min(p.distance(name, s, {**options, 'afs': afs}) for s in schedules(calls + bool(afs), p.high))
                        for p in found.values()]
                rows.append((math.prod(best), shown(name + ''.join(f' {v}' for v in options.values()) + ' +afs' * bool(afs), best)))
        print('\n'.join(row for _, row in sorted(rows)[:8]))
        planned = [plan(p.model, calls, None, None, None, p.high, {}) for p in found.values()]
        print(shown('K.sample, schedule fixed', [p.distance(sampler, sigmas, dict(options))
                                                 for p, (sigmas, sampler, options) in zip(found.values(), planned)]))


if __name__ == '__main__':
    main()
