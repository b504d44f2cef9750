"""Skipped model calls: predicted answers in a long run, compared with fewer steps of the same and
of other solvers.

    python benchmarks/skipping.py [--problem held] [--rule noise] [--items 16]

A rule answers some calls of a sampler from earlier real ones, each item for itself, and the number
of calls is the mean over the items. `change` keeps v - x_t of the flow, x_t = x / (1 + sigma) and v
= noise - data, and skips while the accumulated relative change of v stays below the tolerance
(EasyCache, arXiv:2507.02860). The others predict D, and skip where the error that the last
prediction turned out to have, grown with the distance in log sigma, stays below the tolerance:
`noise` keeps (x - D) / sigma, `linear` and `quadratic` extrapolate D over log sigma (as SADA,
arXiv:2507.17135, and Spectrum, arXiv:2603.01623, do with other rules). At equal calls (between
whole numbers: interpolated) stand the same solver on the same schedule with fewer steps, the best
of all solvers and schedules here, and what K.sample takes. The tolerance and the schedule of a rule
are the best in hindsight, too.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from _flows import Pictures, pictures, vectors
from torch import Tensor

from k_diffusion import sampling
from k_diffusion.core.random import derive_seed, generator, randn_items
from k_diffusion.core.tensors import append_dims
from k_diffusion.denoisers.analytic import Mixture
from k_diffusion.generation import plan
from k_diffusion.sampling.calibration.reference_runs import Teacher

HIGH, FEWEST, MOST = 80.0, 5, 30
SOLVERS: list[tuple[str, dict[str, Any]]] = [
    ('dpmpp_2m', {}),
    ('ipndm', {'order': 3}),
    ('deis', {}),
]
SCHEDULES: dict[str, Callable[[int], Tensor]] = {
    'karras': lambda n: sampling.get_sigmas_karras(n, 0.02, HIGH),
    'exponential': lambda n: sampling.get_sigmas_exponential(n, 0.02, HIGH),
}
RULES = {
    'change': (0.02, 0.05, 0.1, 0.2),
    'noise': (0.003, 0.01, 0.03, 0.1),
    'linear': (0.001, 0.003, 0.01, 0.03),
    'quadratic': (0.001, 0.003, 0.01, 0.03),
}
#: How many real calls a rule needs, which is the order in which its error grows, too.
NEEDED = {'change': 2, 'noise': 1, 'linear': 2, 'quadratic': 3}


def problems() -> dict[str, tuple[Callable[..., Tensor], tuple[int, ...], torch.dtype]]:
    """Name -> (denoiser, shape, dtype); the rules were looked at on the first two."""
    frequency = torch.fft.fftfreq(16)
    radius = (frequency[:, None] ** 2 + frequency[None] ** 2).sqrt().clamp_min(1 / 16)
    smooth = torch.fft.ifft2(
        torch.fft.fft2(torch.randn(16, 3, 16, 16, generator=generator(9, 'p2'))) / radius**2
    ).real
    means = torch.randn(12, 16, dtype=torch.float64, generator=generator(3, 'm'))
    return {
        'mixture, 8-d': (vectors('cpu'), (8,), torch.float64),
        'mixture, 3x32x32': (pictures('cpu'), (3, 32, 32), torch.float32),
        'mixture, 16-d (held out)': (
            Mixture(means, torch.full((12,), 0.2, dtype=torch.float64)),
            (16,),
            torch.float64,
        ),
        '1/f^2, 3x16x16 (held out)': (
            Pictures(smooth / smooth.std() * 0.5, torch.full((16,), 0.08)),
            (3, 16, 16),
            torch.float32,
        ),
    }


class Call(NamedTuple):
    """The noise levels [B], the states and the answers of a real call of each item."""

    sigma: Tensor
    x: Tensor
    denoised: Tensor


class Skipping:
    """A denoiser that answers from earlier calls where the rule lets it; the model is asked all
    the same, to count.
    """

    def __init__(self, model: Callable[..., Tensor], rule: str, tolerance: float) -> None:
        self.model, self.rule, self.tolerance = model, rule, tolerance
        self.calls: list[Call] = []  # the last real ones of each item, the newest first
        self.error = self.distance = self.rate = self.change = self.real = torch.zeros(())
        self.last: Call | None = None

    def __call__(self, x: Tensor, sigma: Tensor, **cond: Any) -> Tensor:
        sigma = sigma.expand(len(x))
        denoised = answer = self.model(x, sigma, **cond)
        real = torch.ones(len(x), dtype=torch.bool)
        if self.calls:
            guess = self.predict(x, sigma)
            real = ~self.skips(x, sigma)
            answer = torch.where(append_dims(real, x.ndim), denoised, guess)
            last = self.calls[0]
            measured = (
                rms(guess - denoised),
                (sigma / last.sigma).log().abs(),
                rms(velocity(sigma, x, denoised) - velocity(*last))
                / rms(state(sigma, x) - state(last.sigma, last.x)),
                torch.zeros(len(x)).to(x),
            )
            before = self.error, self.distance, self.rate, self.change
            self.error, self.distance, self.rate, self.change = (
                torch.where(real, a, b) for a, b in zip(measured, before)
            )
        self.remember(Call(sigma, x, denoised), real)
        self.last, self.real = Call(sigma, x, answer), self.real + real.double()
        return answer

    def skips(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Which items [B] are answered without the model."""
        if len(self.calls) < max(NEEDED[self.rule], 2) or self.last is None:
            return torch.zeros(len(x), dtype=torch.bool)
        if self.rule == 'change':
            moved = rms(state(sigma, x) - state(self.last.sigma, self.last.x))
            self.change = self.change + self.rate * moved / rms(velocity(*self.last))
            return self.change < self.tolerance
        further = (sigma / self.calls[0].sigma).log().abs() / self.distance.clamp_min(1e-12)
        return self.error * further ** NEEDED[self.rule] < self.tolerance

    def predict(self, x: Tensor, sigma: Tensor) -> Tensor:
        last = self.calls[0]
        if self.rule == 'change':
            now = state(sigma, x)
            return now - append_dims(sigma / (1 + sigma), x.ndim) * (
                velocity(*last) + now - state(last.sigma, last.x)
            )
        if self.rule == 'noise':
            return x - append_dims(sigma / last.sigma, x.ndim) * (last.x - last.denoised)
        recent, total = self.calls[: NEEDED[self.rule]], torch.zeros_like(x)
        for i, call in enumerate(recent):
            weight = torch.ones_like(sigma)
            for other in recent[:i] + recent[i + 1 :]:
                weight = weight * (sigma / other.sigma).log() / (call.sigma / other.sigma).log()
            total = total + append_dims(weight, x.ndim) * call.denoised
        return total

    def remember(self, call: Call, real: Tensor) -> None:
        older = self.calls + self.calls[-1:] if len(self.calls) < 3 else self.calls
        newer = [call, *self.calls[:2]]
        if bool(real.all()):
            self.calls = newer
        else:
            self.calls = [
                Call(*(torch.where(append_dims(real, a.ndim), a, b) for a, b in zip(new, old)))
                for new, old in zip(newer, older)
            ]


