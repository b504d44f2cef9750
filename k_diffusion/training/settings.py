"""The config section "training": defaults for the length and the batches of a run."""

from __future__ import annotations

from dataclasses import dataclass

from .ema import power_ema_exponent


@dataclass
class TrainingConfig:
    """Settings of a run that belong to a recipe; batch_size and end_step of a call replace these.

    Attributes:
        batch_size: Items per step, process and micro-step.
        end_step: The number of optimizer steps; null trains until stopped.
        grad_clip: The largest norm of the gradient.
        ema_snapshots: The number of snapshots of two averages for `k-diffusion ema`; 8 are plenty.
        ema_widths: The relative widths of those averages.
        held_out: A number of items or a data set; null is the test split.
        channels_last: Store the tensors of convolutional networks with the channels last, which is
            faster on most devices.
    """

    batch_size: int = 64
    end_step: int | None = None
    grad_clip: float = 1.0
    ema_snapshots: int = 0
    ema_widths: tuple[float, ...] = (0.05, 0.10)
    held_out: int | str | None = None
    channels_last: bool = True

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f'batch_size must be >= 1; got {self.batch_size}')
        if self.end_step is not None and self.end_step < 1:
            raise ValueError(f'end_step must be >= 1, or null; got {self.end_step}')
        if self.ema_snapshots < 0:
            raise ValueError(f'ema_snapshots must be >= 0; got {self.ema_snapshots}')
        if isinstance(self.held_out, int) and self.held_out < 0:
            raise ValueError(f'held_out must be >= 0, a data set or null; got {self.held_out}')
        for width in self.ema_widths:
            power_ema_exponent(width)
        if not self.grad_clip > 0:
            raise ValueError(f'grad_clip must be > 0 (1 is usual); got {self.grad_clip}')
