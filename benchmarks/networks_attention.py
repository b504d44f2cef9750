"""Neighbourhood attention by tiles against dense attention with a boolean mask: time forward and
backward, and memory.

    python benchmarks/networks_attention.py [--sides 28,32,56] [--kernel-size 7] [--rounds 15]
        [--device cuda --bf16]

q, k and v lie in memory as the network hands them over, [B, heads, N, D]. On CUDA natten and
compiled flex_attention are measured beside them where they are there. All are run in turn within
each round, four times in a row; the median of all counts. Memory is what a forward pass keeps for
the backward pass, inputs and output not counted.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from _timing import wait
from torch import Tensor

from k_diffusion.core.memory import keep_freed_memory
from k_diffusion.layers.neighborhood import neighborhood_mask
from k_diffusion.layers.neighborhood_backends import BACKENDS, why_not_natten

# in a row, so that the time of the one before, and what it leaves in the caches, counts little
REPEATS = 4

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def dense(kernel_size: int, side: int, device: str) -> Attention:
    mask = neighborhood_mask(side, side, kernel_size, device)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        flat = (x.flatten(1, 2).transpose(1, 2) for x in (q, k, v))
        return (
            F.scaled_dot_product_attention(*flat, mask, scale=1.0).transpose(1, 2).reshape(q.shape)
        )

    return attend


def contenders(kernel_size: int, side: int, device: str) -> dict[str, Attention]:
    attends = {'dense mask': dense(kernel_size, side, device)}
    for name in ['tiles'] + (
        ['flex'] + (['natten'] if why_not_natten() is None else []) if device == 'cuda' else []
    ):
        attends[name] = lambda q, k, v, name=name: BACKENDS[name](q, k, v, kernel_size, 1.0)
    return attends


def saved_bytes(attend: Attention, q: Tensor, k: Tensor, v: Tensor) -> int:
    storages = {}

    def keep(x: Tensor) -> Tensor:
        storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        out = attend(q, k, v)
    for x in (q, k, v, out):
        storages.pop(x.untyped_storage().data_ptr(), None)
    return sum(storages.values())


def measure(
    attends: dict[str, Attention], inputs: tuple[Tensor, ...], rounds: int, device: str
) -> dict[str, float]:
    seconds: dict[str, list[float]] = {name: [] for name in attends}
    for _ in range(rounds + 2):
        for name, attend in attends.items():
            for _ in range(REPEATS):
                wait(device)
                start = time.perf_counter()
                torch.autograd.grad(attend(*inputs[:3]), inputs[:3], inputs[3])
                wait(device)
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values[2 * REPEATS :]) for name, values in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--sides', default='28,32,56', help='tokens along a side (default: 28,32,56)'
    )
    parser.add_argument('--kernel-size', type=int, default=7)
    parser.add_argument('--heads', type=int, default=2)
    parser.add_argument(
        '--batch-size',
        type=int,
        default=4,
        help='at 32x32 tokens and below; fewer above (default: 4)',
    )
    parser.add_argument('--rounds', type=int, default=15)
    parser.add_argument('--bf16', action='store_true')
    parser.add_argument('--device', default='cpu', help='cpu, cuda (default: cpu)')
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    if args.device != 'cpu':  # a default device makes every call of torch dearer
        torch.set_default_device(args.device)
    torch.set_default_dtype(torch.bfloat16 if args.bf16 else torch.float32)
    for side in map(int, args.sides.split(',')):
        batch = max(1, args.batch_size * 32**2 // max(side, 32) ** 2)
        shape = batch, args.heads, side * side, 64
        q, k, v, grad = (
            torch.randn(shape, requires_grad=i < 3).transpose(1, 2).unflatten(1, (side, side))
            for i in range(4)
        )
        attends = contenders(args.kernel_size, side, args.device)
        exact = attends['dense mask'](q, k, v)
        for name, attend in attends.items():
            difference = (attend(q, k, v) - exact).abs().max().item()
            if difference > (3e-2 if args.bf16 else 1e-5):
                raise RuntimeError(f'{name} differs from dense attention by {difference}')
        seconds = measure(attends, (q, k, v, grad), args.rounds, args.device)
        for name, value in seconds.items():
            memory = saved_bytes(attends[name], q, k, v) / (batch * side * side)
            print(
                f'{side}x{side} tokens, batch {batch}  {name:12}{1000 * value:9.1f} ms  '
                f'{seconds["dense mask"] / value:5.2f}x  '
                f'{memory:9,.0f} bytes kept a token',
                flush=True,
            )


if __name__ == '__main__':
    main()
