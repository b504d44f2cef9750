"""A step of two processes over gloo that counts what is sent and held; run by torchrun."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from k_diffusion.training.sharding import group_sizes, local, shard

BLOCK = 1000


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(8, 64)
        self.blocks = nn.ModuleList(nn.Linear(64, width) for width in (64, 128))
        self.last = nn.Linear(128, 8)

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = block(x).relu()
        return self.last(x)


class Collectives(TorchDispatchMode):
    """Adds up the bytes of the whole tensors that collectives of pieces make or take."""

    def __init__(self):
        super().__init__()
        self.gathered = self.reduced = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.c10d._allgather_base_.default:
            self.gathered += args[0].numel() * args[0].element_size()
        if func is torch.ops.c10d._reduce_scatter_base_.default:
            self.reduced += args[1].numel() * args[1].element_size()
        return func(*args, **(kwargs or {}))


def count(way):
    """Return the counts of the second step of DDP or FSDP2."""
    torch.manual_seed(0)
    net = Net()
    groups, average = group_sizes(net, BLOCK), copy.deepcopy(net)
    optimizer = torch.optim.AdamW(net.parameters())
    model, bucket_bytes, counts = net, [], Collectives()
    if way == 'fsdp2':
        shard([net, average], optimizer, torch.device('cpu'), BLOCK)
    else:
        model = DistributedDataParallel(net)

        def hook(state, bucket):
            bucket_bytes.append(bucket.buffer().numel() * bucket.buffer().element_size())
            return allreduce_hook(state, bucket)

        model.register_comm_hook(dist.group.WORLD, hook)
    for _ in range(2):
        bucket_bytes.clear()
        optimizer.zero_grad()
        counts = Collectives()
        with counts:
            model(torch.randn(4, 8)).sum().backward()
        optimizer.step()
    tensors = [x for p in net.parameters() for x in (p, p.grad, *optimizer.state[p].values())]
    tensors += list(average.parameters())
    pieces = [local(x) for x in tensors if x.ndim]
    return {
        'groups': groups,
        'reduced_by_ddp': sum(bucket_bytes),
        'gathered': counts.gathered,
        'reduced': counts.reduced,
        'held': sum(x.numel() * x.element_size() for x in pieces),
    }


if __name__ == '__main__':
    torch.set_num_threads(1)
    dist.init_process_group('gloo')
    result = {way: count(way) for way in ('ddp', 'fsdp2')}
    Path(sys.argv[1], f'rank{dist.get_rank()}.json').write_text(json.dumps(result))
    dist.barrier()
    dist.destroy_process_group()
