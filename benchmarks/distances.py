"""How near K.sample comes to the end of the probability flow, against published samplers on
published schedules.

    python benchmarks/distances.py [--flows network,vectors] [--calls 5,8,10,15,20] [--probe]
        [--calibrated]

Fifteen flows (_flows.py), three of them kept out of every choice made in the package. A cell is rms
/ median over the items of their rms distance from a fine run. Every rival ends at the denoiser's
own sigma_min and then denoises. Which rival is the best on a flow is decided on other noises than
those shown, once by the rms and once by the median. A ratio is ours over that rival's, 0.0005 added
to both: an eighth of a grey level of 255 counts as nothing.

Last come ratios to the best single rival for a number of calls: the one pair of a method and a
schedule whose worst ratio to the best of each flow is the least, on the other noises. That is what
one can take without knowing which flow it is.

--probe: K.sample after K.probe on sixteen noises of its own. --calibrated: a calibrated solver in
place of K.sample, up to 10 calls.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from _flows import CACHE, Flow, flows, statistics

import k_diffusion as K
from k_diffusion.generation import plan
from k_diffusion.sampling.calibration.published import Published
from k_diffusion.sampling.calibration.reference_runs import Teacher

FLOOR = 5e-4
Pair = tuple[float, float]  # by rms, by median
MULTISTEP = [
    ('ipndm', {'order': 2}),
    ('ipndm', {'order': 3}),
    ('ipndm', {'order': 4}),
    ('zeab', {'order': 2}),
    ('zeab', {'order': 3}),
    ('zeab', {'order': 4}),
    ('deis', {'order': 2}),
    ('deis', {'order': 3}),
]
DATA = [
    ('dpmpp_2m', {}),
    ('uni_pc', {'order': 2}),
    ('uni_pc', {}),
    ('uni_pc_bh2', {'order': 2}),
    ('uni_pc_bh2', {}),
]
SCHEDULES: dict[str, tuple[str, dict[str, float]]] = {
    'karras': ('karras', {'rho': 7.0}),
    'exponential': ('exponential', {}),
    'polyexponential': ('polyexponential', {'rho': 0.7}),
}


class Rival(NamedTuple):
    """A published method with a published schedule."""

    sampler: str
    options: tuple[tuple[str, Any], ...]
    schedule: str

    def __str__(self) -> str:
        return ' '.join(
            [
                self.sampler,
                *(f'{value}' if name == 'order' else name for name, value in self.options),
                self.schedule,
            ]
        )


def rivals() -> Iterator[Rival]:
    """Multistep methods on the noise with and without an analytic first step, those on the data
    on three schedules.
    """
    for sampler, options in MULTISTEP:
        yield Rival(sampler, tuple(options.items()), 'karras')
        yield Rival(sampler, (*options.items(), ('afs', True)), 'karras')
    for schedule in SCHEDULES:
        yield from (Rival(sampler, tuple(options.items()), schedule) for sampler, options in DATA)
    yield Rival('dpmpp_3m', (), 'karras')
    yield Rival('heun', (), 'karras')


def rival_distances(
    flow: Flow, key: str, rival: Rival, calls: int, cache: Path
) -> tuple[float, float]:
    """(rms, median) of a rival in so many model calls, kept in the cache."""
    question = repr((flow.name, flow.items, key, calls, str(rival))).encode()
    path = cache / f'rivals-{hashlib.sha256(question).hexdigest()[:16]}.json'
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(run_rival(flow, key, rival, calls, cache)))
    rms, median = json.loads(path.read_text())
    return rms, median


def run_rival(flow: Flow, key: str, rival: Rival, calls: int, cache: Path) -> tuple[float, float]:
    """(rms, median) of a rival; heun takes half as many steps."""
    name, spacing = SCHEDULES[rival.schedule]
    steps = (calls + 1) // 2 if rival.sampler == 'heun' else calls + ('afs' in dict(rival.options))
    sigmas = K.schedules.SCHEDULES[name](
        steps, float(flow.model.sigma_min), float(flow.model.sigma_max), **spacing
    )
    return statistics(
        flow.distances(key, rival.sampler, sigmas, dict(rival.options), cache, plain=True)
    )


def our_distances(flow: Flow, calls: int, cache: Path) -> tuple[float, float]:
    """(rms, median) of what K.sample does."""
    sigmas, sampler, options, _ = plan(flow.model, calls, None, None, None, None, {})
    return statistics(flow.distances('test', sampler, sigmas, dict(options), cache))


def calibrated_distances(flow: Flow, calls: int, cache: Path) -> tuple[float, float]:
    """(rms, median) of a solver fitted to the flow on noises of its own, with the least noises that
    `calibrate` takes: 16, and 64 where an item has fewer than 256 entries; 48 more choose.
    """
    fitted = 16 if math.prod(flow.shape) >= 256 else 64
    own = replace(flow, items=fitted + 48)
    x, cond, low, high = (
        own.noise('fit'),
        own.cond(own.items),
        float(flow.model.sigma_min),
        float(flow.model.sigma_max),
    )
    teacher = Teacher(flow.model, x, low, high, cond, tested=fitted)
    sigmas, sampler, options, _ = plan(flow.model, calls, None, None, None, None, {})
    recipe = Published(sampler, tuple(sigmas.double().tolist()), options)
    calibration = K.sampling.calibrate(
        flow.model, x, high, low, calls, cond, held_out=48, teacher=teacher, recipes=[recipe]
    )
    if calibration.recipe is not None:
        print(
            f'{flow.name}, {calls} calls: no fit was nearer; kept {calibration.recipe}', flush=True
        )
    return statistics(flow.distances('test', calibration.sampler(), None, {}, cache))


def probe(flow: Flow) -> None:
    """Let K.sample know what is best on a flow, by noises that are neither the rivals' nor
    shown.
    """
    flow.model.__dict__['probe'] = K.probe(
        flow.model, [16, *flow.shape], cond=flow.cond(16), seed=99
    )


def ratio(ours: float, best: float) -> float:
    return (ours + FLOOR) / (best + FLOOR)


def compare(
    flow: Flow, calls: list[int], cache: Path, how: str
) -> tuple[dict[int, Pair], list[Pair]]:
    """Print the lines of a flow; return our distances by calls, and the ratios to the best."""
    distances, ratios = {}, []
    for n in calls:
        by_rival = {rival: rival_distances(flow, 'choose', rival, n, cache) for rival in rivals()}
        by_rms, by_median = (min(by_rival, key=lambda rival: by_rival[rival][i]) for i in (0, 1))
        best = (
            rival_distances(flow, 'test', by_rms, n, cache)[0],
            rival_distances(flow, 'test', by_median, n, cache)[1],
        )
        ours = (calibrated_distances if how == 'calibrated' else our_distances)(flow, n, cache)
        distances[n] = ours
        ratios.append((ratio(ours[0], best[0]), ratio(ours[1], best[1])))
        print(
            f'| {flow.name}{" (kept out)" if flow.kept_out else ""}{how and f", {how}"} | {n} '
            f'| {ours[0]:.4f} / {ours[1]:.4f} | {best[0]:.4f} / {best[1]:.4f} '
            f'| {ratios[-1][0]:.2f} / {ratios[-1][1]:.2f} | {by_rms}; {by_median} |',
            flush=True,
        )
    return distances, ratios


def compare_single(
    tested: list[Flow], n: int, cache: Path, ours: dict[str, dict[int, Pair]]
) -> None:
    """Print the ratios of all flows to the single rival whose worst ratio is the least."""
    choices = []
    for i in (0, 1):
        worst = dict.fromkeys(rivals(), 0.0)
        for flow in tested:
            values = {r: rival_distances(flow, 'choose', r, n, cache)[i] for r in worst}
            least = min(values.values())
            worst = {r: max(w, ratio(values[r], least)) for r, w in worst.items()}
        choices.append(min(worst, key=lambda rival: worst[rival]))
    for flow in tested:
        best = [rival_distances(flow, 'test', r, n, cache)[i] for i, r in enumerate(choices)]
        pair = ' / '.join(f'{ratio(o, b):.2f}' for o, b in zip(ours[flow.name][n], best))
        print(f'| {flow.name} | {n} | {pair} | {choices[0]}; {choices[1]} |', flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--flows',
        default='',
        help='comma-separated parts of the names of those to run (default: all)',
    )
    parser.add_argument('--calls', default='5,8,10,15,20')
    parser.add_argument('--probe', action='store_true', help='probe each flow first')
    parser.add_argument(
        '--calibrated', action='store_true', help='fit a solver to each flow; up to 10 calls'
    )
    parser.add_argument(
        '--cache', type=Path, default=CACHE, help='where networks and fine runs are kept'
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter('ignore')
    how = 'calibrated' if args.calibrated else 'probed' if args.probe else ''
    calls = [int(n) for n in args.calls.split(',') if int(n) <= 10 or not args.calibrated]
    print(
        f'| flow | calls | {how or "K.sample"} | best published | ratio | which '
        '|\n|---|---|---|---|---|---|'
    )
    worst: dict[bool, list[Pair]] = {False: [], True: []}
    tested = flows(args.flows.split(','), args.cache)
    ours: dict[str, dict[int, Pair]] = {}
    for flow in tested:
        if args.probe:
            probe(flow)
        ours[flow.name], ratios = compare(flow, calls, args.cache, how)
        worst[flow.kept_out] += ratios
    for kept_out, pairs in worst.items():
        if pairs:
            print(
                f'{"kept out" if kept_out else "others"}: worst ratio '
                f'{max(r for r, _ in pairs):.2f} by rms, '
                f'{max(m for _, m in pairs):.2f} by median'
            )
    print('\n| flow | calls | ratio to the single best | which |\n|---|---|---|---|')
    for n in calls:
        compare_single(tested, n, args.cache, ours)


if __name__ == '__main__':
    main()
