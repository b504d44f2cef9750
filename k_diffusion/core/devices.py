"""Which device to compute on."""

from __future__ import annotations

import torch


def has_float64(device: torch.device) -> bool:
    """Return True if a device computes in float64; MPS and some GPUs of other makers do not."""
    return device.type in ('cpu', 'cuda')


def choose_device(asked: str | None = None) -> torch.device:
    """The device asked for, or the fastest there is; one that this machine lacks raises a
    ValueError.
    """
    if asked is None:
        found = (
            torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        )
        return torch.device('cpu') if found is None else found
    try:
        device = torch.device(asked)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError, ImportError):
        raise ValueError(
            f'device must be one that this machine and this build of torch have; got {asked!r}: '
            'leave it out for the fastest there is, or take cpu'
        ) from None
    return device
