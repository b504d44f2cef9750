"""A denoiser small enough to train in a test, its data in memory, and a run of it for torchrun."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

from k_diffusion.core.random import derive_seed, generator, randn_items
from k_diffusion.training import (
    AdamWConfig,
    CheckpointHook,
    ConstantLRWithWarmup,
    EMAWarmup,
    GradientNoiseHook,
    RunFolder,
    Trainer,
    make_optimizer,
    unwrap,
)
from k_diffusion.training.spikes import SpikeGuard


class TinyNet(nn.Module):
    def __init__(self, channels=8, dropout=0.0):
        super().__init__()
        self.proj_in = nn.Conv2d(1, channels, 3, padding=1)
        self.level = nn.Linear(1, channels)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.mix = nn.Linear(channels, channels, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.proj_out = nn.Conv2d(channels, 1, 3, padding=1)
        self.register_buffer('calls', torch.zeros((), dtype=torch.long))

    def forward(self, x, sigma):
        h = self.proj_in(x) + self.level(sigma.log()[:, None])[:, :, None, None]
        h = self.dropout(self.conv(torch.nn.functional.silu(h)))
        h = self.mix(torch.nn.functional.silu(h).movedim(1, -1)).movedim(-1, 1)
        return self.proj_out(h)

    def param_groups(self, base_lr):
        decayed = [self.conv.weight, self.mix.weight]
        rest = [p for p in self.parameters() if all(p is not d for d in decayed)]
        return [
            {'params': decayed, 'lr': base_lr},
            {'params': rest, 'lr': base_lr / 2, 'weight_decay': 0.0},
        ]

    def hidden_parameters(self):
        return [self.conv.weight, self.mix.weight]


class MemoryLoader:
    """The position stream of the data room over a tensor of images."""

    def __init__(self, images, batch_size, seed=0, rank=0, world_size=1, grad_accum_steps=1):
        self.images, self.batch_size, self.seed, self.rank, self.world_size = (
            images,
            batch_size,
            seed,
            rank,
            world_size,
        )
        self.items_per_step = batch_size * world_size * grad_accum_steps
        self.micro_steps = grad_accum_steps

    def epoch(self, items):
        return items // len(self.images)

    def iterate(self, items=0):
        while True:
            for micro in range(self.micro_steps):
                first = items + (micro * self.world_size + self.rank) * self.batch_size
                item = torch.arange(first, first + self.batch_size)
                yield {'image': torch.stack([self._at(int(p)) for p in item]), 'item': item}
            items += self.items_per_step

    def _at(self, position):
        epoch, index = divmod(position, len(self.images))
        return self.images[
            torch.randperm(len(self.images), generator=generator(self.seed, 'epoch', epoch))[index]
        ]


def images(n=40):
    return torch.rand(n, 1, 8, 8, generator=generator(1, 'images')) * 2 - 1


def make_loss(model, seed=0, calls=None):
    """The mean squared error of a denoised image; `calls` collects (item, u, noise)."""

    def loss(batch):
        x, u = batch['image'], batch['u']
        sigma = (torch.special.ndtri(u.clamp(1e-6, 1 - 1e-6)) * 1.2 - 1.2).exp().float()
        noise = randn_items(
            x.shape[1:], [derive_seed(seed, 'noise', int(i)) for i in batch['item']]
        )
        if calls is not None:
            calls.append((batch['item'], u, noise))
        return (
            (model(x + noise * sigma[:, None, None, None], sigma) - x).square().flatten(1).mean(1)
        )

    return loss


def make_trainer(
    config=None,
    batch_size=4,
    grad_accum_steps=1,
    dropout=0.0,
    calls=None,
    accelerator=None,
    ema_sched=None,
    wrap=lambda model: model,
    **options,
):
    torch.manual_seed(3)
    accelerator = accelerator or Accelerator(cpu=True)
    net = TinyNet(dropout=dropout)
    ema_model = copy.deepcopy(net).eval().requires_grad_(False)
    optimizer = make_optimizer(net, config or AdamWConfig(lr=1e-2))
    lr_sched = ConstantLRWithWarmup(optimizer, 0.9)
    model, optimizer = accelerator.prepare(net, optimizer)
    model = wrap(model)
    loader = MemoryLoader(
        images(),
        batch_size,
        0,
        accelerator.process_index,
        accelerator.num_processes,
        grad_accum_steps,
    )
    return Trainer(
        accelerator,
        model,
        make_loss(model, 0, calls),
        optimizer,
        lr_sched,
        ema_sched or EMAWarmup(power=0.75),
        ema_model,
        loader,
        grad_accum_steps=grad_accum_steps,
        **options,
    )


class Record:
    every = 1

    def __init__(self, act):
        self.act = act

    def __call__(self, trainer):
        self.act()


def main(out, batch_size, steps):
    """Trains a few steps on this process's share and saves what was drawn and what came of it."""
    calls, noise = [], []
    trainer = make_trainer(
        batch_size=batch_size, grad_accum_steps=2, calls=calls, end_step=steps, read_every=2
    )
    gradients = GradientNoiseHook(trainer.model)
    trainer.hooks = [gradients, Record(lambda: noise.append(gradients.noise_scale.get_stats()))]
    status = trainer.run()
    rank, world_size = trainer.accelerator.process_index, trainer.accelerator.num_processes
    print(f'rank {rank} of world size {world_size}: {status}')
    torch.save(
        {
            'calls': calls,
            'model': unwrap(trainer.model).state_dict(),
            'ema': trainer.ema_model.state_dict(),
            'loss': trainer.last_loss,
            'smoothed': trainer.ema_stats['loss'],
            'step': trainer.step,
            'noise': noise,
        },
        Path(out, f'rank{rank}.pth'),
    )
    trainer.end_step = None
    if rank == 0:
        trainer.request_stop()
    print(f'rank {rank}: {trainer.run()} at step {trainer.step}')
    # A thread of gloo that lets go of a tensor while Python shuts down aborts the process: nothing
    # may be under way then.
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()


