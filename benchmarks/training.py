"""Measure the cost of the trainer.

Its step, hooks and data included, beside the bare step of the same network.

    python benchmarks/training.py [--config configs/config_demo.json] [--steps 100]
        [--optimizer adamw] [--snapshots]
    python benchmarks/survival.py       saving, two processes, post-hoc averages

Bare is forward, backward, optimizer and average on images in memory, noise from the global
generator, no clipping. The two take turns on two copies of the network; medians are compared (the
bar is 1.05). --snapshots adds the two averages of post-hoc EMA.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from k_diffusion.config import load_config, make_denoiser_wrapper, make_model, sections_of
from k_diffusion.core.draws import Draws
from k_diffusion.core.modules import n_params
from k_diffusion.data import Images, Loader
from k_diffusion.tasks.run.objective import Objective
from k_diffusion.training import OPTIMIZERS, LogHook, SnapshotHook, Trainer
from k_diffusion.training.ema import ema_pairs, ema_update_pairs


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type != 'cpu':
        torch.accelerator.synchronize()


class TakeTurns:
    """A hook that times the step just done and then a bare one."""

    every = 1

    def __init__(self, bare_step: Callable[[], None]) -> None:
        self.bare_step = bare_step
        self.ours: list[float] = []
        self.bare: list[float] = []
        self.began = time.perf_counter()

    def __call__(self, trainer: Trainer) -> None:
        wait(trainer.accelerator.device)
        middle = time.perf_counter()
        self.bare_step()
        wait(trainer.accelerator.device)
        end = time.perf_counter()
        self.ours.append(middle - self.began)
        self.bare.append(end - middle)
        self.began = time.perf_counter()


def bare_step(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    wrapper: Callable[[nn.Module], Any],
    sections: Any,
    images: torch.Tensor,
    labels: torch.Tensor | None,
    batch_size: int,
) -> Callable[[], None]:
    """The same work without a trainer."""
    device = next(network.parameters()).device
    denoiser, pairs = wrapper(network), ema_pairs(network, copy.deepcopy(network))
    position = 0

    def step() -> None:
        nonlocal position
        index = torch.arange(position, position + batch_size) % len(images)
        x = (images[index].to(device) * (2 / 255) - 1).contiguous(memory_format=torch.channels_last)
        cond = {} if labels is None else {'class_cond': labels[index].to(device)}
        denoiser.loss(
            x, torch.randn_like(x), sections.density([batch_size], device=device), **cond
        ).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        ema_update_pairs(pairs, 0.99)
        position += batch_size

    return step


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--config', default=Path(__file__).parents[1] / 'configs' / 'config_demo.json'
    )
    parser.add_argument('--steps', type=int, default=100)
    parser.add_argument('--optimizer', choices=list(OPTIMIZERS), help="instead of the config's")
    parser.add_argument('--device', choices=('cpu', 'cuda', 'mps'), default='cpu')
    parser.add_argument(
        '--snapshots', action='store_true', help='keep the two averages of post-hoc EMA too'
    )
    args = parser.parse_args()

    config = load_config(args.config)
    if args.optimizer:
        config = load_config({**config, 'optimizer': {'type': args.optimizer}})
    sections = sections_of(config)
    batch_size, classes = sections.training.batch_size, sections.dataset.num_classes
    shape = (10_000, sections.model.input_channels, *sections.model.input_size)
    images = torch.randint(256, shape, dtype=torch.uint8)
    labels = torch.randint(classes, (len(images),)) if classes else None
    wrapper = make_denoiser_wrapper(config)

    accelerator = Accelerator(cpu=args.device == 'cpu')
    networks = [make_model(config).to(accelerator.device, memory_format=torch.channels_last)]
    networks.append(copy.deepcopy(networks[0]))
    ours, theirs = (sections.optimizer.make(network) for network in networks)
    turns = TakeTurns(bare_step(networks[1], theirs, wrapper, sections, images, labels, batch_size))
    averaged = copy.deepcopy(networks[0])
    lr_sched = sections.lr_sched.make(ours, args.steps)
    model, optimizer = accelerator.prepare(networks[0], ours)
    loss = Objective(
        wrapper(model),
        sections.density,
        Draws(0),
        num_classes=classes,
        cond_dropout_rate=sections.dataset.cond_dropout_rate,
        memory_format=torch.channels_last,
    )
    names = [str(i) for i in range(classes)]
    loader = Loader(Images(images, labels, names), batch_size, device=accelerator.device)
    with tempfile.TemporaryDirectory() as folder:
        snapshots = [SnapshotHook(averaged, Path(folder), 'x', 10**9)] if args.snapshots else []
        hooks = [LogHook(Path(folder, 'log.jsonl'), 10), *snapshots, turns]
        Trainer(
            accelerator,
            model,
            loss,
            optimizer,
            lr_sched,
            sections.ema_sched.make(),
            averaged,
            loader,
            hooks,
            end_step=args.steps,
        ).run()

    ours_ms, bare_ms = (
        1000 * statistics.median(times[args.steps // 10 :]) for times in (turns.ours, turns.bare)
    )
    print(
        f'{n_params(networks[0]):,} parameters, batch {batch_size}, {sections.optimizer.type}, '
        f'{torch.get_num_threads()} threads: '
        f'trainer {ours_ms:.2f} ms, bare {bare_ms:.2f} ms a step, ratio {ours_ms / bare_ms:.3f}'
    )


if __name__ == '__main__':
    main()
