"""The cost of the samplers inside other programs: model calls through a host's interface against
the plain sampler.

    python benchmarks/hosts.py [--shape 2 4 64 64] [--steps 30] [--samplers euler heun ...]

The model is a multiplication, so that what is timed is the sampler. `requests` is the coroutine,
`diffusers` is set_timesteps, scale_model_input and step of KDiffusionScheduler, `of which step` is
step alone. Columns are microseconds for each model call, of processor time, medians over runs that
are taken in turn, and the ratio to the plain sampler.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

import k_diffusion as K

BETAS = {'beta_start': 0.00085, 'beta_end': 0.012, 'beta_schedule': 'scaled_linear'}


def denoiser(x, sigma):
    return x * 0.5


def run_requests(name, x, sigmas):
    run = K.sampling.requests(name, x, sigmas, seed=0)
    calls = 0
    try:
        request = next(run)
        while True:
            calls += 1
            request = run.send(denoiser(request.x, request.sigma))
    except StopIteration:
        return calls


def run_scheduler(scheduler, x, steps):
    """Return the seconds in step alone."""
    scheduler.set_timesteps(steps)
    x = x * scheduler.init_noise_sigma
    inside = 0.0
    for t in scheduler.timesteps:
        output = scheduler.scale_model_input(x, t) * 0.5
        start = time.process_time()
        x = scheduler.step(output, t, x, return_dict=False)[0]
        inside += time.process_time() - start
    return inside


def measure(name, shape, steps, repeats):
    """Return the seconds of a model call: plain, by requests, by the scheduler, and in its step."""
    scheduler = K.integrations.diffusers.KDiffusionScheduler(name, 'karras', seed=0, **BETAS)
    scheduler.set_timesteps(steps)
    sigmas, x = scheduler.levels, torch.randn(shape)
    plain = K.sampling.SAMPLERS[name].function
    seconds = [[], [], [], []]
    for _ in range(repeats):
        start = time.process_time()
        plain(
            denoiser,
            x * sigmas[0].float(),
            sigmas,
            disable=True,
            **({'seed': 0} if K.sampling.SAMPLERS[name].noise else {}),
        )
        middle = time.process_time()
        calls = run_requests(name, x * sigmas[0].float(), sigmas)
        end = time.process_time()
        inside = run_scheduler(scheduler, x, steps)
        for values, value in zip(
            seconds, (middle - start, end - middle, time.process_time() - end, inside)
        ):
            values.append(value / calls)
    return [statistics.median(values) for values in seconds]


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--shape', type=int, nargs='+', default=[2, 4, 64, 64], help='of the latents'
    )
    parser.add_argument('--steps', type=int, default=30)
    parser.add_argument('--repeats', type=int, default=20)
    parser.add_argument(
        '--samplers',
        nargs='+',
        default=['euler', 'heun', 'dpmpp_2m', 'dpmpp_2m_sde', 'uni_pc', 'dpm_2', 'res_3s'],
    )
    args = parser.parse_args()
    print(
        f'{"sampler":16} {"plain":>8} {"requests":>10} {"diffusers":>11} {"of which step":>15}    '
        '(us for each model call)'
    )
    for name in args.samplers:
        plain, outside, whole, step = measure(name, args.shape, args.steps, args.repeats)
        print(
            f'{name:16} {plain * 1e6:8.0f} {outside * 1e6:6.0f} {outside / plain:.2f} '
            f'{whole * 1e6:7.0f} {whole / plain:.2f} '
            f'{step * 1e6:10.0f} {step / plain:.2f}'
        )


if __name__ == '__main__':
    main()
