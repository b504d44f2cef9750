"""A training step of a large config on a GPU: samples per second, the share of the device's peak,
and what it spends its time on.

    python benchmarks/networks_gpu.py --peak 989e12
        [--config configs/config_256_transformer.json] [--batch-size 32] [--rounds 20]

bf16 autocast and torch.compile, as one trains; --eager leaves the compiler out. `--peak` is the
device's dense bf16 rate in floating-point operations per second; left out, the rate of large matrix
products, measured here, stands in for it. It runs on a CPU, too, which takes patience.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from _timing import wait
from torch import nn
from torch.profiler import ProfilerActivity, profile

from k_diffusion.config import load_config, make_denoiser_wrapper, make_model, sections_of
from k_diffusion.core.modules import n_params
from k_diffusion.models.sizing import sizes


def measured_peak(device: str) -> float:
    a = torch.randn(
        8192 if device == 'cuda' else 1024,
        8192 if device == 'cuda' else 1024,
        device=device,
        dtype=torch.bfloat16,
    )
    best = float('inf')
    for _ in range(10):
        wait(device)
        start = time.perf_counter()
        a @ a
        wait(device)
        best = min(best, time.perf_counter() - start)
    return 2 * len(a) ** 3 / best


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--config', default='configs/config_256_transformer.json')
    parser.add_argument('--batch-size', type=int, default=32)
    parser.add_argument('--rounds', type=int, default=20)
    parser.add_argument(
        '--peak', type=float, help='bf16 operations per second of the device (default: measured)'
    )
    parser.add_argument('--eager', action='store_true')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    args = parser.parse_args()
    config = load_config(args.config)
    config['dataset']['num_classes'] = 0
    found = sizes(sections_of(config).model)
    network: nn.Module = make_model(config).to(args.device)
    denoiser = make_denoiser_wrapper(config)(network if args.eager else torch.compile(network))
    optimizer = sections_of(config).optimizer.make(network)
    shape = [args.batch_size, config['model']['input_channels'], *config['model']['input_size']]
    x, noise = torch.randn(2, *shape, device=args.device)
    sigma = torch.rand(args.batch_size, device=args.device) + 0.1

    def step() -> None:
        with torch.autocast(args.device, torch.bfloat16):
            loss = denoiser.loss(x, noise, sigma).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    seconds = []
    for _ in range(args.rounds + 3):
        wait(args.device)
        start = time.perf_counter()
        step()
        wait(args.device)
        seconds.append(time.perf_counter() - start)
    rate = args.batch_size / statistics.median(seconds[3:])
    peak = args.peak or measured_peak(args.device)
    print(
        f'{args.config}: {n_params(network):,} parameters, {found.multiply_adds:,} multiply-adds '
        'a picture'
    )
    print(
        f'{rate:.1f} samples/s, {6 * found.multiply_adds * rate / 1e12:.2f} TFLOP/s, '
        f'{6 * found.multiply_adds * rate / peak:.1%} of '
        f'{peak / 1e12:.0f} TFLOP/s{"" if args.peak else " (measured)"}'
    )
    with profile(
        activities=[
            ProfilerActivity.CPU,
            *([ProfilerActivity.CUDA] if args.device == 'cuda' else []),
        ]
    ) as profiled:
        for _ in range(3):
            step()
        wait(args.device)
    print(
        profiled.key_averages().table(
            sort_by=f'self_{args.device}_time_total', row_limit=5, max_name_column_width=60
        )
    )


if __name__ == '__main__':
    main()
