"""Interfaces of the trainer: batches, their source, and parts of a run with a state."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from torch import nn

#: image [B, C, ...], item [B] (positions in the stream), u [B] (quantiles of the noise levels), and
#: conditions.
Batch = dict[str, Any]


class BatchSource(Protocol):
    """Endless micro-batches of this process.

    Attributes:
        items_per_step: Items per optimizer step, over all processes.
    """

    items_per_step: int

    def iterate(self, items: int = 0) -> Iterator[Batch]: ...

    def epoch(self, items: int) -> int: ...


class Part(Protocol):
    """A part of a run with a state that checkpoints keep."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: Any) -> None: ...


def check_parts(
    accelerator: Any, model: nn.Module, loader: BatchSource, grad_accum_steps: int
) -> None:
    """Check that the parts of a trainer fit together, and that weights are not in half precision.

    Args:
        accelerator: The accelerator.
        model: The network.
        loader: The source of batches.
        grad_accum_steps: Micro-batches per optimizer step.

    Raises:
        ValueError: If they do not.
    """
    if accelerator.gradient_accumulation_steps != 1:
        raise ValueError(
            'the accelerator has '
            f'gradient_accumulation_steps={accelerator.gradient_accumulation_steps}; '
            'leave it at 1 there and give the number to the Trainer as grad_accum_steps'
        )
    if loader.items_per_step % (grad_accum_steps * accelerator.num_processes):
        raise ValueError(
            f'the loader hands out {loader.items_per_step} items per step, which '
            f'{accelerator.num_processes} processes of {grad_accum_steps} micro-batches cannot '
            'share '
            'evenly; make it with the same world_size and grad_accum_steps'
        )
    half = [
        name
        for name, p in model.named_parameters()
        if p.is_floating_point() and p.element_size() < 4
    ]
    if half:
        raise ValueError(
            f'the parameter {half[0]} is in half precision; keep weights in float32 and let the '
            "accelerator compute in less (mixed_precision='bf16')"
        )
