"""The config section "training": how long and in what portions a run trains, where the settings
of the run do not say.
"""

from __future__ import annotations

from dataclasses import dataclass

from .ema import power_ema_exponent


@dataclass
class TrainingConfig:
    """Settings of a run that belong to a recipe; batch_size and end_step of the call win."""

    batch_size: int = 64  # images per step, process and micro-step
    end_step: int | None = None  # optimizer steps in all; null trains until it is stopped
    grad_clip: float = 1.0  # the largest norm of the gradient
    ema_snapshots: int = (
        0  # how many snapshots of two averages a run writes, for `k-diffusion ema`; 8 are plenty
    )
    ema_widths: tuple[float, ...] = (0.05, 0.10)  # the relative widths of those averages
    held_out: int | str | None = None  # a number of items or a data set; null: the test split
    channels_last: bool = (
        True  # convolutional networks keep their tensors in this order; faster on most devices
    )

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f'batch_size is {self.batch_size}; it must be at least 1')
        if self.end_step is not None and self.end_step < 1:
            raise ValueError(f'end_step is {self.end_step}; it must be at least 1, or null')
        if self.ema_snapshots < 0:
            raise ValueError(f'ema_snapshots is {self.ema_snapshots}; it must be at least 0 (none)')
        if isinstance(self.held_out, int) and self.held_out < 0:
            raise ValueError(f'held_out is {self.held_out}; it must be at least 0 (none)')
        for width in self.ema_widths:
            power_ema_exponent(width)
        if not self.grad_clip > 0:
            raise ValueError(f'grad_clip is {self.grad_clip}; it must be above 0 (1 is usual)')
