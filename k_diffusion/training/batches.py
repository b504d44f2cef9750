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

    def iterate(self, items: int = 0) -> Iterator[Batch]:
        """Yield micro-batches from a position in the stream of items.

        Args:
            items: The position.
        """

    def epoch(self, items: int) -> int:
        """Return the epoch of a position in the stream of items.

        Args:
            items: The position.
        """


class Part(Protocol):
    """A part of a run with a state that checkpoints keep."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""

    def load_state_dict(self, state_dict: Any) -> None:
        """Restore a state.

        Args:
            state_dict: The result of state_dict.
        """


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
            'gradient_accumulation_steps of the accelerator must be 1; got '
            f'{accelerator.gradient_accumulation_steps}. Pass grad_accum_steps to the Trainer '
            'instead'
        )
    if loader.items_per_step % (grad_accum_steps * accelerator.num_processes):
        raise ValueError(
            'items_per_step of the loader must be a multiple of '
            f'{accelerator.num_processes} processes x {grad_accum_steps} micro-batches; got '
            f'{loader.items_per_step} items per step. Make it with the same world_size and '
            'grad_accum_steps'
        )
    half = [
        name
        for name, p in model.named_parameters()
        if p.is_floating_point() and p.element_size() < 4
    ]
    if half:
        raise ValueError(
            f'model must have its weights in float32; got {half[0]} in half precision. Let the '
            "accelerator compute in half precision instead (mixed_precision='bf16')"
        )
