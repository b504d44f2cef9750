"""Training samples per second of our networks against diffusers' UNet2DModel of equal parameters,
eager and compiled, fp32 and bf16.

    python benchmarks/networks_peers.py [--size small|mnist|both] [--batch-size 16] [--rounds 8]
        [--compile] [--bf16] [--device cuda]

"small" networks have 2 to 3 million parameters, "mnist" ones those of the original's MNIST configs.
A step is the loss, forward and backward, with the same layout of memory for all convolutional ones.
All run in turn within each round; the median round of each counts.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from _timing import awake, training_seconds
from torch import Tensor, nn

from k_diffusion.config import load_config, make_model
from k_diffusion.core.memory import keep_freed_memory
from k_diffusion.core.modules import n_params
from k_diffusion.models import MODELS
from k_diffusion.models.flops import flop_counter

NOISE = {
    'input_channels': 1,
    'input_size': [28, 28],
    'sigma_min': 0.01,
    'sigma_max': 80.0,
    'sigma_sample_density': {'type': 'cosine-interpolated'},
}
SMALL: dict[str, dict[str, Any]] = {
    'image_v1': {
        'mapping_out': 128,
        'depths': [2, 2, 2],
        'channels': [32, 64, 128],
        'self_attn_depths': [False, False, True],
    },
    'image_v2': {
        'mapping_out': 128,
        'depths': [1, 1, 1],
        'channels': [32, 64, 128],
        'self_attn_depths': [False, False, True],
    },
    'image_transformer_v2': {
        'patch_size': [4, 4],
        'depths': [4],
        'widths': [192],
        'mapping_width': 128,
        'self_attns': [{'type': 'global', 'd_head': 64}],
    },
}
#: (blocks, channels) of the peer, which attends at its coarsest level as ours do.
PEERS = {'small': (2, (32, 64, 96)), 'mnist': (2, (128, 128, 256))}


class Peer(nn.Module):
    """diffusers' UNet2DModel behind our signature."""

    def __init__(self, blocks: int, channels: tuple[int, ...]) -> None:
        super().__init__()
        from diffusers import UNet2DModel

        down = ['DownBlock2D'] * (len(channels) - 1) + ['AttnDownBlock2D']
        up = ['AttnUpBlock2D'] + ['UpBlock2D'] * (len(channels) - 1)
        self.model = UNet2DModel(
            sample_size=28,
            in_channels=1,
            out_channels=1,
            layers_per_block=blocks,
            block_out_channels=channels,
            down_block_types=down,
            up_block_types=up,
            attention_head_dim=64 if channels[-1] % 64 == 0 else 32,
        )

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        out: Tensor = self.model(x, sigma.log() * 250, return_dict=False)[0]
        return out


def networks(size: str) -> dict[str, nn.Module]:
    if size == 'small':
        ours = {
            name: MODELS[name](**NOISE, **{'type': name, **section}).build()
            for name, section in SMALL.items()
        }
    else:
        configs = Path(__file__).resolve().parents[1] / 'configs'
        ours = {
            name: make_model(load_config({**load_config(configs / f'{file}.json'), 'dataset': {}}))
            for name, file in (
                ('image_v1', 'config_mnist'),
                ('image_transformer_v2', 'config_mnist_transformer'),
            )
        }
    return {**ours, 'diffusers UNet2DModel': Peer(*PEERS[size])}


def measure(size: str, args: argparse.Namespace) -> None:
    by_name = networks(size)
    x, noise = torch.randn(2, args.batch_size, 1, 28, 28)
    sigma = torch.rand(args.batch_size) + 0.1
    print(
        f'{size}, batch {args.batch_size}, {"bf16" if args.bf16 else "fp32"}, '
        f'{"compiled" if args.compile else "eager"}'
    )
    work = {}
    for name, network in by_name.items():
        awake(network)
        with flop_counter() as counter, torch.no_grad():
            network(x[:1], sigma[:1])
        work[name] = counter.flops
    running: dict[str, Any] = {
        name: torch.compile(network) if args.compile else network
        for name, network in by_name.items()
    }
    seconds = training_seconds(running, x, noise, sigma, args.rounds, args.device, args.bf16)
    peer = seconds['diffusers UNet2DModel']
    for name, step in seconds.items():
        rate = args.batch_size / step
        print(
            f'  {name:24}{n_params(by_name[name]) / 1e6:6.2f} M{work[name] / 1e6:9,.0f} million '
            f'multiply-adds{rate:9.1f} samples/s'
            f'{peer / step:7.2f}x{6 * work[name] * rate / 1e9:9.0f} GFLOP/s',
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--size', choices=('small', 'mnist', 'both'), default='small')
    parser.add_argument('--batch-size', type=int, default=16)
    parser.add_argument('--rounds', type=int, default=8)
    parser.add_argument('--compile', action='store_true')
    parser.add_argument('--bf16', action='store_true', help='under bf16 autocast')
    parser.add_argument('--device', default='cpu', help='cpu, cuda, mps (default: cpu)')
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    torch.manual_seed(0)
    if args.device != 'cpu':  # a default device makes every call of torch dearer
        torch.set_default_device(args.device)
    for size in ('small', 'mnist') if args.size == 'both' else (args.size,):
        measure(size, args)


if __name__ == '__main__':
    main()