def state(sigma: Tensor, x: Tensor) -> Tensor:
    """x_t of the flow."""
    return x / append_dims(1 + sigma, x.ndim)


def velocity(sigma: Tensor, x: Tensor, denoised: Tensor) -> Tensor:
    return (x - denoised) / append_dims(sigma, x.ndim) - denoised


def rms(x: Tensor) -> Tensor:
    return x.flatten(1).square().mean(1).sqrt()


class Trial:
    """A problem with its converged ends, and what solvers reach in each number of calls."""

    def __init__(self, name: str, items: int) -> None:
        self.model, shape, dtype = problems()[name]
        self.x = (
            randn_items(shape, [derive_seed(5, name, i) for i in range(items)], 'cpu', dtype) * HIGH
        )
        self.ends = Teacher(self.model, self.x, 0.002, HIGH, {}, 1e-4).ends
        counts = range(FEWEST, MOST + 1)
        self.fixed = {
            (solver, str(options), schedule): torch.stack(
                [self.run(self.model, solver, options, make(n)) for n in counts]
            )
            for solver, options in SOLVERS
            for schedule, make in SCHEDULES.items()
        }
        self.best = torch.stack([*self.fixed.values()]).amin(0)
        plans = [plan(self.model, n, None, None, None, HIGH, {}, False) for n in counts]
        self.planned = torch.stack(
            [
                self.run(self.model, sampler, dict(options), sigmas)
                for sigmas, sampler, options in plans
            ]
        )

    def run(
        self, model: Callable[..., Tensor], sampler: Any, options: dict[str, Any], sigmas: Tensor
    ) -> Tensor:
        """(rms, median) of the distances of the items from their ends, [2]."""
        out = sampling.find_sampler(sampler).function(
            model, self.x, sigmas, disable=True, **options
        )
        distances = rms(out - self.ends).double()
        return torch.stack([distances.square().mean().sqrt(), distances.median()])

    def skipped(self, rule: str) -> Iterator[tuple[float, str, list[Tensor]]]:
        """(calls, words, distances over those of the same solver, the best one and K.sample) of
        each run.
        """
        for tolerance in RULES[rule]:
            for steps in 20, 40:
                for solver, options in SOLVERS:
                    for schedule, make in SCHEDULES.items():
                        model = Skipping(self.model, rule, tolerance)
                        end = self.run(model, solver, options, make(steps))
                        calls = model.real.mean().item()
                        if FEWEST <= calls < min(MOST, steps - 0.5):
                            beside = (
                                self.fixed[solver, str(options), schedule],
                                self.best,
                                self.planned,
                            )
                            words = f'{solver}, {schedule}, {steps} steps, tolerance {tolerance}'
                            yield calls, words, [end / between(each, calls) for each in beside]


def between(distances: Tensor, calls: float) -> Tensor:
    """Distances at a number of calls that is not whole, geometrically interpolated."""
    low = min(int(calls), MOST - 1)
    return torch.lerp(
        distances[low - FEWEST].log(), distances[low + 1 - FEWEST].log(), calls - low
    ).exp()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--problem', default='', help='part of the names of the problems (default: all)'
    )
    parser.add_argument(
        '--rule',
        choices=[*RULES],
        action='append',
        help='may be given several times (default: all)',
    )
    parser.add_argument('--items', type=int, default=16)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(
        '| problem | rule | calls | runs | nearer than the same solver | than the best | than '
        'K.sample '
        '| rms and median of the best run over those of the best solver | which |\n|' + '---|' * 9
    )
    for name in problems():
        if args.problem not in name:
            continue
        trial = Trial(name, args.items)
        for rule in args.rule or RULES:
            runs = [*trial.skipped(rule)]
            for low, high in (5, 8), (8, 12), (12, 17), (17, 24):
                here = [run for run in runs if low <= run[0] < high]
                if here:
                    wins = ' | '.join(
                        str(sum(bool((run[2][i] < 0.98).all()) for run in here)) for i in range(3)
                    )
                    calls, words, (_, over, _) = min(here, key=lambda run: run[2][1].max().item())
                    print(
                        f'| {name} | {rule} | {low} to {high} | {len(here)} | {wins} '
                        f'| {over[0]:.2f}, {over[1]:.2f} | {words}: {calls:.1f} calls |',
                        flush=True,
                    )


if __name__ == '__main__':
    main()
