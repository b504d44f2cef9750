"""Measure the gain of image_v1's depthwise resampling and memory layout.

Training steps against dense and depthwise resampling that is written out here.

    python benchmarks/networks.py [--config configs/config_28_unet.json] [--batch-size 64]
        [--rounds 20] [--bf16] [--device cuda]

A step is the loss, forward and backward. All variants hold the same weights and run in turn within
each round, on one thread; the median round of each counts.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from unittest import mock

import torch
import torch.nn.functional as F
from _timing import awake, wait
from torch import Tensor, nn

from k_diffusion.core.modules import n_params
from k_diffusion.denoisers import Denoiser
from k_diffusion.layers import Downsample2d, Upsample2d
from k_diffusion.models import ImageV1Config, flops, image_v1


class Convolution(nn.Module):
    """The resampling of a Downsample2d or Upsample2d (linear) as a convolution: a dense one, as
    in the original, or depthwise.
    """

    def __init__(self, of: Downsample2d | Upsample2d, groups: Callable[[int], int]) -> None:
        super().__init__()
        self.of, self.groups = of, groups

    def forward(self, x: Tensor) -> Tensor:
        c = x.shape[1]
        groups = self.groups(c)
        weight = x.new_zeros(c, c // groups, 4, 4)
        weight[range(c), [0] * c if groups == c else range(c)] = self.of.kernel.to(x)
        x = F.pad(x, (1,) * 4, 'reflect')
        if isinstance(self.of, Downsample2d):
            return F.conv2d(x, weight, stride=2, groups=groups)
        return F.conv_transpose2d(x, weight, stride=2, padding=3, groups=groups)


def with_convolutions(model: nn.Module, groups: Callable[[int], int]) -> nn.Module:
    """A copy of the model that resamples by convolution."""
    model = copy.deepcopy(model)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Downsample2d | Upsample2d):
                parent.add_module(name, Convolution(child, groups))
    return model


def plain_layout() -> mock._patch[object]:
    """Within it image_v1 computes in the layout its input comes in."""
    return mock.patch.object(image_v1, 'channels_last', lambda x: x)


def measure(
    config: ImageV1Config, batch_size: int, rounds: int, bf16: bool, device: str
) -> dict[str, float]:
    """Seconds per step, by variant."""
    model = awake(config.build())
    dense, depthwise = with_convolutions(model, lambda c: 1), with_convolutions(model, lambda c: c)
    variants = {
        'dense, plain layout': (dense, plain_layout),
        'dense': (dense, nullcontext),
        'depthwise': (depthwise, nullcontext),
        'as built, plain layout': (model, plain_layout),
        'as built': (model, nullcontext),
    }
    x, noise = torch.randn(2, batch_size, config.input_channels, *config.input_size)
    sigma = torch.rand(batch_size) + 0.1
    with flops.flop_counter() as counter, torch.no_grad():
        model(x[:1], sigma[:1])
    print(f'{n_params(model):,} parameters, {counter.flops:,} multiply-adds forward per sample')
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds + 1):
        for name, (network, layout) in variants.items():
            with layout(), torch.autocast(device, torch.bfloat16, enabled=bf16):
                wait(device)
                start = time.perf_counter()
                Denoiser(network).loss(x, noise, sigma).mean().backward()
                wait(device)
                seconds[name].append(time.perf_counter() - start)
            network.zero_grad()
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--config', default='configs/config_28_unet.json', help='a config of type image_v1'
    )
    parser.add_argument('--batch-size', type=int, default=64)
    parser.add_argument('--rounds', type=int, default=20)
    parser.add_argument('--bf16', action='store_true', help='under bf16 autocast')
    parser.add_argument('--device', default='cpu', help='cpu, cuda, mps (default: cpu)')
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.device != 'cpu':  # a default device makes every call of torch dearer
        torch.set_default_device(args.device)
    with open(args.config) as file:
        config = ImageV1Config(**json.load(file)['model'])
    seconds = measure(config, args.batch_size, args.rounds, args.bf16, args.device)
    slowest = seconds['dense, plain layout']
    for name, value in seconds.items():
        print(f'{name:24}{args.batch_size / value:9.1f} samples/s  {slowest / value:5.2f}x')


if __name__ == '__main__':
    main()
