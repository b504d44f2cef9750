"""Published figures of GPUs: arithmetic, memory and links, by name."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

#: Words of names of devices that are not the whole GPU, or another one than the name begins with.
_OTHER = {'laptop', 'mobile', 'mig', 'ti', 'super', 'max'}


@dataclass(frozen=True)
class GPU:
    """Figures of a GPU as its data sheet has them.

    Attributes:
        bf16: Dense tensor-core operations per second in bf16 (in fp16 where it has no bf16).
        tf32: The same for float32 tensors, in TF32 where it has that.
        memory: Bytes.
        bandwidth: Bytes per second of its memory.
        link: Bytes per second to the GPUs of its node, in each direction.
    """

    bf16: float
    tf32: float
    memory: float
    bandwidth: float
    link: float


#: By the words of their names; of several that fit, the one of the most words counts. Published
#: dense figures of the SXM form where nothing else is named, of GeForce with sums in float32. Those
#: of H100 PCIe, A10, L4, V100 and the RTX cards were not compared with a data sheet.
GPUS = {
    'b200': GPU(2250e12, 1100e12, 180e9, 8.0e12, 900e9),
    'h200': GPU(989e12, 494e12, 141e9, 4.8e12, 450e9),
    'h100': GPU(989e12, 494e12, 80e9, 3.35e12, 450e9),
    'h100 pcie': GPU(756e12, 378e12, 80e9, 2.0e12, 64e9),
    'a100': GPU(312e12, 156e12, 80e9, 2.0e12, 300e9),
    'a100 40gb': GPU(312e12, 156e12, 40e9, 1.555e12, 300e9),
    'l40s': GPU(362e12, 183e12, 48e9, 0.864e12, 32e9),
    'l4': GPU(121e12, 60e12, 24e9, 0.3e12, 32e9),
    'a10': GPU(125e12, 62.5e12, 24e9, 0.6e12, 32e9),
    'v100': GPU(125e12, 15.7e12, 32e9, 0.9e12, 150e9),
    't4': GPU(65e12, 8.1e12, 16e9, 0.32e12, 16e9),
    'rtx 4090': GPU(165e12, 82.6e12, 24e9, 1.008e12, 32e9),
    'rtx 3090': GPU(71e12, 35.6e12, 24e9, 0.936e12, 32e9),
}


def find_gpu(name: str) -> GPU | None:
    """Return the figures of a GPU by a name such as 'NVIDIA H100 80GB HBM3'; None if unknown."""
    words = set(re.findall('[a-z0-9]+', name.lower()))
    if words & _OTHER:
        return None
    keys = [key for key in GPUS if set(key.split()) <= words]
    return GPUS[max(keys, key=lambda key: len(key.split()))] if keys else None


def peak_flops(device: torch.device, mixed_precision: str | None = None) -> float | None:
    """Return the most operations per second of a device; None for a CPU and an unknown GPU.

    Args:
        device: The device.
        mixed_precision: 'bf16' or 'fp16', the type of its products; else they are in TF32.
    """
    gpu = find_gpu(torch.cuda.get_device_name(device)) if device.type == 'cuda' else None
    if gpu is None:
        return None
    return gpu.bf16 if mixed_precision in ('bf16', 'fp16') else gpu.tf32
