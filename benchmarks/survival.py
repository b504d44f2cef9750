"""Measure the cost of reliability.

The time that saving holds up the steps, the gain of a second process, and the error of post-hoc
averages.

    python benchmarks/survival.py [--config configs/config_demo.json] [--steps 800]
        [--only saving|processes|posthoc]

Saving: the time the step loop waits for one checkpoint, beside torch.save of the same state into
the same folder, in turns; and as a share of training at the default --save-every (asynchronous
saving would pay above 2 %). Processes: images per second of `train` with one process and with two,
on one thread each, interleaved. Post-hoc: a run that keeps 8 snapshots of the widths 0.05 and 0.1
and tracks other widths directly; the relative error of the whole weight vector (the bar is 1e-3).
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from k_diffusion.config import load_config, make_denoiser_wrapper, make_model, sections_of
from k_diffusion.core.draws import Draws
from k_diffusion.data import Loader, open_dataset
from k_diffusion.tasks.run.objective import Objective
from k_diffusion.training import (
    CheckpointHook,
    PowerEMA,
    RunFolder,
    SnapshotHook,
    Trainer,
    ema_update,
    find_snapshots,
    reconstruct,
)

ROOT = Path(__file__).parents[1]
WIDTHS = (0.03, 0.07, 0.08, 0.12, 0.15, 0.20)


def make_trainer(config: dict[str, Any], steps: int, device: str) -> Trainer:
    """A run of a config without hooks."""
    sections = sections_of(config)
    accelerator = Accelerator(cpu=device == 'cpu')
    torch.manual_seed(0)
    network = make_model(config).to(accelerator.device)
    averaged = copy.deepcopy(network).requires_grad_(False).eval()
    optimizer = sections.optimizer.make(network)
    lr_sched = sections.lr_sched.make(optimizer, steps)
    model, optimizer = accelerator.prepare(network, optimizer)
    dataset = open_dataset(
        sections.dataset, tuple(sections.model.input_size), sections.model.input_channels
    )
    loss = Objective(
        make_denoiser_wrapper(config)(model),
        sections.density,
        Draws(0),
        num_classes=sections.dataset.num_classes,
    )
    loader = Loader(dataset, sections.training.batch_size, device=accelerator.device)
    return Trainer(
        accelerator,
        model,
        loss,
        optimizer,
        lr_sched,
        sections.ema_sched.make(),
        averaged,
        loader,
        end_step=steps,
    )


def saving(config: dict[str, Any], device: str) -> None:
    trainer = make_trainer(config, 20, device)
    began = time.perf_counter()
    trainer.run()
    step = (time.perf_counter() - began) / 20
    ours, plain = [], []
    with tempfile.TemporaryDirectory() as place:
        hook = CheckpointHook(RunFolder(Path(place), 'x'))
        for _ in range(15):
            began = time.perf_counter()
            hook(trainer)
            middle = time.perf_counter()
            torch.save(trainer.state_dict(), Path(place, 'plain.pth'))
            ours.append(middle - began)
            plain.append(time.perf_counter() - middle)
        size = trainer.last_checkpoint.stat().st_size if trainer.last_checkpoint else 0
    ms, bare = (1000 * statistics.median(times) for times in (ours, plain))
    print(
        f'saving {size / 1e6:.1f} MB: {ms:.1f} ms (hashed, synced, on record), torch.save alone '
        f'{bare:.1f} ms, ratio {ms / bare:.2f}; '
        f'every 10,000 steps of {1000 * step:.1f} ms that is {100 * ms / (1e7 * step):.4f} % of '
        'training'
    )


def processes(config_path: str, steps: int) -> None:
    def rate(count: int) -> float:
        launcher = (
            ['-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', str(count)]
            if count > 1
            else []
        )
        with tempfile.TemporaryDirectory() as place:
            command = [
                sys.executable,
                *launcher,
                str(ROOT / 'train.py'),
                '--config',
                config_path,
                '--name',
                'x',
                '--run-dir',
                place,
                '--end-step',
                str(steps),
                '--demo-every',
                '0',
                '--evaluate-n',
                '0',
                '--device',
                'cpu',
                '--no-report',
            ]
            environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT)}
            subprocess.run(command, check=True, capture_output=True, env=environment)
            lines = [
                json.loads(line) for line in Path(place, 'x_log.jsonl').read_text().splitlines()
            ]
        return statistics.median(line['images_per_second'] for line in lines[1:])

    pairs = [(rate(1), rate(2)) for _ in range(3)]
    one, two = (statistics.median(column) for column in zip(*pairs))
    print(
        f'one process {one:,.0f} images/s, two {two:,.0f}: {two / one:.2f} times '
        f'({os.cpu_count()} cores, a thread each)'
    )


def posthoc(config: dict[str, Any], steps: int, device: str) -> None:
    trainer = make_trainer(config, steps, device)
    direct = {width: (PowerEMA(width), copy.deepcopy(trainer.ema_model)) for width in WIDTHS}

    class Direct:
        every = 1

        def __call__(self, trainer: Trainer) -> None:
            for sched, average in direct.values():
                ema_update(trainer.model, average, sched.get_value())
                sched.step()

    with tempfile.TemporaryDirectory() as place:
        trainer.hooks = [
            SnapshotHook(trainer.ema_model, Path(place), 'x', -(-steps // 8)),
            Direct(),
        ]
        trainer.run()
        snapshots = find_snapshots(place)
        for width, (_, average) in direct.items():
            weights, true = reconstruct(snapshots, width), average.state_dict()
            names = [name for name, value in true.items() if value.is_floating_point()]
            off = torch.cat([(weights[name] - true[name].cpu()).flatten() for name in names]).norm()
            size = torch.cat([true[name].flatten() for name in names]).norm()
            print(
                f'post-hoc width {width:.2f} from {len(snapshots) // 2} snapshots of each of '
                f'0.05 and 0.10, {steps} steps: '
                f'relative error {(off / size).item():.1e}'
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--config', default=str(ROOT / 'configs' / 'config_demo.json'))
    parser.add_argument('--steps', type=int, default=800, help='of the post-hoc run (default: 800)')
    parser.add_argument('--only', choices=('saving', 'processes', 'posthoc'))
    parser.add_argument('--device', choices=('cpu', 'cuda', 'mps'), default='cpu')
    args = parser.parse_args()
    config = load_config(args.config)
    if args.only in (None, 'saving'):
        saving(config, args.device)
    if args.only in (None, 'processes'):
        processes(args.config, 60)
    if args.only in (None, 'posthoc'):
        posthoc(config, args.steps, args.device)


if __name__ == '__main__':
    main()
