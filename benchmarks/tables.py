"""The samplers that Runge-Kutta tables drive, at equal numbers of model calls beside multistep
methods: the rms distance from the converged end over many noises, each with the best of four
schedules.

python benchmarks/tables.py --calls 13,25,49
"""

from __future__ import annotations

import argparse
import math

from _flows import Flow, flows

from k_diffusion.sampling import find_sampler, get_sigmas_exponential, get_sigmas_karras

NAMES = [
    'ipndm_v',
    'uni_pc',
    'dpmpp_2m',
    'ralston_2s',
    'heun',
    'res_2s',
    'bogacki_shampine_3s',
    'res_3s',
    'rk4_4s',
    'rk38_4s',
    'lawson4_4s',
    'etdrk4_4s',
    'res_4s_krogstad',
    'res_5s_hochbruck_ostermann',
    'dormand_prince_6s',
    'res_6s_luan',
    'gauss_legendre_2s',
    'res_8s_luan_ostermann',
]


def best_rms(flow: Flow, name: str, calls: int) -> float:
    """Return the rms of the best schedule that spends at most so many calls, the last of them in
    the step to 0.
    """
    n = 1 + (calls - 1) // find_sampler(name).nfe
    schedules = [get_sigmas_exponential(n, low, flow.high) for low in (0.02, 0.005, 0.002)]
    return min(
        flow.distances(name, sigmas, {}, flow.test).rms
        for sigmas in [*schedules, get_sigmas_karras(n, 0.002, flow.high)]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--calls', default='13,25,49')
    parser.add_argument(
        '--flows',
        default='',
        help='comma-separated parts of the names of those to run (default: all)',
    )
    args = parser.parse_args()
    calls = [int(word) for word in args.calls.split(',')]
    for flow in flows(args.flows.split(','), None, 'cpu', 1.0, (0.0, math.inf)):
        print(f'{flow.name}: rms at {args.calls} calls')
        for name in NAMES:
            print(
                f'  {name:28}',
                *(f'{best_rms(flow, name, count):.4f}' for count in calls),
                flush=True,
            )


if __name__ == '__main__':
    main()
