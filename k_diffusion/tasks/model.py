"""The trained model that a task works on, opened once."""
from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from ..config import Experiment, load_model
from ..core.devices import choose_device
from ..core.memory import keep_freed_memory


def open_model(settings: Any, device: torch.device | None = None) -> tuple[nn.Module, Experiment, torch.device]:
    """Load the model that the settings of a task name.

    Args:
        settings: The settings, with checkpoint, config, ema, verify and device.
        device: Where the model is to be; by default the device of the settings.

    Returns:
        The denoiser, its experiment and its device.
    """
    device = choose_device(settings.device) if device is None else device
    if device.type == 'cpu':
        keep_freed_memory()
    denoiser, _ = load_model(settings.checkpoint, device, settings.config, settings.ema, settings.verify)
    return denoiser, cast(Experiment, denoiser.experiment), device
