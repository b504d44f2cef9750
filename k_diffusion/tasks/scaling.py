"""Estimate the cost of training on many GPUs, by the formulas of docs/scale.md.

P is the number of parameters, N that of GPUs; weights, gradients and moments are of float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..core.accelerators import GPU

FLOAT = 4  # bytes of a number
#: The mean time between failures of one GPU with its share of the machine, in seconds: 419
#: unexpected interruptions in 54 days on 16,384 H100 (Llama team 2024, arXiv:2407.21783, 3.3.4).
FAILURE = 54 * 86400 * 16384 / 419


@dataclass(frozen=True)
class Cluster:
    """GPUs and their network.

    Attributes:
        gpus: N.
        gpu: The figures of one.
        network: Bytes per second of each GPU to other nodes.
        per_node: GPUs of a node.
        disk: Bytes per second that a node writes.
    """

    gpus: int
    gpu: GPU
    network: float
    per_node: int = 8
    disk: float = 1e9

    @property
    def link(self) -> float:
        """Bytes per second of rings through all GPUs.

        At the border of a node the traffic uses the network links of all its GPUs at once.
        """
        whole = self.network * self.per_node
        return self.gpu.link if self.gpus <= self.per_node else min(self.gpu.link, whole)


@dataclass(frozen=True)
class Work:
    """The costs of a model and its batch on one GPU.

    Attributes:
        groups: Parameters of each group that FSDP2 gathers at a time, the last one those of the
            root, which stay gathered between the forward and the backward pass.
        multiply_adds: Of a forward pass, of one item.
        activation_bytes: Of one item, kept for the backward pass.
        batch_size: Items per GPU and step.
        item_bytes: Of one item of the data.
    """

    groups: Sequence[int]
    multiply_adds: float
    activation_bytes: float
    batch_size: int
    item_bytes: float

    @property
    def parameters(self) -> int:
        """P."""
        return sum(self.groups)


@dataclass(frozen=True)
class Scaling:
    """A step of training on a cluster, in bytes and seconds."""

    way: str  # 'ddp', every GPU holds all weights, or 'fsdp2', each a share
    state_bytes: float  # weights, gradients, moments and average, of a GPU
    memory_bytes: float  # these and the activations, of a GPU
    fits: bool  # whether the GPU has so much
    traffic_bytes: float  # sent by each GPU in a step
    compute_seconds: float  # arithmetic of a step
    traffic_seconds: float  # communication of a step
    step_seconds: float  # both, as far as they do not overlap
    efficiency: float  # the share of a step that is arithmetic
    items_per_second: float  # of the whole cluster
    data_bytes_per_second: float  # read by the whole cluster
    checkpoint_bytes: float  # of a checkpoint
    checkpoint_seconds: float  # while training waits for it
    save_every_seconds: float  # the interval between checkpoints that loses the least time


def ddp_state_bytes(parameters: int, gpus: int = 1, averages: int = 1) -> float:
    """Return (4 + averages) 4 P: weights, gradients, two moments of AdamW and the averages.

    DDP of several processes adds 4 P for its buckets.

    Args:
        parameters: P.
        gpus: N.
        averages: The number of averages.
    """
    buckets = 1 if gpus > 1 else 0
    return (4 + averages + buckets) * FLOAT * parameters


def fsdp_state_bytes(groups: Sequence[int], gpus: int, averages: int = 1) -> float:
    """Return (4 + averages) 4 P / N and the groups that are temporarily whole.

    The root is whole, and so are two other groups, one in use and the next one being gathered, and
    the gradient of one.

    Args:
        groups: Parameters of each group, the last one those of the root.
        gpus: N.
        averages: The number of averages.
    """
    *blocks, root = groups
    whole = root + (3 * max(blocks) if blocks else root)
    return (4 + averages) * FLOAT * sum(groups) / gpus + (FLOAT * whole if gpus > 1 else 0)


def ddp_traffic(parameters: int, gpus: int) -> float:
    """Return 2 (N - 1) / N 4 P: what a GPU sends to reduce the gradients over a ring.

    Args:
        parameters: P.
        gpus: N.
    """
    return 2 * (gpus - 1) / gpus * FLOAT * parameters


def fsdp_traffic(groups: Sequence[int], gpus: int, micro_batches: int = 1) -> float:
    """Return (N - 1) / N 4 (3 P - root) for each micro-batch: what a GPU sends over a ring.

    Weights are gathered for the forward pass, those of the blocks again for the backward pass, and
    gradients are reduced to the GPU of their share.

    Args:
        groups: Parameters of each group, the last one those of the root.
        gpus: N.
        micro_batches: The number of micro-batches.
    """
    size = FLOAT * (3 * sum(groups) - groups[-1])
    return micro_batches * (gpus - 1) / gpus * size


def compute_seconds(work: Work, gpu: GPU, share: float) -> float:
    """Return 6 M B / (share x peak): three forward passes of B items, two operations each.

    Args:
        work: The model and its batch.
        gpu: The figures of a GPU.
        share: The share of the peak that the arithmetic reaches.
    """
    return 6 * work.multiply_adds * work.batch_size / (share * gpu.bf16)


def step_seconds(compute: float, traffic: float, hidden: float) -> float:
    """Return C + max(0, T - hidden C): traffic overlaps with a share of the arithmetic.

    Args:
        compute: C, the seconds of the arithmetic.
        traffic: T, the seconds of the communication.
        hidden: The share of C that communication overlaps with.
    """
    return compute + max(0.0, traffic - hidden * compute)


def checkpoint_bytes(parameters: int, averages: int = 1) -> float:
    """Return (3 + averages) 4 P of P `parameters`: weights, two moments and the averages."""
    return (3 + averages) * FLOAT * parameters


def best_interval(checkpoint: float, gpus: int) -> float:
    """Return sqrt(2 S F / N), the seconds between checkpoints that lose the least time.

    A GPU fails every F seconds.

    Args:
        checkpoint: S, the seconds that a checkpoint takes.
        gpus: N.

    References:
        Young 1974, A first order approximation to the optimum checkpoint interval.
    """
    return math.sqrt(2 * checkpoint * FAILURE / gpus)


def simulate(work: Work, cluster: Cluster, share: float = 0.5) -> list[Scaling]:
    """Return the costs of a step with DDP and with FSDP2.

    Args:
        work: The model and its batch.
        cluster: The GPUs.
        share: The share of the peak that the arithmetic reaches.
    """
    n, parameters = cluster.gpus, work.parameters
    compute = compute_seconds(work, cluster.gpu, share)
    size = checkpoint_bytes(parameters)
    groups, nodes, results = work.groups, -(-n // cluster.per_node), []
    for way, state, traffic, hidden, writers in (
        # Gradients are reduced during the backward pass, two thirds of the arithmetic.
        ('ddp', ddp_state_bytes(parameters, n), ddp_traffic(parameters, n), 2 / 3, 1),
        ('fsdp2', fsdp_state_bytes(groups, n), fsdp_traffic(groups, n), 1.0, nodes),
    ):
        seconds = step_seconds(compute, traffic / cluster.link, hidden)
        memory = state + work.batch_size * work.activation_bytes
        items = n * work.batch_size / seconds
        saving = size / (cluster.disk * writers)
        results.append(
            Scaling(
                way,
                state,
                memory,
                memory <= cluster.gpu.memory,
                traffic,
                compute,
                traffic / cluster.link,
                seconds,
                compute / seconds,
                items,
                items * work.item_bytes,
                size,
                saving,
                best_interval(saving, n),
            )
        )
    return results
