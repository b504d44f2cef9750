"""Short runs for torchrun: a network in pieces, compiled, in half precision."""

from __future__ import annotations

import copy
import functools
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from toy import MemoryLoader, TinyNet, images, make_loss

import k_diffusion as K
from k_diffusion.training import (
    AdamWConfig,
    ConstantLRWithWarmup,
    EMAWarmup,
    Trainer,
    make_optimizer,
    sharding,
)

CONFIG = {
    'model': {
        'type': 'image_transformer_v2',
        'input_channels': 1,
        'input_size': [8, 8],
        'patch_size': [1, 1],
        'depths': [1, 1],
        'widths': [16, 32],
        'd_ffs': [32, 64],
        'self_attns': [
            {'type': 'neighborhood', 'd_head': 8, 'kernel_size': 3},
            {'type': 'global', 'd_head': 8},
        ],
        'mapping_width': 16,
        'mapping_depth': 1,
        'sigma_data': 0.5,
        'sigma_min': 0.01,
        'sigma_max': 80.0,
        'sigma_sample_density': {'type': 'lognormal', 'mean': -0.6, 'std': 1.5},
    },
    'dataset': {'type': 'synthetic', 'kind': 'blobs', 'n': 32},
    'optimizer': {'type': 'adamw', 'lr': 1e-3},
    'training': {'batch_size': 4},
}


def train(folder, name, **settings):
    """Train for two steps; print what is to be known of the run, and of its graphs."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    run = K.train(
        CONFIG,
        name=name,
        run_dir=folder / name,
        end_step=2,
        demo_every=0,
        evaluate_n=0,
        device='cpu',
        report=False,
        **settings,
    )
    graphs = torch._dynamo.utils.counters['stats']['unique_graphs']
    print(f'{name}: {run.processes} processes, step {run.step}, {graphs} graphs')


def scaled_trainer(accelerator, in_pieces, end_step, batch_size=4):
    """A run in fp16 with the loss scaled, which accelerate starts on a GPU alone."""
    torch.manual_seed(3)
    net = TinyNet()
    average = copy.deepcopy(net).eval().requires_grad_(False)
    optimizer = make_optimizer(net, AdamWConfig(lr=1e-2))
    if in_pieces:
        sharding.shard([net, average], optimizer, accelerator.device, block=1)
    scaler = torch.amp.GradScaler('cpu', init_scale=1024.0)
    accelerator.scaler, accelerator.native_amp = scaler, True
    accelerator.state._mixed_precision = 'fp16'
    optimizer = AcceleratedOptimizer(optimizer, scaler=scaler)
    accelerator._optimizers.append(optimizer)
    measure, calls = make_loss(net), []

    def loss(batch):
        with torch.autocast('cpu', torch.float16):
            each = measure(batch)
        calls.append(batch['item'])
        broken = len(calls) == 2 and accelerator.process_index == 0
        return each.float() * (float('inf') if broken else 1.0)

    loader = MemoryLoader(
        images(), batch_size, 0, accelerator.process_index, accelerator.num_processes
    )
    schedule = ConstantLRWithWarmup(optimizer.optimizer, 0.9)
    return Trainer(
        accelerator, net, loss, optimizer, schedule, EMAWarmup(), average, loader, end_step=end_step
    )


def train_in_fp16(folder):
    """Four steps in pieces; the second has an infinite loss on one process, and is left out."""
    accelerator = Accelerator(cpu=True)
    trainer = scaled_trainer(accelerator, True, 4)
    trainer.run()
    state = sharding.whole_state(trainer.model.state_dict())
    rank, scale = accelerator.process_index, accelerator.scaler.get_scale()
    torch.save({'model': state, 'scale': scale}, folder / f'fp16_{rank}.pth')
    print(f'fp16: {accelerator.num_processes} processes, step {trainer.step}')
    accelerator.wait_for_everyone()
    accelerator.end_training()


def main(folder, kind):
    torch.set_num_threads(1)
    if kind == 'fp16':
        train_in_fp16(folder)
        return
    sharding.shard.__defaults__ = (1000,)  # blocks of these small networks are cut too
    # The graphs are those of the real compiler; compiling them is left out.
    torch.compile = functools.partial(torch.compile, backend='aot_eager')
    compiled = {'shard': True, 'compile': True}
    for name, settings in (
        ('pieces', {'shard': True}),
        ('compiled', compiled),
        ('ddp', {'compile': True}),
        (
            'half',
            {'shard': True, 'compile': True, 'mixed_precision': 'bf16', 'checkpointing': True},
        ),
    ):
        train(folder, name, **settings)


if __name__ == '__main__':
    main(Path(sys.argv[1]), sys.argv[2])