def pause(out, batch_size, steps):
    """Trains twice so many steps, without a pause and with one, and saves the losses by noise."""
    straight = make_trainer(batch_size=batch_size, end_step=2 * steps, dropout=0.1)
    straight.run()
    accelerator, folder = straight.accelerator, RunFolder(Path(out), 'paused')
    same = {'batch_size': batch_size, 'dropout': 0.1, 'accelerator': accelerator}
    make_trainer(end_step=steps, hooks=[CheckpointHook(folder, 0)], **same).run()
    accelerator.wait_for_everyone()
    resumed = make_trainer(end_step=2 * steps, **same)
    resumed.load_state_dict(folder.newest()[1])
    resumed.run()
    result = {'world': accelerator.num_processes}
    for name, trainer in ('straight', straight), ('resumed', resumed):
        losses = trainer.loss_by_noise
        result[name] = {
            'sums': losses.sums,
            'values': losses.values(accelerator),
            'model': unwrap(trainer.model).state_dict(),
        }
    torch.save(result, Path(out, f'rank{accelerator.process_index}.pth'))
    accelerator.wait_for_everyone()
    accelerator.end_training()


def spike(out, batch_size, steps):
    """Trains on items whose loss spikes from step 25 on, without a pause and with one within."""
    accelerator, result = Accelerator(cpu=True), {}
    per_step = batch_size * accelerator.num_processes

    def make(folder):
        guard = SpikeGuard(folder, 8, 1, every=10)
        trainer = make_trainer(
            batch_size=batch_size,
            accelerator=accelerator,
            end_step=steps,
            hooks=[guard, CheckpointHook(folder, 8)],
            parts={'spikes': guard},
        )
        plain, bad = trainer.loss, range(24 * per_step, 28 * per_step)
        trainer.loss = lambda batch: plain(batch) * (1e3 if int(batch['item'][0]) in bad else 1)
        return trainer

    for name, pauses in ('straight', False), ('resumed', True):
        folder = RunFolder(Path(out, name), 'toy')
        trainer = make(folder)
        if pauses:
            trainer.stop = lambda stopped=trainer: stopped.step == 26
            trainer.run()
            accelerator.wait_for_everyone()
            trainer = make(folder)
            trainer.load_state_dict(folder.newest()[1])
        trainer.run()
        state = trainer.state_dict()
        result[name] = {key: state[key] for key in ('model', 'model_ema', 'items', 'spikes')}
    torch.save(result, Path(out, f'rank{accelerator.process_index}.pth'))
    accelerator.wait_for_everyone()
    accelerator.end_training()


if __name__ == '__main__':
    torch.set_num_threads(1)
    work = {'pause': pause, 'spike': spike}.get(sys.argv[-1], main)
    work(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
