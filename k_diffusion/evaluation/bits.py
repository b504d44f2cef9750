"""Bits per dimension: the code length of 8-bit images by the likelihood of a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..core.protocols import DenoiseFn
from ..core.random import derive_seed, generator
from ..sampling import log_likelihood
from .arrays import as_bytes, as_floats, as_tensor, whole_number

#: log2 of the number of levels in a unit of the model's scale, where neighbouring levels differ by
#: 1 / 127.5.
LEVELS_PER_UNIT = math.log2(127.5)


def dequantised(images: Any, seeds: Sequence[int]) -> Tensor:
    """Return images uint8 [B, ...] as points in the model's scale, (v + u) / 127.5 - 1.

    u is uniform in [-1/2, 1/2) from the seed of each image. The mean is the value in training, v /
    127.5 - 1, and the points of a level fill the interval nearer to it than to any other.

    Args:
        images: The images.
        seeds: A seed for each.
    """
    images = as_bytes(images, 'images', '[B, ...]')
    _check_seeds(seeds, images)
    noise = torch.stack(
        [torch.rand(images.shape[1:], generator=generator(seed, 'dequantise')) for seed in seeds]
    )
    return (images.float() + noise.to(images.device) - 0.5) / 127.5 - 1


def bits_per_dim(log_prob: Any, dimensions: int) -> Tensor:
    """Convert log densities at K dequantised points of each image to bits per dimension [B].

    -log2(mean of p over the points) / dimensions + log2 127.5. With K = 1 the expectation is an
    upper bound of the code length; more points tighten it.

    Args:
        log_prob: Log densities [B, K], in nats.
        dimensions: Number of values of an image.

    References:
        Theis et al. (2016), arXiv:1511.01844, section 3.1.
        Burda et al. (2016), arXiv:1509.00519.
    """
    log_prob = as_floats(log_prob, 'log_prob')
    if log_prob.ndim != 2 or log_prob.shape[1] < 1:
        raise ValueError(
            'log_prob must be log densities [B, K] at K points of each image; got shape '
            f'{list(log_prob.shape)}'
        )
    whole_number(dimensions, 'dimensions')
    mean = log_prob.logsumexp(1) - math.log(log_prob.shape[1])
    return -mean / (dimensions * math.log(2)) + LEVELS_PER_UNIT


def image_bits(
    denoise: DenoiseFn,
    images: Any,
    sigma_min: float,
    sigma_max: float,
    seeds: Sequence[int],
    cond: Mapping[str, Tensor] | None = None,
    *,
    points: int = 1,
    steps: int | None = 32,
    probes: int = 1,
    trace: Any = 'probes',
    data_mean: float | Tensor = 0.0,
    data_std: float | Tensor = 0.0,
    batch_size: int = 64,
    device: Any = 'cpu',
    report: Callable[[int], object] | None = None,
) -> Tensor:
    """Compute bits per dimension [N] of images under the model's density at level sigma_min.

    The value of an image depends on its own seed only. With several points the error of the probes
    must be small compared with a nat, or the largest of the points is selected for its error: use
    the exact trace, or more probes.

    Args:
        denoise: The denoiser.
        images: uint8 [N, C, H, W].
        sigma_min: The lowest noise level, > 0.
        sigma_max: The highest noise level.
        seeds: A seed for each image.
        cond: Conditions, tensors with an entry for each image.
        points: Number of dequantised points of an image.
        steps: Number of steps of a fixed grid; None for the adaptive solver.
        probes: Number of probes per model call.
        trace: 'probes' or 'exact'.
        data_mean: Mean of the data, a number or like an item.
        data_std: Standard deviation of the data, a number or like an item.
        batch_size: Number of images in one model call.
        device: Where to compute.
        report: Called with the number of finished images.

    Raises:
        ValueError: If an argument is out of its range.
    """
    images = as_bytes(images, 'images')
    _check_seeds(seeds, images)
    if len(images) < 1:
        raise ValueError('images must hold at least one image; got none')
    whole_number(points, 'points')
    whole_number(batch_size, 'batch_size')
    cond = {key: as_tensor(value, f'cond[{key!r}]') for key, value in (cond or {}).items()}
    for key, value in cond.items():
        if value.ndim < 1 or len(value) != len(images):
            raise ValueError(
                f'cond[{key!r}] must have an entry for each of the {len(images)} images; '
                f'got shape {list(value.shape)}'
            )
    results = []
    for start in range(0, len(images), batch_size):
        part = slice(start, start + batch_size)
        batch = images[part].to(device)
        here = {key: value[part].to(device) for key, value in cond.items()}
        log_probs = []
        for k in range(points):
            own = [derive_seed(seed, 'point', k) for seed in seeds[part]]
            log_prob, _ = log_likelihood(
                denoise,
                dequantised(batch, own),
                sigma_min,
                sigma_max,
                here,
                steps=steps,
                probes=probes,
                trace=trace,
                seed=own,
                data_mean=data_mean,
                data_std=data_std,
            )
            log_probs.append(log_prob)
        results.append(bits_per_dim(torch.stack(log_probs, 1), batch[0].numel()).cpu())
        if report is not None:
            report(min(start + batch_size, len(images)))
    return torch.cat(results)


def _check_seeds(seeds: Sequence[int], images: Tensor) -> None:
    if not hasattr(seeds, '__len__') or len(seeds) != len(images):
        count = len(seeds) if hasattr(seeds, '__len__') else repr(seeds)
        raise ValueError(
            f'seeds must hold a number for each of the {len(images)} images; got {count}'
        )
