"""How near samplers come to the end of the probability flow in a given number of model calls.

    python benchmarks/quality.py [--checkpoint runs/demo] [--calls 5,8,10,15,20] [--flows mixture,network]
        [--guidance 3 [--interval 0.3,1.2]] [--device cpu]

Three flows (_flows.py): mixtures of Gaussians in 8 dimensions and of 3x32x32 pictures, with their exact denoisers, and a trained
class-conditional network (--checkpoint). A cell is the median over the items of their rms distance from a converged run;
in brackets the rms over all items, and the share of those that ended as something else, which decides that rms. Every method, with
and without a free first step, has its schedule chosen for each flow and number of calls out of 36: the four best on other noises, by
median, are run on the test noises, and the best of them there counts. `K.sample` has a sampler and a schedule that are the same
for every flow; below the table are the best such choices, by the geometric mean. Up to 10 calls a solver is calibrated, too.
"""
from __future__ import annotations

import argparse
import math
import time
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from _flows import Ends, Flow, flows
from torch import Tensor

from k_diffusion import sampling
from k_diffusion.generation import plan

RIVALS: list[tuple[str, dict[str, Any]]] = [
    ('dpmpp_2m', {}), ('uni_pc', {'order': 2}), ('uni_pc', {}), ('uni_pc_bh2', {'order': 2}), ('uni_pc_bh2', {}), ('deis', {'order': 2}),
    ('deis', {}), ('ipndm', {'order': 2}), ('ipndm', {'order': 3}), ('ipndm', {}), ('ipndm_v', {})]
METHODS = [*RIVALS, ('res_multistep', {}), ('gradient_estimation', {}), ('rab', {}), ('sei', {})]
CHOOSE_ON, FINALISTS, MOST_CALIBRATED = 32, 4, 10


def schedules(n: int, high: float) -> Iterator[tuple[str, Tensor]]:
    """The 36 schedules of n levels before 0, and their names."""
    for low in (0.002, 0.01, 0.02, 0.04, 0.06, 0.1):
        for rho in (5., 7., 9., 12.):
            yield f'karras {low} rho {rho:.0f}', sampling.get_sigmas_karras(n, low, high, rho)
        yield f'exponential {low}', sampling.get_sigmas_exponential(n, low, high)
        yield f'kl_optimal {low}', sampling.get_sigmas_kl_optimal(n, low, high)


def variants(flow: Flow) -> Iterator[tuple[str, str, dict[str, Any], bool]]:
    """The methods with and without a free first step: (words, sampler, options, whether it has one)."""
    for name, options in METHODS:
        words = ' '.join([name, *map(str, options.values())])
        if name == 'sei':
            options = {'spectrum': sampling.Spectrum.of(flow.learned.ends)}
        yield words, name, options, False
        saved = {'tele': True} if name == 'sei' else {'afs': True}
        yield words + (' tele' if name == 'sei' else ' +afs'), name, {**options, **saved}, True


def mean_of(values: Iterable[float]) -> float:
    """The geometric mean."""
    values = list(values)
    return math.prod(values) ** (1 / len(values))


