"""Shared parts of the network benchmarks: initial weights that are not zero, and timed steps."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from k_diffusion.denoisers import Denoiser


def awake(network: nn.Module) -> nn.Module:
    """The network with small random numbers where it starts with zeros, so that nothing is
    multiplied away.
    """
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    return network


def wait(device: str) -> None:
    """Until the device has done what it was given."""
    if device != 'cpu':
        torch.accelerator.synchronize()


def training_seconds(
    networks: Mapping[str, Any],
    x: Tensor,
    noise: Tensor,
    sigma: Tensor,
    rounds: int,
    device: str,
    bf16: bool,
) -> dict[str, float]:
    """The median seconds of a step (loss, forward and backward) of each; all run in turn within
    each round, two rounds uncounted.
    """
    seconds: dict[str, list[float]] = {name: [] for name in networks}
    for _ in range(rounds + 2):
        for name, network in networks.items():
            with torch.autocast(device, torch.bfloat16, enabled=bf16):
                wait(device)
                start = time.perf_counter()
                Denoiser(network).loss(x, noise, sigma).mean().backward()
                wait(device)
                seconds[name].append(time.perf_counter() - start)
            network.zero_grad()
    return {name: statistics.median(values[2:]) for name, values in seconds.items()}
