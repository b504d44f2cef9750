"""Everything that wants a GPU, in one run of less than 8 minutes: correctness, speed, overhead.

    python benchmarks/gpu.py [--out gpu.json]
    python benchmarks/gpu.py --parts training --config configs/config_64_unet.json --batch-size 64

It compares every network, sampler, attention path and generator of noise with the CPU, in fp32 and
bf16; takes training steps of two configs in bf16, eager and compiled (samples/s, share of the
device's peak, memory, what they spend their time on); measures samplers beside a free denoiser, and
the way of pictures from memory to the device. It writes one JSON file and prints one table in
Markdown. On a CPU, or with --small, everything is smaller. It ends with status 1 where a comparison
fails. A part that begins after --budget seconds is left out, and named.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import samplers
import torch
from _correctness import Row, check_all
from _timing import wait
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from k_diffusion.augmentation import BatchedAugmentation
from k_diffusion.config import load_config, make_denoiser_wrapper, make_model, sections_of
from k_diffusion.core.accelerators import peak_flops
from k_diffusion.core.modules import n_params
from k_diffusion.data import Images, Loader
from k_diffusion.models.sizing import sizes

#: Configs and their batch sizes, on a GPU and in the small form.
CONFIGS = {'config_256_transformer': 32, 'config_64_unet': 64}
SMALL = {'config_demo': 4}
#: Entries of the profile that are shown.
ENTRIES = 5


def measured_peak(device: torch.device) -> float:
    """Return the operations per second of large matrix products, in bf16 or (on some CPUs) fp32."""
    side, best = 8192 if device.type == 'cuda' else 1024, float('inf')
    for dtype in (torch.bfloat16, torch.float32):
        a = torch.randn(side, side, device=device, dtype=dtype)
        for _ in range(10):
            wait(device.type)
            start = time.perf_counter()
            a @ a
            wait(device.type)
            best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best


def make_step(
    config: dict[str, Any], batch_size: int, device: torch.device, compiled: bool
) -> tuple[Callable[[], None], int]:
    """Return a training step in bf16 on fixed numbers, and the parameters of its network."""
    with torch.device(device):
        network = make_model(config)
    denoiser = make_denoiser_wrapper(config)(torch.compile(network) if compiled else network)
    optimizer = sections_of(config).optimizer.make(network)
    shape = [batch_size, config['model']['input_channels'], *config['model']['input_size']]
    x, noise = torch.randn(2, *shape, device=device)
    sigma = torch.rand(batch_size, device=device) + 0.1

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            loss = denoiser.loss(x, noise, sigma).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step, n_params(network)


def measure_training(
    name: str, batch_size: int, device: torch.device, compiled: bool, rounds: int, peak: float
) -> Row:
    """Return what training steps of a config reach and spend their time on."""
    config = load_config(name)
    config['dataset']['num_classes'] = 0
    estimate = sizes(sections_of(config).model)
    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats()
    step, parameters = make_step(config, batch_size, device, compiled)
    seconds = []
    for _ in range(rounds + 3):
        wait(device.type)
        start = time.perf_counter()
        step()
        wait(device.type)
        seconds.append(time.perf_counter() - start)
    rate = batch_size / statistics.median(seconds[3:])
    return {
        'config': name,
        'mode': 'compiled' if compiled else 'eager',
        'batch_size': batch_size,
        'parameters': parameters,
        'multiply_adds': estimate.multiply_adds,
        'first_step_seconds': seconds[0],
        'samples_per_second': rate,
        'mfu': 6 * estimate.multiply_adds * rate / peak,
        'memory_bytes': torch.cuda.max_memory_allocated() if device.type == 'cuda' else None,
        'profile': profile_entries(step, device),
    }


def profile_entries(step: Callable[[], None], device: torch.device) -> list[Row]:
    """Return the operators or kernels that take most of the time of steps, with their share."""
    on_gpu = device.type == 'cuda'
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as profiled:
        for _ in range(3):
            step()
        wait(device.type)
    key = 'self_device_time_total' if on_gpu else 'self_cpu_time_total'
    # (An operator has the time of its kernels, too, which are entries of their own.)
    times = {
        e.key: float(getattr(e, key))
        for e in profiled.key_averages()
        if (e.device_type != DeviceType.CPU) == on_gpu and not e.is_user_annotation
    }
    total = sum(times.values()) or 1.0
    largest = sorted(times, key=lambda name: -times[name])[:ENTRIES]
    return [{'name': name[:80], 'share': times[name] / total} for name in largest]


def training(args: argparse.Namespace, device: torch.device) -> list[Row]:
    """Return what training reaches, for each config, eager and compiled."""
    batch_sizes = SMALL if args.small else CONFIGS
    if args.config:
        batch_sizes = {args.config: args.batch_size or 32}
    peak = args.peak or peak_flops(device, 'bf16') or measured_peak(device)
    rows = []
    for name, batch_size in batch_sizes.items():
        for compiled in (False, True):
            if late(args, f'training {name}, {"compiled" if compiled else "eager"}'):
                continue
            size, rounds = args.batch_size or batch_size, 2 if args.small else 20
            try:
                rows.append(measure_training(name, size, device, compiled, rounds, peak))
            except Exception as error:  # (the other rows are still wanted)
                rows.append({'config': name, 'mode': 'compiled' if compiled else 'eager'})
                rows[-1]['error'] = f'{type(error).__name__}: {str(error)[:300]}'
            if device.type == 'cuda':
                torch.cuda.empty_cache()
    return rows


def overhead(args: argparse.Namespace, device: torch.device) -> list[Row]:
    """Return the seconds of each sampler for a call of a denoiser that costs nothing."""
    shape, steps = ((1, 4, 8, 8), 4) if args.small else ((4, 4, 64, 64), 20)
    times = samplers.measure(shape, steps, 2, device.type)
    plain = times['minimal loop'][0]
    return [
        {'sampler': name, 'seconds_per_call': best, 'ratio': best / plain}
        for name, (best, _, _) in times.items()
    ]


def data(args: argparse.Namespace, device: torch.device) -> list[Row]:
    """Return the pictures per second from memory to the device, plain and augmented."""
    side, batch_size, batches = (16, 16, 4) if args.small else (64, 256, 40)
    images = torch.randint(0, 256, (4 * batch_size, 3, side, side), dtype=torch.uint8)
    rows = []
    for name, augmentation in ('plain', None), ('augmented', BatchedAugmentation(0.12)):
        loader = Loader(Images(images), batch_size, augmentation=augmentation, device=device)
        stream = loader.iterate()
        next(stream)
        start = time.perf_counter()
        for _ in range(batches):
            next(stream)
        wait(device.type)
        rate = batches * batch_size / (time.perf_counter() - start)
        rows.append({'path': f'{name}, {side}x{side}', 'images_per_second': rate})
    return rows


def late(args: argparse.Namespace, what: str) -> bool:
    """Return whether the time is used up, and say what is left out for it."""
    over: bool = time.perf_counter() - args.began > args.budget
    if over:
        print(f'left out after {args.budget:g} s: {what}', file=sys.stderr)
    return over


PARTS: dict[str, Callable[[argparse.Namespace, torch.device], list[Row]]] = {
    'correctness': lambda args, device: check_all(device),
    'training': training,
    'data': data,
    'overhead': overhead,
}


def table(results: dict[str, Any]) -> str:
    """Return the results as one table in Markdown."""
    lines = ['| part | what | result |', '|---|---|---|']
    checks = results.get('correctness', [])
    for kind in dict.fromkeys(row['kind'] for row in checks):
        for dtype in ('fp32', 'bf16'):
            errors = [r['error'] for r in checks if (r['kind'], r['dtype']) == (kind, dtype)]
            if errors:
                lines.append(
                    f'| correctness | {len(errors)} of kind {kind}, {dtype} | largest relative '
                    f'error {max(errors):.1e} |'
                )
    lines += [
        f'| **failed** | {r["name"]}, {r["dtype"]} | {r["error"]:.1e} |'
        for r in checks
        if not r['ok']
    ]
    for row in results.get('training', []):
        what = f'| training | {row["config"]}, {row["mode"]} | '
        if 'error' in row:
            lines.append(what + row['error'].splitlines()[0] + ' |')
            continue
        memory = row['memory_bytes']
        top = ', '.join(f'{e["name"][:40]} {e["share"]:.0%}' for e in row['profile'])
        lines.append(
            f'{what}{row["samples_per_second"]:.1f} samples/s in batches of {row["batch_size"]}, '
            f'MFU {row["mfu"]:.1%}'
            + ('' if memory is None else f', {memory / 2**30:.1f} GiB')
            + f'; {top} |'
        )
    for row in results.get('data', []):
        lines.append(f'| data | {row["path"]} | {row["images_per_second"]:,.0f} images/s |')
    for row in results.get('overhead', []):
        lines.append(
            f'| sampler | {row["sampler"]} | {row["seconds_per_call"] * 1e6:.0f} us a call, '
            f'{row["ratio"]:.2f} times a minimal loop |'
        )
    return '\n'.join(lines)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Return the arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--small', action='store_true', help='a short form (default on a CPU)')
    parser.add_argument('--parts', nargs='+', choices=PARTS, default=list(PARTS))
    parser.add_argument('--config', help='another config than the two')
    parser.add_argument('--batch-size', type=int)
    parser.add_argument('--peak', type=float, help='bf16 operations per second of the device')
    parser.add_argument('--budget', type=float, default=420.0, metavar='SECONDS')
    parser.add_argument('--out', type=Path, default=Path('gpu.json'))
    args = parser.parse_args(argv)
    args.small = args.small or args.device == 'cpu'
    args.began = time.perf_counter()
    return args


def main(argv: list[str] | None = None) -> int:
    """Measure, write and print."""
    args = parse(argv)
    device, on_gpu = torch.device(args.device), args.device.startswith('cuda')
    results: dict[str, Any] = {
        'device': torch.cuda.get_device_name(device) if on_gpu else platform.machine(),
        'torch': torch.__version__,
        'small': args.small,
    }
    for name in args.parts:
        if not late(args, name):
            start = time.perf_counter()
            results[name] = PARTS[name](args, device)
            results[f'{name}_seconds'] = time.perf_counter() - start
            args.out.write_text(json.dumps(results, indent=1))
    print(f'{results["device"]}, torch {results["torch"]}, {args.out}\n')
    print(table(results))
    return int(any(not row['ok'] for row in results.get('correctness', [])))


if __name__ == '__main__':
    sys.exit(main())