class Trial:
    """Every method and schedule on one flow in so many calls."""

    def __init__(self, flow: Flow, calls: int) -> None:
        self.flow, self.calls = flow, calls
        self.variants = {words: rest for words, *rest in variants(flow)}
        chosen = flow.learned.part(slice(0, CHOOSE_ON))
        self.seen = {(words, key): flow.distances(name, sigmas, options, chosen).median
                     for words, (name, options, free) in self.variants.items() for key, sigmas in schedules(calls + free, flow.high)}

    def fixed(self, words: str, key: str) -> Ends:
        """A method on a schedule, on the test noises."""
        name, options, free = self.variants[words]
        return self.flow.distances(name, dict(schedules(self.calls + free, self.flow.high))[key], options, self.flow.test)

    def free(self, words: str) -> Ends:
        """A method on the schedule that suits it here."""
        finalists = sorted((key for method, key in self.seen if method == words), key=lambda key: self.seen[words, key])[:FINALISTS]
        return min((self.fixed(words, key) for key in finalists), key=lambda ends: ends.median)

    def planned(self) -> Ends:
        """What K.sample does."""
        sigmas, sampler, options = plan(self.flow.model, self.calls, None, None, None, self.flow.high, {}, self.flow.guided)
        return self.flow.distances(sampler, sigmas, dict(options), self.flow.test)

    def calibrated(self) -> Ends:
        """What a solver fitted to the model does."""
        flow, start = self.flow, time.perf_counter()
        found = sampling.calibrate(flow.model, flow.learned.x, flow.high, flow.low, self.calls, flow.learned.extra_args,
                                   held_out=flow.held, teacher=flow.learned)
        print(f'(calibrated on {flow.name}: {found.base}, {time.perf_counter() - start:.0f} s)')
        return flow.distances(found.sampler(), None, {}, flow.test)


def shown(words: str, row: list[Ends]) -> str:
    return f'| {words} | ' + ' | '.join(map(str, row)) + f' | {mean_of(ends.median for ends in row):.4f} |'


def ratios(words: str, best: list[Ends], row: list[Ends]) -> str:
    by_median, by_rms = ([getattr(a, kind) / getattr(b, kind) for a, b in zip(best, row)] for kind in ('median', 'rms'))
    return f'| {words} | ' + ' | '.join(f'{m:.1f} ({r:.1f})' for m, r in zip(by_median, by_rms)) + f' | {mean_of(by_median):.2f} |'


def table(trials: list[Trial], calls: int) -> None:
    """Prints what came out."""
    print(f'\n| {calls} model calls | ' + ' | '.join(trial.flow.name for trial in trials) + ' | geometric mean |')
    print('|---' * (len(trials) + 2) + '|')
    rows = {words: [trial.free(words) for trial in trials] for words in trials[0].variants}
    for words, row in rows.items():
        print(shown(words, row), flush=True)
    rivals = [words for words in rows if words.removesuffix(' +afs') in {' '.join([name, *map(str, o.values())]) for name, o in RIVALS}]
    single = min(rivals, key=lambda words: mean_of(ends.median for ends in rows[words]))
    planned = [trial.planned() for trial in trials]
    print(shown('**K.sample**', planned))
    scores = {key: mean_of(trial.seen[key] for trial in trials) for key in trials[0].seen}
    common = sorted(scores, key=lambda key: scores[key])
    rival = next((words, key) for words, key in common if words in rivals)
    print(shown(f'best rival on one schedule: {" ".join(rival)}', [trial.fixed(*rival) for trial in trials]))
    print(shown(f'best rival, its schedules free: {single}', rows[single]))
    if calls <= MOST_CALIBRATED:
        ours = [trial.calibrated() for trial in trials]
        best = [min((rows[words][i] for words in rivals), key=lambda ends: ends.median) for i in range(len(trials))]
        print(shown('**calibrated**', ours) + '\n' + ratios('the best rival on each is farther by', best, ours))
    print('best of all on one schedule, where they were chosen: '
          + '; '.join(f'{" ".join(key)} {scores[key]:.4f}' for key in common[:6]), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--checkpoint', help='of a class-conditional model')
    parser.add_argument('--calls', default='5,8,10,15,20')
    parser.add_argument('--flows', default='', help='comma-separated parts of the names of those to run (default: all)')
    parser.add_argument('--guidance', type=float, default=1., help='classifier-free guidance of the network, which alone is run then')
    parser.add_argument('--interval', default='0,inf', help='the noise levels that guidance acts at')
    parser.add_argument('--device', default='cpu')
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter('ignore')
    low, high = map(float, args.interval.split(','))
    found = flows(args.flows.split(','), args.checkpoint, args.device, args.guidance, (low, high))
    for calls in map(int, args.calls.split(',')):
        table([Trial(flow, calls) for flow in found], calls)


if __name__ == '__main__':
    main()
