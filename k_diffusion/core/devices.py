"""Choose the device to compute on, and move tensors to it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def has_float64(device: torch.device) -> bool:
    """Return True if a device computes in float64; MPS and the GPUs of some other makers do not.

    Args:
        device: The device.
    """
    return device.type in ('cpu', 'cuda')


def choose_device(name: str | None = None) -> torch.device:
    """Return a device by its name, or the fastest available device.

    Args:
        name: The name, such as 'cuda:1' or 'cpu'; None for the fastest device.

    Raises:
        ValueError: If this machine or this build of torch does not have the device.
    """
    if name is None:
        fastest = (
            torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        )
        return torch.device('cpu') if fastest is None else fastest
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError, ImportError):
        raise ValueError(
            f'device must be one that this machine and this build of torch have; got {name!r}: '
            'leave it out for the fastest device, or pass cpu'
        ) from None
    return device


def send(x: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device; a host that sends to a GPU does not wait for it.

    The tensor is copied from pinned memory, since a copy from other memory ends with a wait for the
    stream.

    Args:
        x: The tensor.
        device: The device.
    """
    if device.type == 'cuda' and x.device.type == 'cpu':
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)


def send_together(tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Return small tensors of the host on a device, by one copy.

    Args:
        tensors: The tensors by name. They are packed one behind the other, each at a multiple of
            eight bytes.
        device: The device.
    """
    if device.type == 'cpu' or not tensors:
        return dict(tensors)
    counts = [x.numel() * x.element_size() for x in tensors.values()]
    starts = [0]
    for count in counts:
        starts.append(starts[-1] + -(-count // 8) * 8)
    buffer = torch.zeros(starts[-1], dtype=torch.uint8)
    for x, start, count in zip(tensors.values(), starts, counts):
        buffer[start : start + count] = x.contiguous().view(-1).view(torch.uint8)
    buffer = send(buffer, device)
    return {
        name: buffer[start : start + count].view(x.dtype).view(x.shape)
        for (name, x), start, count in zip(tensors.items(), starts, counts)
    }
